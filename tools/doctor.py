"""ibpfs doctor: what is wrong, with what, and what to do about it."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from ibpfs import diagnosis
from ibpfs.config import VolumePaths
from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.findings import Finding
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask_without_keys, find_asked
from ibpfs_tools.commands import command, complete_volume

#: Findings after which nobody can become the volume's owner, and its depots stay unasked.
_BLOCKING = frozenset(("damaged-volume", "unknown-format", "damaged-database"))


@command("doctor")
@click.argument("volume", shell_complete=complete_volume, required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of code, place, cause, action.")
def doctor(volume: str | None, as_json: bool) -> int:
    """Say what is wrong with this machine's FUSE and with VOLUME (a volume or a mount point), one line each.

    Without VOLUME, with all that are mounted. Each line names the place, the cause and one thing to do. Looks into the
    volume's disks, key and database, and asks its depots; renews leases that are due, and changes nothing else. Needs
    no passphrase. Exit code 0: nothing found, 1: something.
    """
    found = [*diagnosis.of_this_machine()]
    for paths in _volumes(volume):
        found += [one for one in diagnosis.of_volume(paths) if one not in found]
        if not any(one.code in _BLOCKING for one in found):
            found += _ask(paths)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for line in describe(found):
            click.echo(line)
    return 1 if found else 0


def _volumes(word: str | None) -> list[VolumePaths]:
    if word is not None:
        return [find_asked(word)]
    return [VolumePaths(root) for root in dict.fromkeys(mounts.sources())]


def _ask(paths: VolumePaths) -> list[Finding]:
    try:
        answers: list[dict[str, Any]] = ask_without_keys(paths, "doctor", title="asking depots")
    except IbpfsError as error:
        return [diagnosis.first_error(error, str(paths.root))]
    return [Finding(**{key: str(value) for key, value in answer.items()}) for answer in answers]


def describe(found: Iterable[Finding]) -> list[str]:
    """Return one line for each finding, or one that there is none."""
    return [f"{one.place}: {one.cause}; {one.action}" for one in found] or ["nothing is wrong"]
