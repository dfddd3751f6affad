"""ibpfs repair: look at every copy of a volume's bytes, and replace what is not as it should be."""

from typing import Any

import click

from ibpfs.config import format_size
from ibpfs_tools.asking import ask_without_keys, find_asked, tell
from ibpfs_tools.commands import command


@command("repair")
@click.argument("volume")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and nothing when all is well.")
def repair(volume: str, as_json: bool, quiet: bool) -> None:
    """Load every copy of the bytes of VOLUME (a volume or a mount point), compare it with its digest, make up copies.

    Needs no key, mounted or not. Exit code 1, and one line, when a copy could not be looked at or some are still
    lacking. fsck.ibpfs --data names the files, where bytes are left nowhere.
    """
    result = ask_without_keys(find_asked(volume), "repair", title="verifying copies", quiet=quiet or as_json)
    tell(volume, result, describe(result), trouble(result), as_json=as_json, quiet=quiet)


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
