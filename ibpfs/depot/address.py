"""Where a depot is: a host and port, or a Unix socket of this machine."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from ibpfs.depot.capability import BadCapability, Capability, parse_place, render_place
from ibpfs.errors import UsageError

DEFAULT_PORT: Final = 6714


class BadAddress(UsageError):
    """A text is not the address of a depot."""


@dataclass(frozen=True, slots=True)
class Address:
    """`ibp://HOST[:PORT]` or `unix:/PATH`; `path` is None for the former."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        if text.startswith("unix:"):
            return cls._unix(text.removeprefix("unix:"))
        if text.startswith("ibps://"):
            raise BadAddress(f"{text}: TLS to a depot is not spoken yet; use ibp://")
        if not text.startswith("ibp://"):
            raise BadAddress(f"{text}: a depot's address is ibp://HOST:PORT or unix:/PATH")
        place = text.removeprefix("ibp://").rstrip("/")
        if not place.rpartition(":")[1] or place.endswith("]"):
            place = f"{place}:{DEFAULT_PORT}"
        try:
            return cls(*parse_place(place))
        except BadCapability:
            raise BadAddress(f"{text}: not of the form ibp://HOST:PORT") from None

    @classmethod
    def of(cls, capability: Capability) -> "Address":
        return cls(capability.host, capability.port)

    @classmethod
    def _unix(cls, path: str) -> "Address":
        if not PurePosixPath(path).is_absolute() or "\0" in path:
            raise BadAddress(f"unix:{path}: the path of a depot's socket is absolute")
        return cls(path=path)

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"ibp://{render_place(self.host, self.port)}"
