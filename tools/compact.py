"""ibpfs compact: merge slices and pack segments now."""

import json
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import command, complete_volume
from ibpfs_tools.exits import COMMAND, ExitWith
from ibpfs_tools.unlocking import Secrets, secret_options


@command("compact")
@click.argument("volume", shell_complete=complete_volume, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@secret_options
def compact(volume: str, as_json: bool, quiet: bool, secrets: Secrets) -> None:
    """Merge the slices of files that have too many, and pack half-empty and small segments together.

    DIR is a mount point or a volume. A mount does the same by itself, half an hour after a file was last written;
    this does it at once, in any file. It needs as many depots as the volume keeps copies.
    """
    result = ask(find_asked(volume), "compact", secrets, title="flushing", quiet=quiet)
    click.echo(json.dumps(result, indent=2) if as_json else f"{volume}: {describe(result)}")
    if result["damaged"]:
        raise ExitWith(f"{volume}: {_files(len(result['damaged']))} left as they were, bytes of them cannot be read:"
                       f" {result['damaged'][0]}; see fsck.ibpfs --data", COMMAND.failure)  # fmt: skip


def describe(result: dict[str, Any]) -> str:
    """Return what the owner told as a line for a person."""
    merged = "no file had too many slices"
    if result["files"]:
        merged = f"{result['slices_before']} slices of {_files(result['files'])} became {result['slices_after']}"
    return f"{merged}; {format_size(result['used_bytes'])} in {result['segments']} segments"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
