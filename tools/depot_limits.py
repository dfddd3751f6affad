"""Options of `ibpfs-depot` that bound what peers may cost."""

from collections.abc import Callable
from typing import Any

import click

from ibpfs_tools.depot_types import DURATION, SIZE


def limits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; their names are those of the settings."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_OPTIONS = (
    click.option("--max-connections", type=click.IntRange(min=1), default=4096, show_default=True, metavar="NUMBER",
                 help="TCP connections in all. When there are so many, the one that has been idle longest goes."),
    click.option("--max-connections-per-address", type=click.IntRange(min=1), metavar="NUMBER",
                 help="TCP connections from one address.  [default: 256, but any number from this machine itself]"),
    click.option("--idle-timeout", type=click.FloatRange(min=0, min_open=True), default=120, show_default=True,
                 metavar="SECONDS", help="Close TCP connections that are idle, or stuck, for so long."),
    click.option("--longest-timeout", type=DURATION, default="1h", show_default=True, metavar="DURATION",
                 help="How long a client may ask to be waited for, at a queue or with its data."),
    click.option("--min-rate", type=SIZE, default="1K", show_default=True, metavar="SIZE",
                 help="Bytes a second that a peer has to send or take, when it has been stuck for the time it may be; "
                      "0 for any."),
    click.option("--max-line", type=SIZE, default="256K", show_default=True, metavar="SIZE",
                 help="The longest line of a command."),
    click.option("--max-in-flight", type=SIZE, default="256M", show_default=True, metavar="SIZE",
                 help="Memory for lines that are not whole and replies that are not taken, of all peers together."),
)  # fmt: skip
