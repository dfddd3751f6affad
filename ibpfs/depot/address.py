"""Where a depot is: a host and port, or a Unix socket of this machine."""

from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Final

from ibpfs.depot.capability import BadCapability, Capability, parse_place, render_place
from ibpfs.errors import UsageError

DEFAULT_PORT: Final = 6714


class BadAddress(UsageError):
    """A text is not the address of a depot."""


@dataclass(frozen=True, slots=True)
class Address:
    """`ibp[s]://HOST[:PORT]` or `unix:/PATH`; `path` is None for the former. `secure`: ibps, TLS or nothing."""

    host: str = ""
    port: int = 0
    path: str | None = None
    secure: bool = False

    @classmethod
    def parse(cls, text: str) -> "Address":
        if text.startswith("unix:"):
            return cls._unix(text.removeprefix("unix:"))
        secure = text.startswith("ibps://")
        if not secure and not text.startswith("ibp://"):
            raise BadAddress(f"{text}: a depot's address is ibp[s]://HOST:PORT or unix:/PATH")
        place = text.partition("://")[2].rstrip("/")
        if not place.rpartition(":")[1] or place.endswith("]"):
            place = f"{place}:{DEFAULT_PORT}"
        try:
            host, port = parse_place(place)
        except BadCapability:
            raise BadAddress(f"{text}: not of the form ibp://HOST:PORT") from None
        return cls(host, port, secure=secure)

    @classmethod
    def of(cls, capability: Capability) -> "Address":
        return cls(capability.host, capability.port, secure=capability.secure)

    @classmethod
    def _unix(cls, path: str) -> "Address":
        if not PurePosixPath(path).is_absolute() or "\0" in path:
            raise BadAddress(f"unix:{path}: the path of a depot's socket is absolute")
        return cls(path=path)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"{'ibps' if self.secure else 'ibp'}://{render_place(self.host, self.port)}"

    @property
    def place(self) -> "Address":
        """The same, however it is spoken to."""
        return replace(self, secure=False) if self.secure else self

    @property
    def is_local(self) -> bool:
        """Whether nothing that is said to it leaves this machine."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False
