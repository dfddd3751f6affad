"""`ibpfs-depot`: the command line of the bundled depot."""

import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio

from ibpfs.depot.server.depot import DEFAULT_PORT, StoreLocked, run
from ibpfs.depot.server.settings import DEFAULT_MAX_LEASE, Settings
from ibpfs.errors import UsageError
from ibpfs.quantities import parse_duration, parse_size
from ibpfs_tools import exits
from ibpfs_tools.commands import command
from ibpfs_tools.depot_rules import rules, rules_from
from ibpfs_tools.undelete import undelete

EXIT_STORE_LOCKED = 3
SWITCH_INTERVAL = 0.0005  # a sync thread that is done must not wait 5 ms for the interpreter


class Quantity(click.ParamType[int]):
    """A number with a unit, as `parse` reads it."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(self._parse(str(value)))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Place(click.ParamType[tuple[str, int]]):
    """HOST:PORT, an IPv6 host in brackets."""

    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        host, colon, port = str(value).rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return host.strip("[]"), int(port)


SIZE, DURATION = Quantity("SIZE", parse_size), Quantity("DURATION", parse_duration)

EPILOG = """\b
Exit codes: 0 ended as asked, 1 could not start or went wrong, 2 wrong call, 3 another depot uses the store.
"""


@command("ibpfs-depot", epilog=EPILOG)
@click.option("--listen", type=Place(), multiple=True, metavar="HOST:PORT",
              help=f"Listen here; may be given several times. Port 0: the port of the last start, kept in "
                   f"STORE/address.  [default: 127.0.0.1:{DEFAULT_PORT}, none with --unix]")
@click.option("--unix", type=click.Path(path_type=Path), metavar="PATH",
              help="Listen on a Unix socket, for this user only.")
@click.option("--public", type=Place(), metavar="HOST:PORT",
              help="The address that capabilities name, where it is not the one listened on.")
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Where allocations are kept.  [default: ~/.local/share/ibpfs-depot]")
@click.option("--capacity", type=SIZE, metavar="SIZE",
              help="How much may be allocated, as 500G.  [default: 90 % of the free disk]")
@click.option("--max-lease", type=DURATION, metavar="DURATION",
              help="The longest lease, as 12h or 30d.  [default: 30d; no limit with --permanent]")
@click.option("--permanent/--no-permanent", default=None,
              help="Whether leases may have no end.  [default: only with --unix and without --max-lease]")
@click.option("--grace", type=DURATION, default="1d", show_default=True, metavar="DURATION",
              help="How long an ended allocation can still be renewed.")
@click.option("--max-connections", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--idle-timeout", type=click.FloatRange(min=0, min_open=True), default=120, show_default=True,
              metavar="SECONDS", help="Close TCP connections that are idle, or stuck, for so long.")
@click.option("--tls/--no-tls", default=True, show_default=True,
              help="Also speak TLS on the TCP port, with a certificate that is made and kept in the store.")
@click.option("--exit-when-unused", type=click.FloatRange(min=0), metavar="SECONDS",
              help="End when nobody has been connected for so long.")
@rules
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def depot(
    listen: tuple[tuple[str, int], ...], unix: Path | None, public: tuple[str, int] | None, store: Path | None,
    capacity: int | None, max_lease: int | None, permanent: bool | None, grace: int,
    max_connections: int, idle_timeout: float, tls: bool, exit_when_unused: float | None, verbose: bool,
    **lists: Any,
) -> None:  # fmt: skip
    """Lease disk space to anyone who speaks IBP.

    Prints one line with its address when it is ready. Ends on SIGTERM or SIGINT.

    "ibpfs-depot undelete" lists allocations whose lease ended, and brings them back: see its --help.
    """
    if permanent is None:
        permanent = unix is not None and max_lease is None
    if max_lease is None and not permanent:
        max_lease = DEFAULT_MAX_LEASE
    settings = Settings(
        store=store or _default_store(),
        listen=listen or (() if unix else (("127.0.0.1", DEFAULT_PORT),)),
        unix=unix.absolute() if unix else None,
        public=public, capacity=capacity, max_lease=max_lease, permanent=permanent, grace=grace,
        max_connections=max_connections, idle_timeout=idle_timeout, tls=tls, exit_when_unused=exit_when_unused,
        **rules_from(**lists),
    )  # fmt: skip
    _prepare_process(verbose)
    try:
        trio.run(run, settings, _announce, restrict_keyboard_interrupt_to_checkpoints=True)
    except StoreLocked as error:
        raise exits.ExitWith(str(error), EXIT_STORE_LOCKED) from None


def _announce(address: str) -> None:
    try:
        print(f"ibpfs-depot: ready {address}", flush=True)
    except BrokenPipeError:  # whoever started us does not listen; the address is in the store, too
        sys.stdout = None


def _default_store() -> Path:
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "ibpfs-depot"


def _prepare_process(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_INTERVAL)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    if sys.argv[1:2] == ["undelete"]:
        exits.run(undelete, exits.COMMAND, sys.argv[2:])
    exits.run(depot, exits.COMMAND)


if __name__ == "__main__":
    main()
