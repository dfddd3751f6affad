"""ibpfs warm: keep a volume's bytes alive, whether it is mounted or not."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs.errors import UsageError
from ibpfs_tools.asking import ask_without_keys, find_asked, tell
from ibpfs_tools.commands import command, complete_volume, give_units
from ibpfs_tools.progress import progress_bar
from ibpfs_tools.repair import format_period

EPILOG = """\b
A timer for volumes that are not always mounted, as the user whose volumes they are:
  ibpfs warm --units --directory ~/.config/systemd/user
  systemctl --user daemon-reload
  systemctl --user enable --now ibpfs-warm@$(systemd-escape --path VOLUME).timer
  loginctl enable-linger                  (for the time without a session)
or, for volumes of root, in /etc/systemd/system and without --user. VOLUME is a path here. On a machine that has only
a warm capability the timer is ibpfs-warm-with@$(systemd-escape --path FILE).timer.
"""

SERVICE = """\
[Unit]
Description=Renew leases and make up copies of {what} %f
Documentation=man:ibpfs(1)
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={program} warm --quiet {option}%f
UMask=0077
Nice=10
IOSchedulingClass=idle
NoNewPrivileges=yes
"""

TIMER = """\
[Unit]
Description=Keep {what} %f alive
Documentation=man:ibpfs(1)

[Timer]
OnCalendar={calendar}
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
"""


#: By the name of the units: what they say that they keep alive, and how `ibpfs warm` is told which it is.
_UNITS = {
    "ibpfs-warm@": ("the ibpfs volume", ""),
    "ibpfs-warm-with@": ("what is in the ibpfs warm capability", "--with "),
}


@command("warm", epilog=EPILOG)
@click.argument("volume", shell_complete=complete_volume, required=False)
@click.option("--all", "every", is_flag=True, help="Renew every lease, not only those that have run half their time.")
@click.option("--with", "capability", type=click.Path(path_type=Path), metavar="FILE",
              help="Instead of a VOLUME: one of which there is only this warm capability here (see ibpfs warm-cap).")
@click.option("--merge", type=click.Path(path_type=Path), metavar="FILE",
              help="Take the copies home that another machine made with this warm capability, and write it anew.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and nothing when all is well.")
@click.option("--units", is_flag=True,
              help="Print services and timers for systemd, for any volume and any warm capability.")
@click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="With --units: write them there, as ibpfs-warm@ and ibpfs-warm-with@, .service and .timer.")
@click.option("--calendar", default="hourly", show_default=True, metavar="WHEN",
              help="With --units: when, as systemd.time(7) has it. Well before half of the shortest lease.")
def warm(
    volume: str | None, every: bool, capability: Path | None, merge: Path | None, as_json: bool, quiet: bool,
    units: bool, directory: Path | None, calendar: str,
) -> None:
    """Renew the leases of VOLUME (a volume or a mount point) that are due, make up copies, release what was deleted.

    Needs no key. What a depot's bytes are suspected of is looked into first. A mounted volume is asked to do it, and
    does the same by itself. Exit code 1, and one line, when a lease could not be renewed or bytes stay at risk.
    """
    if units:
        _give_units(directory, calendar)
        return
    if (volume is None) == (capability is None) or (capability and merge):
        raise UsageError("which volume? (see --help)")
    if capability is not None:
        result = _warm_with(capability.absolute(), every, quiet or as_json)
        tell(str(capability), result, describe(result, time.time()), trouble(result), as_json=as_json, quiet=quiet)
        return
    assert volume is not None
    if merge is not None:
        file = str(merge.absolute())
        result = ask_without_keys(find_asked(volume), "warm-merge", title="merging", quiet=quiet or as_json, file=file)
        tell(volume, result, describe_merge(result), "", as_json=as_json, quiet=quiet)
        return
    result = ask_without_keys(find_asked(volume), "warm", title="warming", quiet=quiet or as_json, every=every)
    tell(volume, result, describe(result, time.time()), trouble(result), as_json=as_json, quiet=quiet)


def timer_command(volume: Path, *, for_all: bool) -> str:
    """Return the line for a shell that has systemd warm a volume; `for_all`: as root's, of the machine."""
    directory, user = ("/etc/systemd/system", "") if for_all else ("~/.config/systemd/user", " --user")
    timer = f'"ibpfs-warm@$(systemd-escape --path {shlex.quote(str(volume))}).timer"'
    return (f"mkdir -p {directory} && ibpfs warm --units --directory {directory} && systemctl{user} daemon-reload"
            f" && systemctl{user} enable --now {timer}")


def _warm_with(capability: Path, every: bool, quiet: bool) -> dict[str, Any]:
    import trio

    from ibpfs.keyless import run_warm

    with progress_bar("warming", quiet) as advance:
        result: dict[str, Any] = trio.run(run_warm, capability, every, advance)
    return result


def describe_merge(result: dict[str, Any]) -> str:
    """Return what came home, as a line for a person."""
    more = f", {result['surplus']} not needed and given back" if result["surplus"] else ""
    more += f", {result['unusable']} on depots that are none of this volume's" if result["unusable"] else ""
    return f"{result['added']} copies taken home{more}; the file is as of now again"


def describe(result: dict[str, Any], now: float) -> str:
    """Return what was done, as a line for a person."""
    lacking, end = result["under_replicated_bytes"], result["survives_until"]
    if result.get("is_empty"):
        return f"{_leases(result['renewed'])} renewed; nothing of any file is stored on depots yet"
    copies = f"{format_size(lacking)} lack copies" if lacking else "all copies stand"
    kept = "for good" if end is None else f"for {format_period(max(0.0, end - now))}"
    return f"{_leases(result['renewed'])} renewed, {copies}; with nothing renewed from now on, all is kept {kept}"


def trouble(result: dict[str, Any]) -> str:
    """Return what stays wrong; nothing when nothing does."""
    found = []
    if result["not_renewed"]:
        found.append(f"{_leases(result['not_renewed'])} due and not renewed")
    if result["at_risk_bytes"]:
        found.append(f"{format_size(result['at_risk_bytes'])} at risk")
    return ", ".join(found)


def _leases(count: int) -> str:
    return "1 lease" if count == 1 else f"{count} leases"


def _give_units(directory: Path | None, calendar: str) -> None:
    program = Path(sys.argv[0]).absolute()
    texts = {}
    for name, (what, option) in _UNITS.items():
        texts[f"{name}.service"] = SERVICE.format(program=program, what=what, option=option)
        texts[f"{name}.timer"] = TIMER.format(calendar=calendar, what=what)
    give_units(texts, directory)
