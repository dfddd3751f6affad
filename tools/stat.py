"""ibpfs stat: where the bytes of one file are."""

import json
import time
from pathlib import Path
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.mounts import volume_holding
from ibpfs_tools.unlocking import Secrets


@command("stat")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def stat(file: Path, as_json: bool) -> None:
    """Show the slices, segments and replicas of FILE on a mounted volume, with depots and lease ends."""
    found: dict[str, Any] = ask(volume_holding(file), "stat", Secrets(), ino=file.lstat().st_ino)
    if as_json:
        click.echo(json.dumps({"path": str(file), **found}, indent=2))
        return
    for line in describe(str(file), found, time.time()):
        click.echo(line)


def describe(name: str, found: dict[str, Any], now: float) -> list[str]:
    """Return what the owner told as lines for a person."""
    waiting = f", {format_size(found['dirty_bytes'])} not on depots yet" if found["dirty_bytes"] else ""
    lines = [f"{name}: {format_size(found['size'])}, slices: {found['slices']}{waiting}"]
    lines += _imported(found.get("imported"))
    for segment in found["segments"]:
        code = f", as {segment['code']} shards" if segment.get("code") else ""
        lines.append(f"  segment {segment['id']}, {format_size(segment['length'])}{code}")
        for replica in segment["replicas"]:
            suspect = ", to be verified" if replica["suspect"] else ""
            shard = "" if replica.get("shard") is None else f"shard {replica['shard']}: "
            place = f"{shard}{replica['depot']} allocation {replica['allocation']}"
            lines.append(f"    {place}, {_lease(replica, now)}{suspect}")
    return lines


def _imported(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = [f"  imported, in {found['allocations']} allocations of others; deleting the file "
             + ("releases them" if found["owned"] else "leaves them")]  # fmt: skip
    if found["unverified_slices"]:
        lines.append(f"  {found['unverified_slices']} slices are neither sealed nor verified")
    if found["not_renewable"]:
        lines.append(f"  {found['not_renewable']} allocations cannot be renewed: no manage capability")
    return lines


def _lease(replica: dict[str, Any], now: float) -> str:
    end = replica["lease_end"]
    return "permanent" if end is None else f"leased for {(end - now) / 86400:.1f} days"
