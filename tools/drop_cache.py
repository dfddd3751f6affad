"""ibpfs drop-cache: make every later read come from a depot."""

import click

from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import command, complete_volume
from ibpfs_tools.unlocking import Secrets, secret_options


@command("drop-cache")
@click.argument("volume", shell_complete=complete_volume, metavar="DIR")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@secret_options
def drop_cache(volume: str, quiet: bool, secrets: Secrets) -> None:
    """Flush DIR (a mount point or a volume), then empty its local cache and the kernel's caches of the mount."""
    ask(find_asked(volume), "drop-cache", secrets, title="flushing", quiet=quiet)
