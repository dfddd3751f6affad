"""ibpfs warm-cap: let another machine keep a volume alive without being able to read it."""

from pathlib import Path
from typing import Any

import click

from ibpfs_tools.asking import ask_without_keys, find_asked, tell
from ibpfs_tools.commands import command, complete_volume

EPILOG = """\b
On the other machine, every hour or so, as a user who keeps the file to himself (mode 0600):
  ibpfs warm --quiet --with FILE
or by a timer of systemd (see ibpfs warm --help):
  systemctl --user enable --now "ibpfs-warm-with@$(systemd-escape --path FILE).timer"
Back home, from time to time, with the file fetched from there; then it is taken there again:
  ibpfs warm VOLUME --merge FILE
"""


@command("warm-cap", epilog=EPILOG)
@click.argument("volume", shell_complete=complete_volume)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def warm_cap(volume: str, file: Path, as_json: bool) -> None:
    """Write a warm capability of VOLUME (a volume or a mount point) to FILE, mode 0600: for the machine that has it.

    With it, bytes are renewed, verified and copied to other depots of the volume, and the leases of the checkpoints of
    the names are renewed; all can be deleted, too, by whoever means harm.
    It holds no key and no name: what is sealed stays so. It knows what is stored now; write it anew for what comes
    later. An older one of the same volume is replaced.
    """
    result = ask_without_keys(find_asked(volume), "warm-cap", file=str(file.absolute()))
    tell(volume, result, describe(result, file), "", as_json=as_json, quiet=False)


def describe(result: dict[str, Any], file: Path) -> str:
    """Return what is in it, as a line for a person."""
    there = f"{result['replicas']} copies of {result['segments']} segments on {result['depots']} depots"
    there += ", and the checkpoints," if result["record_logs"] else ""
    return f"{file} keeps {there} alive, on another machine: ibpfs warm --with {file.name}"
