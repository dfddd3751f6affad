"""ibpfs recover: a volume back from its depots alone."""

import sys
import time
from functools import partial
from pathlib import Path

import click

from ibpfs.config import Secret, VolumePaths, find_volume, read_key_file
from ibpfs.errors import UsageError
from ibpfs.quantities import format_size
from ibpfs_tools.commands import command, read_passphrase_file
from ibpfs_tools.logs import start_logging
from ibpfs_tools.progress import no_progress

_LONGEST = 1 << 20


@command("recover")
@click.argument("newvolume")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="FILE",
    help="Take the recovery string from FILE ('-': standard input); shares of one from a file with a line for each, or "
    "from several.",
)
@click.option(
    "--passphrase-file",
    metavar="FILE",
    help="Protect the keys by the passphrase in the first line of FILE instead of a new key file.",
)
def recover(newvolume: str, sources: tuple[str, ...], passphrase_file: str | None) -> None:
    """Bring a volume back, from its recovery string, as it was at its last checkpoint.

    NEWVOLUME is made; it may hold nothing, or the directory `depot` of a volume with a depot of its own. The string is
    read from a file, standard input or a prompt. What only the lost machine's spool held is listed.
    """
    import trio

    from ibpfs.exnode_store.checkpoints.rebuilding import rebuild
    from ibpfs.exnode_store.checkpoints.recovery_string import parse_recovery

    paths = find_volume(newvolume, create=True)
    recovery = parse_recovery("\n".join(map(_read, sources or [None])))
    passphrase = read_passphrase_file(passphrase_file) if passphrase_file else None
    found = trio.run(partial(rebuild, paths, recovery, passphrase))
    for note in found.notes:
        click.echo(f"ibpfs: {note}", err=True)
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.commit.at))
    click.echo(f"{paths.root}: {found.commit.files} files as they were at {taken}; what was changed later is lost")
    for name, size in found.lost:
        click.echo(f"{name}: {format_size(size)} that were on no depot yet are lost")
    _take_over(paths, passphrase)
    click.echo(f"the recovery string stays valid; mount it with: mount.ibpfs {newvolume} DIRECTORY")


def _read(source: str | None) -> str:
    if source is None:
        if not sys.stdin.isatty():
            raise UsageError("give the recovery string with --from FILE, or --from - for standard input")
        answer: str = click.prompt("Recovery string", hide_input=True, err=True)
        return answer
    try:
        if source == "-":
            return sys.stdin.read(_LONGEST)
        with Path(source).open(encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST)
    except OSError as error:
        raise UsageError(f"{source}: cannot read the recovery string ({error.strerror})") from None


def _take_over(paths: VolumePaths, passphrase: bytes | None) -> None:
    """The first checkpoint of the new owner: an old one that comes back sees that it is not the owner any more."""
    import trio

    from ibpfs.mount import run_command

    start_logging(paths)
    secret = Secret("passphrase", passphrase) if passphrase is not None else read_key_file(paths.key)
    trouble = trio.run(run_command, paths, secret, "checkpoint", {}, no_progress)["trouble"]
    if trouble:
        click.echo(f"ibpfs: {paths.root}: no checkpoint of its own yet: {trouble}", err=True)
