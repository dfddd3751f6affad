"""ibpfs policy: how many copies a directory's files have, and where."""

import json
from typing import Any

import click

from ibpfs.config import VolumePaths
from ibpfs.errors import UsageError
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask_without_keys, find_asked
from ibpfs_tools.commands import CONTEXT, complete_volume, version_option
from ibpfs_tools.exits import COMMAND, ExitWith


@click.group("policy", context_settings=CONTEXT)
@version_option("ibpfs policy")
def policy() -> None:
    """What a directory asks of the depots for the files that are made in it: copies, and where they lie.

    DIR is a directory on a mounted volume, or a volume: its root directory. A new directory has the policy of the one
    it is made in.
    """


@policy.command()
@click.argument("directory", shell_complete=complete_volume, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def show(directory: str, as_json: bool) -> None:
    """Show the policy of DIR; of a file as well."""
    paths, inode = _find(directory)
    found = ask_without_keys(paths, "policy", **inode)
    click.echo(json.dumps(found, indent=2) if as_json else f"{directory}: {describe(found)}")


@policy.command("set")
@click.argument("directory", shell_complete=complete_volume, metavar="DIR")
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("-R", "--recursive", is_flag=True, help="All that is in DIR, too, and what is stored of it.")
def set_(directory: str, settings: tuple[str, ...], recursive: bool) -> None:
    """Change the policy of DIR. Needs no key.

    \b
    copies=N        how many depots hold each byte
    min-copies=M    how many must have it before fsync returns; without it, one
                    less than copies, at least 1
    labels=A,B      copies lie on depots that differ in these labels (see
                    ibpfs depots label), as far as there are enough; empty: none
    code=K+M        what is large is stored as K+M shards on as many depots, any K
                    of which give it back, once it is written; none: as copies

    It is for what is made in DIR from now on. With --recursive, files and directories that are there take it, and what
    is stored is brought under it: copies are made, moved and given up. That goes on in a mount, with ibpfs warm, or
    when it is asked for again.
    """
    paths, inode = _find(directory)
    title = "changing the policy"
    found = ask_without_keys(paths, "policy-set", title=title, settings=_parse(settings), recursive=recursive, **inode)
    click.echo(f"{directory}: {describe(found)}")
    if found.get("unknown_labels"):
        click.echo(f"ibpfs: no depot has a label {' or '.join(found['unknown_labels'])}: that keeps no copies apart"
                   " (see ibpfs depots label)", err=True)  # fmt: skip
    if not found["settled"]:
        raise ExitWith(f"{directory}: not all that is stored is under its policy yet, for want of depots that answer,"
                       " or of room (see ibpfs depots, and the log)", COMMAND.failure)  # fmt: skip


def describe(found: dict[str, Any]) -> str:
    """Return a policy as a line for a person."""
    copies = "1 copy" if found["copies"] == 1 else f"{found['copies']} copies"
    apart = f", on depots that differ in {', '.join(found['labels'])}" if found["labels"] else ""
    code = f"; what is large as {found['code']} shards" if found.get("code") else ""
    return f"{copies}{apart}; {found['min_copies']} before fsync returns{code}"


def _find(word: str) -> tuple[VolumePaths, dict[str, Any]]:
    place = mounts.absolute(word)
    if mounts.mount_holding(place) is None:
        return find_asked(word), {}
    return mounts.volume_holding(place), {"ino": place.lstat().st_ino}


def _parse(words: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word}: a setting is KEY=VALUE, such as copies=3")
        settings[key] = value
    return settings
