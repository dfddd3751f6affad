"""`ibpfs-depot`: the command line of the bundled depot."""

import logging
import os
import re
import resource
import sys
from pathlib import Path

import click
import trio

from ibpfs import __version__
from ibpfs.depot.server.depot import DEFAULT_PORT, StoreLocked, run
from ibpfs.depot.server.settings import DAY, DEFAULT_MAX_LEASE, Settings
from ibpfs.errors import IbpfsError

EXIT_FAILED = 1
EXIT_STORE_LOCKED = 3
SWITCH_INTERVAL = 0.0005  # a sync thread that is done must not wait 5 ms for the interpreter

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": DAY, "W": 7 * DAY, "Y": 365 * DAY}


class Quantity(click.ParamType[int]):
    """A number with a unit."""

    def __init__(self, name: str, units: dict[str, int], tail: str) -> None:
        self.name = name
        self._units = units
        self._pattern = re.compile(rf"(\d{{1,15}}(?:\.\d{{1,6}})?)\s*([A-Z]?){tail}")

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = self._pattern.fullmatch(str(value).strip().upper())
        if found is None or found[2] not in self._units:
            self.fail(f"{value!r} is not a {self.name}", param, ctx)
        return int(float(found[1]) * self._units[found[2]])


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


SIZE = Quantity("SIZE", _UNITS, "(?:I?B)?")
DURATION = Quantity("DURATION", _SECONDS, "")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--exit-when-unused", type=click.FloatRange(min=0), metavar="SECONDS",
              help="End when nobody has been connected for so long.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.version_option(__version__, prog_name="ibpfs-depot")
def main(
    listen: tuple[tuple[str, int], ...], unix: Path | None, public: tuple[str, int] | None, store: Path | None,
    capacity: int | None, max_lease: int | None, permanent: bool | None, grace: int,
    max_connections: int, idle_timeout: float, exit_when_unused: float | None, verbose: bool,
) -> None:  # fmt: skip
    """Lease disk space to anyone who speaks IBP.

    Prints one line with its address when it is ready. Ends on SIGTERM or SIGINT.
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
        max_connections=max_connections, idle_timeout=idle_timeout, exit_when_unused=exit_when_unused,
    )  # fmt: skip
    _prepare_process(verbose)
    sys.exit(_run(settings))


def _run(settings: Settings) -> int:
    try:
        trio.run(run, settings, _announce, restrict_keyboard_interrupt_to_checkpoints=True)
    except StoreLocked as error:
        return _complain(error, EXIT_STORE_LOCKED)
    except (IbpfsError, OSError) as error:
        return _complain(error, EXIT_FAILED)
    return 0


def _announce(address: str) -> None:
    try:
        print(f"ibpfs-depot: ready {address}", flush=True)
    except BrokenPipeError:  # whoever started us does not listen; the address is in the store, too
        sys.stdout = None


def _complain(error: Exception, code: int) -> int:
    print(f"ibpfs-depot: {error}", file=sys.stderr)
    return code


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


if __name__ == "__main__":
    main()
