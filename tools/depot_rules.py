"""Options of `ibpfs-depot` that say who may do what, where copies may go, and which directories there are."""

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from ibpfs.depot.server.access import Access, Network, Right
from ibpfs.depot.server.reach import Places, Reach
from ibpfs.errors import UsageError
from ibpfs.quantities import parse_size

_PLACES = "NETWORK[:PORT[-PORT]]"


def rules(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; `rules_from` reads what they gave."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    click.option("--resource", "resources", multiple=True, metavar="DIR[=SIZE]",
                 help="A further directory for allocations, with its capacity; may be given several times."),
    click.option("--allow", multiple=True, metavar="RIGHT=NETWORK",
                 help="Who may allocate, use data, or do what an admin does: RIGHT is allocate, data or admin. May be "
                      "given several times; a right that is not named is everybody's."),
    click.option("--copy-allow", multiple=True, metavar=_PLACES,
                 help="Where copies to other depots may go beside the default: anywhere but link-local, multicast and "
                      "(unless the depot listens there) loopback addresses."),
    click.option("--copy-deny", multiple=True, metavar=_PLACES, help="Where copies may not go."),
    click.option("--raw-allow", multiple=True, metavar=_PLACES,
                 help="With whom DELIVER and REMOTE_STORE may exchange raw bytes beside the one who asks."),
    click.option("--raw-deny", multiple=True, metavar=_PLACES, help="With whom they may not."),
    click.option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
                 help="Whoever knows this password may change the capacity by STATUS CHANGE.  [default: nobody]"),
)  # fmt: skip


RULES = ("resources", "allow", "copy_allow", "copy_deny", "raw_allow", "raw_deny", "password_file")


def rules_from(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that follow from the options."""
    return {
        "resources": tuple(map(parse_resource, options["resources"])),
        "access": _access(options["allow"]),
        "reach": Reach(
            copy_allowed=tuple(map(Places.parse, options["copy_allow"])),
            copy_denied=tuple(map(Places.parse, options["copy_deny"])),
            raw_allowed=tuple(map(Places.parse, options["raw_allow"])),
            raw_denied=tuple(map(Places.parse, options["raw_deny"])),
        ),
        "password": _password(options["password_file"]),
    }


def _password(file: Path | None) -> str | None:
    return file.read_text(encoding="utf-8").split("\n", 1)[0].strip() if file else None


def parse_resource(text: str) -> tuple[Path, int | None]:
    directory, equals, size = text.rpartition("=")
    return (Path(directory), parse_size(size)) if equals else (Path(text), None)


def _access(texts: tuple[str, ...]) -> Access:
    lists: dict[str, list[Network]] = {}
    for text in texts:
        right, _, network = text.partition("=")
        if right not in {one.value for one in Right}:
            raise UsageError(f"{text!r} is not RIGHT=NETWORK: a right is allocate, data or admin")
        try:
            lists.setdefault(right, []).append(ip_network(network, strict=False))
        except ValueError:
            raise UsageError(f"{text!r}: {network!r} is no network") from None
    return Access(**{right: tuple(networks) for right, networks in lists.items()})
