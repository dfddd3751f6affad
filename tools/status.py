"""ibpfs status: how a volume is doing."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

from ibpfs import __version__
from ibpfs.config import VolumePaths, format_size
from ibpfs.errors import IbpfsError
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import command, complete_volume
from ibpfs_tools.exits import COMMAND, each, explain
from ibpfs_tools.repair import format_period, progress_of
from ibpfs_tools.unlocking import Secrets, secret_options


@command("status")
@click.argument("volume", shell_complete=complete_volume, required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def status(volume: str | None, as_json: bool, secrets: Secrets) -> None:
    """Show how VOLUME (a volume or a mount point) is doing; without it, all that are mounted.

    Exit code 0; with --json one object, keys as in docs/operating.md, or a list of them without VOLUME. There an object
    with `volume` and `error` stands for one that did not answer; exit code 1.
    """
    if volume is not None:
        _show(_of(find_asked(volume), secrets), as_json)
        return
    places = [VolumePaths(root) for root in dict.fromkeys(mounts.sources())]
    if as_json:
        _list(places, secrets)
        return
    if not places:
        click.echo("no volume of yours is mounted; see mount.ibpfs --help")
    each(places, lambda paths: str(paths.root), lambda paths: _show(_of(paths, secrets), as_json), COMMAND)


def _list(places: Sequence[VolumePaths], secrets: Secrets) -> None:
    found: list[dict[str, Any]] = []

    def add(paths: VolumePaths) -> None:
        try:
            found.append(_of(paths, secrets))
        except (IbpfsError, OSError) as error:
            found.append({"volume": str(paths.root), "error": explain(error, COMMAND)[0]})
            raise

    try:
        each(places, lambda paths: str(paths.root), add, COMMAND)
    finally:
        click.echo(json.dumps(found, indent=2))


def _of(paths: VolumePaths, secrets: Secrets) -> dict[str, Any]:
    found: dict[str, Any] = ask(paths, "status", secrets)
    if found["pid"] == os.getpid():  # nobody had it mounted: we were the owner for a moment
        found |= {"pid": None, "pids": []}
    return found


def _show(found: dict[str, Any], as_json: bool) -> None:
    lines = [json.dumps(found, indent=2)] if as_json else describe(found, time.time(), __version__)
    click.echo("\n".join(lines))


def describe(found: dict[str, Any], now: float, installed: str) -> list[str]:
    """Return the status as lines for a person."""
    where = "not mounted"
    if found["mountpoint"]:
        where = f"mounted on {found['mountpoint']} (process {found['pid']})"
    elif found["pid"]:
        where = f"unmounted, process {found['pid']} uploads the rest"
    lines = [
        f"{found['volume']}: {where}",
        f"  files           {found['files']}, {format_size(found['used_bytes'])}{_segments(found)}",
        f"  to be uploaded  {_waiting(found)}",
        f"  lacking copies  {_lacking(found)}",
        f"  leases          {_lease(found['earliest_lease_end'], now)}{_survival(found.get('survives_until'), now)}",
    ]
    if found.get("coded_bytes") or found.get("code_trouble"):
        lines.append(f"  shards          {_shards(found)}")
    if "scrub" in found:
        lines.append(f"  scrub           {progress_of(found['scrub'], now)}")
    if found.get("shares_hold_until") is not None:
        lines.append(f"  links           {_hold(found['shares_hold_until'], now)}")
    lines += [
        f"  depot {depot['id']:<9} {depot['state']}, {depot['address']}, {_free(depot['free_bytes'])}"
        for depot in found["depots"]
    ]
    lines += [f"  checkpoint      {line}" for line in _checkpoint(found, now)]
    if found.get("trouble"):
        lines.append(f"  trouble         {found['trouble']}")
    running = found.get("version", installed)
    if running != installed:
        lines.append(f"  version         {running} is running, {installed} is installed: unmount and mount again")
    return lines


def _checkpoint(found: dict[str, Any], now: float) -> list[str]:
    """When the names went to the depots last, and what is to be done about it."""
    if "checkpoint_at" not in found:  # an older process does not say
        return []
    at, behind = found["checkpoint_at"], found["checkpoint_behind"]
    text = "none yet" if at is None else f"{max(0.0, now - at):.0f} s ago"
    text += ", holds everything" if at is not None and behind == 0 else ""
    if found["checkpoint_trouble"]:
        text += f": {found['checkpoint_trouble']}"
    return [text, found["recovery_advice"]] if found["recovery_advice"] else [text]


def _segments(found: dict[str, Any]) -> str:
    return f" in {found['segments']} segments" if "segments" in found else ""  # an older process does not say


def _waiting(found: dict[str, Any]) -> str:
    if not found["dirty_bytes"]:
        return "nothing, all is on the depots"
    return f"{format_size(found['dirty_bytes'])}; the spool has {format_size(found['spool_bytes'])}"


def _lacking(found: dict[str, Any]) -> str:
    retained = found.get("retained_bytes", 0)
    at_risk = found.get("at_risk_bytes", 0)
    text = format_size(found["under_replicated_bytes"])
    text += f"; {format_size(at_risk)} at risk: no copy to spare" if at_risk else ""
    return f"{text}; {format_size(retained)} of the files are also kept in the spool until then" if retained else text


def _shards(found: dict[str, Any]) -> str:
    text = f"{format_size(found['coded_bytes'])} are stored as shards"
    trouble = found["code_trouble"]
    return f"{text}; what is to be so, too, stays in whole copies: {trouble}" if trouble else text


def _lease(end: float | None, now: float) -> str:
    if end is None:
        return "permanent"
    period = format_period(abs(end - now))
    return f"the first ends in {period}" if end >= now else f"the first ended {period} ago"


def _hold(end: float, now: float) -> str:
    if end <= now:
        return "some do not hold any more"
    return f"with this machine off, all hold for {format_period(end - now)}"


def _survival(end: float | None, now: float) -> str:
    """Until when the volume is whole with this machine off."""
    if end is None:
        return ""
    if end <= now:
        return "; some bytes are not kept any more"
    return f"; with this machine off, all is kept for {format_period(end - now)}"


def _free(size: int | None) -> str:
    return "free space not known" if size is None else f"{format_size(size)} free"
