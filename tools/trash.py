"""ibpfs trash: what was deleted and can come back."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ibpfs.config import VolumePaths, format_size
from ibpfs.errors import UsageError
from ibpfs.quantities import parse_duration
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import CONTEXT, complete_volume, escaped, version_option
from ibpfs_tools.unlocking import Secrets, secret_options


@click.group("trash", context_settings=CONTEXT)
@version_option("ibpfs trash")
def trash() -> None:
    """What was deleted from a volume, and can come back.

    What had lived for ten minutes is kept for a week after it was deleted, or as long as `ibpfs trash keep` says; the
    oldest goes sooner when the depots are nearly full. What was overwritten, truncated or replaced is not in there:
    that is what snapshots are for.
    """


@trash.command("list")
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.option("--all", "every", is_flag=True, help="Also what is inside of deleted directories.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def list_(volume: str, every: bool, as_json: bool, secrets: Secrets) -> None:
    """List what was deleted, oldest first."""
    found = _listed(find_asked(volume), every, secrets)
    if as_json:
        click.echo(json.dumps(list(found), indent=2))
        return
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["deleted_at"]))
        size = "directory" if one["type"] == "directory" else format_size(one["size"])
        click.echo(f"{one['number']:>8}  {when}  {size:>10}  {escaped(one['path'])}")


def _listed(paths: VolumePaths, every: bool, secrets: Secrets) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    while after is not None:
        page = ask(paths, "trash-list", secrets, after=after, every=every)
        yield from page["names"]
        after = page["next"]


@trash.command()
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.argument("path", required=False)
@click.option("--number", type=int, help="The one with this number in the list, instead of the youngest of a path.")
@click.option("--to", metavar="PATH", help="Bring it back under this path.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@secret_options
def restore(
    volume: str, path: str | None, number: int | None, to: str | None, as_json: bool, quiet: bool, secrets: Secrets
) -> None:
    """Bring a file back, or a tree with all that is in it.

    PATH is the path it had, from the root of the volume, or where the volume is mounted. Directories above it come
    back, too, without what else was in them. A directory that is there gets back what was deleted from it. Nothing
    that is there now is replaced.
    """
    if (path is None) == (number is None):
        raise UsageError("name one thing to bring back: its PATH, or its --number")
    paths = find_asked(volume)
    done = ask(
        paths, "trash-restore", secrets, title="restoring", quiet=quiet, path=_inside(paths, path), number=number,
        to=_inside(paths, to),
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(done, indent=2))
    elif not quiet:
        click.echo(f"{volume}: {_names(done['restored'])} restored")


@trash.command()
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.option("--older-than", metavar="DURATION", help="Only what was deleted so long ago.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def empty(volume: str, older_than: str | None, as_json: bool, secrets: Secrets) -> None:
    """Delete what is in the trash for good."""
    older = None if older_than is None else parse_duration(older_than)
    done = ask(find_asked(volume), "trash-empty", secrets, older_than=older)
    click.echo(json.dumps(done, indent=2) if as_json else f"{volume}: {_names(done['names'])} deleted for good")


@trash.command()
@click.argument("volume", shell_complete=complete_volume, metavar="VOLUME|DIR")
@click.argument("duration", required=False)
@click.option("--lived", metavar="DURATION", help="Only what had lived for so long when it was deleted (10m).")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def keep(volume: str, duration: str | None, lived: str | None, as_json: bool, secrets: Secrets) -> None:
    """Say for how long deleted files are kept (7d, 12h, off), or ask.

    With `off` nothing is kept, and what is in the trash goes.
    """
    seconds = None
    if duration is not None:
        seconds = 0.0 if duration.lower() in ("0", "off", "none") else parse_duration(duration)
    age = None if lived is None else parse_duration(lived)
    done = ask(find_asked(volume), "trash-keep", secrets, seconds=seconds, lived=age)
    days = done["keep_seconds"] / 86400
    text = f"kept for {days:g} days" if days else "not kept"
    if days and done["lived_seconds"]:
        text += f", if they had lived for {done['lived_seconds'] / 60:g} minutes"
    click.echo(json.dumps(done, indent=2) if as_json else f"{volume}: deleted files are {text}")


def _inside(paths: VolumePaths, path: str | None) -> str | None:
    """A path from the root of the volume; one that leads to the mount point is cut there."""
    if path is None:
        return None
    place = mounts.absolute(path)
    entry = mounts.mount_holding(place)
    if entry is None or Path(entry.source) != paths.root:
        return path
    return f"/{place.relative_to(entry.mountpoint)}"


def _names(count: int) -> str:
    return "1 name is" if count == 1 else f"{count} names are"
