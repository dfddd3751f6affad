"""ibpfs stat: where the bytes of one file are."""

import json
import time
from pathlib import Path
from typing import Any

import click

from ibpfs.config import VolumePaths, format_size
from ibpfs.errors import VolumeError
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.unlocking import Secrets


@command("stat")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def stat(file: Path, as_json: bool) -> None:
    """Show the slices, segments and replicas of FILE on a mounted volume, with depots and lease ends."""
    place = mounts.absolute(str(file))
    entry = mounts.mount_holding(place) or mounts.mount_holding(place.resolve())
    if entry is None:
        raise VolumeError(f"{file}: is not on a mounted volume of ibpfs")
    paths = VolumePaths(Path(entry.source))
    found: dict[str, Any] = ask(paths, "stat", Secrets(), ino=file.lstat().st_ino)
    if as_json:
        click.echo(json.dumps({"path": str(file), **found}, indent=2))
        return
    for line in describe(str(file), found, time.time()):
        click.echo(line)


def describe(name: str, found: dict[str, Any], now: float) -> list[str]:
    """Return what the owner told as lines for a person."""
    waiting = f", {format_size(found['dirty_bytes'])} not on depots yet" if found["dirty_bytes"] else ""
    lines = [f"{name}: {format_size(found['size'])}, slices: {found['slices']}{waiting}"]
    for segment in found["segments"]:
        lines.append(f"  segment {segment['id']}, {format_size(segment['length'])}")
        for replica in segment["replicas"]:
            suspect = ", to be verified" if replica["suspect"] else ""
            lines.append(f"    {replica['depot']} allocation {replica['allocation']}, {_lease(replica, now)}{suspect}")
    return lines


def _lease(replica: dict[str, Any], now: float) -> str:
    end = replica["lease_end"]
    return "permanent" if end is None else f"leased for {(end - now) / 86400:.1f} days"
