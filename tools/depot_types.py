"""What values of the options of `ibpfs-depot` look like."""

from collections.abc import Callable

import click

from ibpfs.errors import UsageError
from ibpfs.quantities import parse_duration, parse_size


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
