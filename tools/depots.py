"""ibpfs depots: which depots a volume keeps its bytes on."""

import json
from typing import Any

import click

from ibpfs.config import VolumePaths, format_size
from ibpfs_tools.asking import ask, ask_without_keys, find_asked
from ibpfs_tools.commands import command
from ibpfs_tools.unlocking import Secrets, secret_options


@command("depots")
@click.argument("volume")
@click.option("--add", "address", metavar="ibp[s]://HOST:PORT",
              help="Add a depot; new bytes may go there from now on, through TLS if it offers that.")
@click.option("--no-tls", is_flag=True, help="Do not ask the depot that is added whether it offers TLS.")
@click.option("--pin", "number", type=int, metavar="ID",
              help="Speak TLS with the depot of this number, and trust the certificate that it shows now.")
@click.option("--drain", "drained", metavar="ADDRESS",
              help="Move everything off a depot; it takes no new bytes. Begun again, it goes on where it was.")
@click.option("--remove", "removed", metavar="ADDRESS", help="Take a depot that was drained out of the volume.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def depots(
    volume: str, address: str | None, no_tls: bool, number: int | None, drained: str | None, removed: str | None,
    as_json: bool, secrets: Secrets,
) -> None:  # fmt: skip
    """List the depots of VOLUME (a volume or a mount point).

    --drain copies each segment to another depot before its replica is released, returns when nothing of the volume's
    own is left there, and needs no key, nor does --remove. What is begun goes on in a mount, or with ibpfs warm.
    """
    paths = find_asked(volume)
    if drained or removed:
        _take_away(paths, drained, removed)
        return
    if address:
        ask(paths, "depots-add", secrets, address=address, tls=not no_tls)
    if number is not None:
        pinned = ask(paths, "depots-pin", secrets, id=number)
        click.echo(f"{pinned['address']}: SHA-256 of its certificate: {pinned['fingerprint']}", err=True)
    found: list[dict[str, Any]] = ask(paths, "depots", secrets)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for depot in found:
        free = depot.get("free_bytes")
        room = "free space not known" if free is None else f"{format_size(free)} free"
        trouble = f"; {depot['trouble']}" if depot.get("trouble") else ""
        role = ", draining" if depot.get("role") == "draining" else ""
        click.echo(f"{depot['id']:>3}  {depot['state']:<10}  {depot['address']}{_way(depot)}{role}, {room}{trouble}")


def _take_away(paths: VolumePaths, drained: str | None, removed: str | None) -> None:
    if drained:
        imported = ask_without_keys(paths, "depots-drain", title="moving segments", address=drained)["imported"]
        stay = f"; {imported} replicas of imported files stay" if imported else ""
        click.echo(f"{drained}: nothing of this volume's own is left there{stay}")
    if removed:
        was = ask_without_keys(paths, "depots-remove", address=removed)["removed"]
        click.echo(f"{removed}: is no depot of this volume any {'more' if was else 'more (it was removed before)'}")


def _way(depot: dict[str, Any]) -> str:
    if depot.get("embedded"):
        return " (the volume's own)"
    return " (TLS)" if depot.get("tls") else " (no TLS: open to who listens on the way)" if depot.get("open") else ""
