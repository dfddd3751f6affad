"""ibpfs recovery-key: the recovery string, once more."""

import click

from ibpfs.exnode_store.checkpoints.recovery_string import format_text
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import command
from ibpfs_tools.unlocking import Secrets, secret_options


@command("recovery-key")
@click.argument("volume")
@secret_options
def recovery_key(volume: str, secrets: Secrets) -> None:
    """Print the recovery string of VOLUME, as the last line, after a checkpoint to which it leads.

    With it alone `ibpfs recover` brings the volume back. Whoever has it can read all there is: keep it where others
    cannot.
    """
    data = bytes.fromhex(ask(find_asked(volume), "recovery-key", secrets)["bytes"])
    click.echo(format_text(data))
