"""ibpfs repair: look at every copy of a volume's bytes, and replace what is not as it should be."""

import time
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs.quantities import parse_duration
from ibpfs_tools.asking import ask_without_keys, find_asked, tell
from ibpfs_tools.commands import command, complete_volume


@command("repair")
@click.argument("volume", shell_complete=complete_volume)
@click.option("--every", metavar="TIME", help="Only set within which time a mount (or ibpfs warm) verifies every copy"
              " in the background: 30d, or 'never'.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and nothing when all is well.")
def repair(volume: str, every: str | None, as_json: bool, quiet: bool) -> None:
    """Load every copy of the bytes of VOLUME (a volume or a mount point), compare it with its digest, make up copies.

    Needs no key, mounted or not. Exit code 1, and one line, when a copy could not be looked at or some are still
    lacking. fsck.ibpfs --data names the files, where bytes are left nowhere.
    """
    if every is not None:
        period = None if every == "never" else parse_duration(every)
        state = ask_without_keys(find_asked(volume), "scrub", period=period)
        tell(volume, state, progress_of(state, time.time()), "", as_json=as_json, quiet=quiet)
        return
    result = ask_without_keys(find_asked(volume), "repair", title="verifying copies", quiet=quiet or as_json)
    tell(volume, result, describe(result), trouble(result), as_json=as_json, quiet=quiet)


def progress_of(state: dict[str, Any], now: float) -> str:
    """Return how far the background's verifying of all copies is, as a line for a person."""
    period, since = state["period"], state["unverified_since"]
    if period is None:
        return "copies are not verified in the background"
    every = f"every copy within {format_period(period)}"
    if since is None:
        return f"{every}; nothing to verify yet"
    share = state["verified_bytes"] / max(1, state["total_bytes"])
    return f"{every}; {share:.0%} verified, the longest wait is {format_period(max(0.0, now - since))}"


def format_period(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds" if round(seconds) != 1 else "1 second"


def describe(result: dict[str, Any]) -> str:
    """Return what was found and done, as a line for a person."""
    made = f", {format_size(result['repaired_bytes'])} have all copies again" if result["repaired_bytes"] else ""
    return f"{result['sound']} sound replicas, {result['bad']} bad{made}"


def trouble(result: dict[str, Any]) -> str:
    """Return what stays wrong; nothing when nothing does."""
    found = []
    if result["not_verified"]:
        found.append(f"{result['not_verified']} replicas could not be looked at")
    if result["under_replicated_bytes"]:
        found.append(f"{format_size(result['under_replicated_bytes'])} lack copies")
    if result["at_risk_bytes"]:
        found.append(f"{format_size(result['at_risk_bytes'])} at risk")
    return ", ".join(found)
