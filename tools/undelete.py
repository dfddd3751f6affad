"""`ibpfs-depot undelete`: allocations whose lease ended, while their grace time lasts."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ibpfs.depot.server.depot import operate
from ibpfs.depot.server.settings import DAY, DEFAULT_MAX_LEASE, Settings
from ibpfs.errors import UsageError
from ibpfs.quantities import parse_duration
from ibpfs_tools import exits
from ibpfs_tools.commands import command
from ibpfs_tools.depot_rules import parse_resource

EPILOG = """\b
Exit codes: 0 done, 1 not all of it, 2 wrong call.
"""


@command("ibpfs-depot undelete", epilog=EPILOG)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--store", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, metavar="DIR",
              help="Where the depot keeps its allocations.")
@click.option("--resource", "resources", multiple=True, metavar="DIR[=SIZE]",
              help="A further directory of a depot that does not run.")
@click.option("--for", "lease", default="30d", show_default=True, metavar="DURATION",
              help="The new lease, from now on; \"permanent\" for one without an end.")
@click.option("--grace", default="1d", show_default=True, metavar="DURATION",
              help="The grace time of a depot that does not run: what ended before is gone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def undelete(
    names: tuple[str, ...], store: Path, resources: tuple[str, ...], lease: str, grace: str, as_json: bool
) -> None:
    """Bring back allocations whose lease ended, or list them.

    Without NAME, list those that can still be brought back. Works while the depot runs and while it does not.
    """
    settings = Settings(
        store=store, resources=tuple(map(parse_resource, resources)), grace=parse_duration(grace) or DAY,
        max_lease=DEFAULT_MAX_LEASE,
    )  # fmt: skip
    if not names:
        _list(_asked(settings, {"do": "ended"})["ended"], as_json)
        return
    seconds = None if lease == "permanent" else parse_duration(lease)
    for name in names:
        said = _asked(settings, {"do": "undelete", "name": name, "seconds": seconds})["undeleted"]
        click.echo(json.dumps(said) if as_json else f"{said['name']}: {said['size']} bytes are leased again")


def _asked(settings: Settings, request: dict[str, Any]) -> dict[str, Any]:
    try:
        said = operate(settings, request)
    except OSError as error:
        raise UsageError(f"{settings.store}: the depot that runs there does not answer ({error.strerror})") from None
    if "error" in said:
        raise exits.ExitWith(said["error"], exits.COMMAND.failure)
    return said


def _list(ended: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(ended))
        return
    for one in ended:
        when, gone = (datetime.fromtimestamp(one[at], UTC).strftime("%F %T") for at in ("ended", "gone"))
        click.echo(f"{one['name']}  {one['size']:>15}  ended {when}  gone {gone} UTC")
