"""`ibpfs-depot`: the command line of the bundled depot."""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import click
import trio

from ibpfs.depot.server.depot import DEFAULT_PORT, StoreLocked, run
from ibpfs.depot.server.settings import DEFAULT_MAX_LEASE, Settings
from ibpfs.depot.server.supervisor import inherited_sockets
from ibpfs.errors import UsageError
from ibpfs.process import calm_collector
from ibpfs_tools import depot_config, exits
from ibpfs_tools.commands import command
from ibpfs_tools.depot_limits import limits
from ibpfs_tools.depot_logs import FORMATS, start_logging
from ibpfs_tools.depot_rules import RULES, rules, rules_from
from ibpfs_tools.depot_stat import stat
from ibpfs_tools.depot_types import DURATION, SIZE, Place
from ibpfs_tools.depot_units import units
from ibpfs_tools.undelete import undelete

EXIT_STORE_LOCKED = 3
NO_SETTINGS = ("config", "log_format", "verbose")  # of the depot, but of this process
SWITCH_INTERVAL = 0.0005  # a sync thread that is done must not wait 5 ms for the interpreter


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
@click.option("--tls/--no-tls", default=True, show_default=True,
              help="Also speak TLS on the TCP port, with a certificate that is made and kept in the store.")
@click.option("--exit-when-unused", type=click.FloatRange(min=0), metavar="SECONDS",
              help="End when nobody has been connected for so long.")
@click.option("--metrics", type=Place(), metavar="HOST:PORT",
              help="Serve metrics for Prometheus there.  [default: nowhere]")
@limits
@rules
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", is_eager=True,
              callback=depot_config.use,
              help="Settings in TOML, with the names of these options; what the command line says goes first. SIGHUP "
                   "has them read again.")
@click.option("--log-format", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True,
              help="Of the lines on standard error.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def depot(**options: Any) -> None:
    """Lease disk space to anyone who speaks IBP.

    Prints one line with its address when it is ready. Ends on SIGTERM or SIGINT.

    "ibpfs-depot stat" shows a depot in numbers, "ibpfs-depot undelete" lists allocations whose lease ended and brings
    them back, "ibpfs-depot units" prints units for systemd: see their --help.
    """
    inherited = inherited_sockets()
    settings = settings_from(options, inherited)
    _prepare_process()
    start_logging(options["log_format"], verbose=options["verbose"])
    try:
        trio.run(run, settings, _announce, lambda: _reread(inherited), restrict_keyboard_interrupt_to_checkpoints=True)
    except StoreLocked as error:
        raise exits.ExitWith(str(error), EXIT_STORE_LOCKED) from None


def settings_from(options: dict[str, Any], inherited: tuple[int, ...] = ()) -> Settings:
    """What the command line and the configuration file add up to."""
    given = {name: value for name, value in options.items() if name not in (*RULES, *NO_SETTINGS)}
    unix, max_lease, permanent = given["unix"], given["max_lease"], given["permanent"]
    if permanent is None:
        permanent = unix is not None and max_lease is None
    if max_lease is None and not permanent:
        max_lease = DEFAULT_MAX_LEASE
    somewhere = unix or inherited
    return Settings(**given | {
        "store": given["store"] or _default_store(),
        "listen": given["listen"] or (() if somewhere else (("127.0.0.1", DEFAULT_PORT),)),
        "unix": unix.absolute() if unix else None,
        "max_lease": max_lease,
        "permanent": permanent,
        "inherited": inherited,
        **rules_from(options),
    })  # fmt: skip


def _reread(inherited: tuple[int, ...]) -> Settings:
    """The command line, and the configuration file as it is now."""
    try:
        options = depot.make_context("ibpfs-depot", sys.argv[1:]).params
    except click.ClickException as error:
        raise UsageError(error.format_message()) from None
    settings = settings_from(options, inherited)
    start_logging(options["log_format"], verbose=options["verbose"])
    return settings


def _announce(address: str) -> None:
    try:
        print(f"ibpfs-depot: ready {address}", flush=True)
    except BrokenPipeError:  # whoever started us does not listen; the address is in the store, too
        sys.stdout = None


def _default_store() -> Path:
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "ibpfs-depot"


def _prepare_process() -> None:
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_INTERVAL)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    calm_collector()


VERBS = {"stat": stat, "undelete": undelete, "units": units}


def main() -> None:
    if (verb := VERBS.get("".join(sys.argv[1:2]))) is not None:
        exits.run(verb, exits.COMMAND, sys.argv[2:])
    exits.run(depot, exits.COMMAND)


if __name__ == "__main__":
    main()
