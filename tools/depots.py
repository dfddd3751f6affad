"""ibpfs depots: which depots a volume keeps its bytes on; another one, one less."""

import json
from typing import Any

import click
from click.shell_completion import CompletionItem

from ibpfs.config import format_size
from ibpfs.exnode_store.policies import parse_labels
from ibpfs_tools.asking import ask, ask_without_keys, find_asked
from ibpfs_tools.commands import CONTEXT, complete_volume, version_option
from ibpfs_tools.unlocking import Secrets, secret_options


class _Listing(click.Group):
    """Without a verb, `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing and not args:
            return super().parse_args(ctx, args)  # completing the first word, which may be a verb
        if not args or args[0] not in (*self.commands, "-h", "--help", "--version"):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(ctx, incomplete)
        return found or complete_volume(ctx, self.params[0], incomplete)


@click.group("depots", cls=_Listing, context_settings=CONTEXT)
@version_option("ibpfs depots")
def depots() -> None:
    """Which depots a volume keeps its bytes on. `ibpfs depots VOLUME` lists them."""


@depots.command("list")
@click.argument("volume", shell_complete=complete_volume)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@secret_options
def list_(volume: str, as_json: bool, secrets: Secrets) -> None:
    """List the depots of VOLUME (a volume or a mount point)."""
    found: list[dict[str, Any]] = ask(find_asked(volume), "depots", secrets)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for depot in found:
        free = depot.get("free_bytes")
        room = "free space not known" if free is None else f"{format_size(free)} free"
        trouble = f"; {_trouble(depot)}" if depot.get("trouble") else ""
        role = ", draining" if depot.get("role") == "draining" else ""
        labels = "".join(f", {name}={value}" for name, value in depot.get("labels", {}).items())
        where = f"{depot['address']}{_way(depot)}{role}{labels}"
        click.echo(f"{depot['id']:>3}  {depot['state']:<10}  {where}, {room}{trouble}")


@depots.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("address", metavar="ibp[s]://HOST:PORT")
@click.option("--no-tls", is_flag=True, help="Do not ask the depot whether it offers TLS.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Where it is, whose: site=knoxville.")
@secret_options
def add(volume: str, address: str, no_tls: bool, labels: tuple[str, ...], secrets: Secrets) -> None:
    """Add a depot: new bytes may go there from now on, through TLS if it offers that."""
    named = parse_labels(labels)
    added = ask(find_asked(volume), "depots-add", secrets, address=address, tls=not no_tls, labels=named)
    if added["state"] != "ok":
        why = f" ({_trouble(added)})" if added["trouble"] else ""
        click.echo(f"{added['address']}: does not answer{why}; nothing is kept there until it does", err=True)


@depots.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("depot")
@click.argument("labels", nargs=-1, metavar="[NAME=VALUE]...")
def label(volume: str, depot: str, labels: tuple[str, ...]) -> None:
    """Say anew where DEPOT (its address or number) is and whose: site=knoxville owner=loci; none takes its labels away.

    A policy with labels puts copies on depots that differ in them (see ibpfs policy). Copies that stand move when a
    policy is set anew with --recursive. Needs no key.
    """
    ask_without_keys(find_asked(volume), "depots-label", address=depot, labels=parse_labels(labels))


@depots.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("depot")
@secret_options
def pin(volume: str, depot: str, secrets: Secrets) -> None:
    """Speak TLS with DEPOT (its address or number), and trust the certificate that it shows now."""
    # A process of an earlier release knows the number alone.
    number: dict[str, Any] = {"id": int(depot)} if depot.isdecimal() and len(depot) < 19 else {}
    pinned = ask(find_asked(volume), "depots-pin", secrets, depot=depot, **number)
    click.echo(f"{pinned['address']}: SHA-256 of its certificate: {pinned['fingerprint']}", err=True)


@depots.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("depot")
def drain(volume: str, depot: str) -> None:
    """Move everything off DEPOT (its address or number); it takes no new bytes.

    Each segment is copied to another depot before its replica is released. Returns when nothing of the volume's own is
    left there. Needs no key. What is begun goes on in a mount, with ibpfs warm, or when it is asked for again.
    """
    done = ask_without_keys(find_asked(volume), "depots-drain", title="moving segments", address=depot)
    stay = f"; {done['imported']} replicas of imported files stay" if done["imported"] else ""
    click.echo(f"{depot}: nothing of this volume's own is left there{stay}")


@depots.command()
@click.argument("volume", shell_complete=complete_volume)
@click.argument("depot")
def remove(volume: str, depot: str) -> None:
    """Take DEPOT (its address or number), which was drained, out of the volume. Needs no key."""
    was = ask_without_keys(find_asked(volume), "depots-remove", address=depot)["removed"]
    click.echo(f"{depot}: is no depot of this volume any {'more' if was else 'more (it was removed before)'}")


def _trouble(depot: dict[str, Any]) -> str:
    """Without the address, which stands before it."""
    return str(depot["trouble"]).removeprefix(f"{depot['address']}: ")


def _way(depot: dict[str, Any]) -> str:
    if depot.get("embedded"):
        return " (the volume's own)"
    return " (TLS)" if depot.get("tls") else " (no TLS: open to who listens on the way)" if depot.get("open") else ""
