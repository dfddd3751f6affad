"""ibpfs flush: wait until everything is on the depots."""

import click

from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import command, complete_volume
from ibpfs_tools.ibpfs import tell_note
from ibpfs_tools.unlocking import Secrets, secret_options


@command("flush")
@click.argument("volume", shell_complete=complete_volume, metavar="DIR")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@secret_options
def flush(volume: str, quiet: bool, secrets: Secrets) -> None:
    """Return when everything written to DIR (a mount point or a volume) is on the depots.

    Waits up to 30 s more for all copies, and says what still lacks some.
    """
    result = ask(find_asked(volume), "flush", secrets, title="flushing", quiet=quiet)
    tell_note(volume, result)
