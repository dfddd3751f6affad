"""ibpfs snapshot: keep a volume's tree as it is now, read only; list and delete what was kept."""

import json
import time
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import CONTEXT, complete_volume, escaped, version_option
from ibpfs_tools.unlocking import Secrets, secret_options


@click.group("snapshot", context_settings=CONTEXT)
@version_option("ibpfs snapshot")
def snapshot() -> None:
    """Keep the whole tree of a volume as it is now; it is found in .snapshots.

    The root of a mount has a directory .snapshots, which no listing shows; below it each snapshot is a read-only tree.
    To restore something, copy it: `cp -a .snapshots/NAME/FILE .`
    """


@snapshot.command()
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@secret_options
def create(volume: str, name: str | None, as_json: bool, quiet: bool, secrets: Secrets) -> None:
    """Make a snapshot of VOLUME (a volume or a mount point).

    It holds everything that was written when it was asked for: that goes to the depots first. Without a NAME it is
    called by the time, in UTC.
    """
    made = ask(find_asked(volume), "snapshot-create", secrets, title="flushing", quiet=quiet, name=name)
    if as_json:
        click.echo(json.dumps(made, indent=2))
    elif not quiet:
        click.echo(f"{volume}: snapshot {escaped(made['name'])}, {made['files']} files")


@snapshot.command("list")
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def list_(volume: str, as_json: bool, secrets: Secrets) -> None:
    """List the snapshots of VOLUME, oldest first, with the bytes that deleting each alone would free."""
    found: list[dict[str, Any]] = ask(find_asked(volume), "snapshot-list", secrets)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        click.echo(describe(one))


@snapshot.command()
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.argument("name")
@secret_options
def delete(volume: str, name: str, secrets: Secrets) -> None:
    """Delete a snapshot; what only it kept is given back to the depots by and by."""
    ask(find_asked(volume), "snapshot-delete", secrets, name=name)


def describe(one: dict[str, Any]) -> str:
    """Return a line for a person."""
    name = escaped(one["name"])
    if one["trouble"]:
        return f"{name}  cannot be read: {one['trouble']}"
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["created_at"]))
    return f"{name}  {made}, {one['files']} files, {format_size(one['own_bytes'])} of its own"
