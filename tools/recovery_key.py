"""ibpfs recovery-key: the recovery string, once more."""

import click

from ibpfs.errors import UsageError
from ibpfs.exnode_store.checkpoints.recovery_string import dump_shares, format_text
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import command, complete_volume
from ibpfs_tools.unlocking import Secrets, secret_options


@command("recovery-key")
@click.argument("volume", shell_complete=complete_volume)
@click.option("--shares", metavar="K/N", help="Print N shares instead, a line each, of which any K are needed.")
@secret_options
def recovery_key(volume: str, shares: str | None, secrets: Secrets) -> None:
    """Print the recovery string of VOLUME, as the last line, after a checkpoint to which it leads.

    With it alone `ibpfs recover` brings the volume back. Whoever has it can read all there is: keep it where others
    cannot.
    """
    wanted = _parse(shares) if shares else None
    data = bytes.fromhex(ask(find_asked(volume), "recovery-key", secrets)["bytes"])
    for one in dump_shares(data, *wanted) if wanted else [data]:
        click.echo(format_text(one))


def _parse(shares: str) -> tuple[int, int]:
    needed, slash, count = shares.partition("/")
    if not (slash and needed.isdecimal() and count.isdecimal()):
        raise UsageError(f"{shares}: shares are K/N, as in 2/3")
    dump_shares(b"", int(needed), int(count))  # before the volume is asked
    return int(needed), int(count)
