"""`ibpfs-depot stat`: what a depot has leased, and what it has done since it started."""

import json
from pathlib import Path
from typing import Any

import click

from ibpfs.depot.server.depot import operate
from ibpfs.depot.server.settings import Settings
from ibpfs.errors import UsageError
from ibpfs.quantities import format_size
from ibpfs_tools import exits
from ibpfs_tools.commands import command
from ibpfs_tools.depot_rules import parse_resource

SIZES = ("capacity", "allocated", "volatile", "stored", "free")
EPILOG = """\b
Exit codes: 0 done, 1 not done, 2 wrong call.
"""


@command("ibpfs-depot stat", epilog=EPILOG)
@click.option("--store", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, metavar="DIR",
              help="Where the depot keeps its allocations.")
@click.option("--resource", "resources", multiple=True, metavar="DIR[=SIZE]",
              help="A further directory of a depot that does not run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stat(store: Path, resources: tuple[str, ...], as_json: bool) -> None:
    """Show what a depot has leased, and what it has done since it started.

    Works while the depot runs and while it does not; then there is nothing about connections and commands.
    """
    settings = Settings(store=store, resources=tuple(map(parse_resource, resources)))
    try:
        said = operate(settings, {"do": "stat"})
    except OSError as error:
        raise UsageError(f"{store}: the depot that runs there does not answer ({error.strerror})") from None
    if "stat" not in said:
        raise exits.ExitWith(f"{store}: {said.get('error', 'the depot there does not say')}", exits.COMMAND.failure)
    if as_json:
        click.echo(json.dumps(said["stat"]))
        return
    for line in _lines(said["stat"]):
        click.echo(line)


def _lines(numbers: dict[str, Any]) -> list[str]:
    lines = [f"ibpfs-depot {numbers['version']}, {'running' if numbers['running'] else 'not running'}"]
    for one in numbers["resources"]:
        lines.append(f"resource {one['resource']}  {one['directory']}")
        sizes = ((name, format_size(one[f"{name}_bytes"])) for name in SIZES)
        lines += [f"  {name:<12}{size:>12}" for name, size in sizes]
        lines.append(f"  {'allocations':<12}{one['allocations']:>12}")
        if numbers["running"]:
            made = f"made {one['allocated']}, leases ended {one['leases_ended']}, revoked {one['revocations']}"
            lines.append(f"  since the start: {made}")
    return lines + _of_process(numbers) if numbers["running"] else lines


def _of_process(numbers: dict[str, Any]) -> list[str]:
    turned_away = [
        f"{what} ({reason}) {count}" for what in ("refused", "dismissed") for reason, count in numbers[what].items()
    ]
    connections = [f"{numbers['connections']} open", f"{numbers['accepted']} accepted", *turned_away]
    syncs, mean = numbers["syncs"], 1000 * numbers["sync_seconds"] / max(1, numbers["syncs"])
    lines = [
        f"connections   {', '.join(connections)}",
        f"bytes         {format_size(numbers['received_bytes'])} in, {format_size(numbers['sent_bytes'])} out",
        f"syncs         {syncs}, {mean:.1f} ms each",
        f"tasks         {numbers['tasks']}",
    ]
    for name, results in numbers["commands"].items():
        lines.append(f"  {name:<20}" + "  ".join(f"{result} {count}" for result, count in results.items()))
    return lines
