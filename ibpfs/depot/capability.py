"""Capabilities: unguessable strings, each granting one right on one allocation.

They are secrets: only `render()` (and the fields themselves) give the text; repr and str show a short hash.
"""

import re
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import sha256

from ibpfs.errors import IbpfsError

_TOKEN = re.compile(r"[!-.0-~]{1,1023}")
_HOST = re.compile(r"\[[0-9A-Fa-f:.%\w]{2,255}\]|[A-Za-z0-9._-]{1,255}")
_SCHEMES = ("ibp://", "ibps://")


class BadCapability(IbpfsError):
    """A text is not a capability. The message never repeats the text."""


class CapabilityKind(IntEnum):
    """The right a capability grants; the number is its name in a command line."""

    READ = 1
    WRITE = 2
    MANAGE = 3


def label_of(key: str) -> str:
    """The short hash by which logs name an allocation's key."""
    return sha256(key.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """What a command line carries of a capability: the key and the type key beside it."""

    key: str
    type_key: str

    def __post_init__(self) -> None:
        if not (_TOKEN.fullmatch(self.key) and _TOKEN.fullmatch(self.type_key)):
            raise BadCapability("a key holds blanks, slashes or control characters, or is too long")

    @property
    def label(self) -> str:
        return label_of(self.key)

    def __repr__(self) -> str:
        return f"<key {self.label}>"


@dataclass(frozen=True, slots=True, repr=False)
class Capability:
    """`ibp[s]://HOST:PORT/KEY/TYPEKEY/KIND`; an IPv6 host stands without its brackets."""

    host: str
    port: int
    key: str
    type_key: str
    kind: CapabilityKind
    secure: bool = False  # ibps: to be used through TLS alone

    @classmethod
    def parse(cls, text: str) -> "Capability":
        scheme = next((s for s in _SCHEMES if text.startswith(s)), None)
        parts = text[len(scheme) :].split("/") if scheme else []
        if len(parts) != 4:
            raise BadCapability("not of the form ibp://HOST:PORT/KEY/TYPEKEY/KIND")
        place, key, type_key, kind = parts
        host, port = parse_place(place)
        if kind not in CapabilityKind.__members__:
            raise BadCapability("a capability ends with READ, WRITE or MANAGE")
        Key(key, type_key)
        return cls(host, port, key, type_key, CapabilityKind[kind], scheme == "ibps://")

    def render(self) -> str:
        """The secret text."""
        scheme = "ibps" if self.secure else "ibp"
        return f"{scheme}://{render_place(self.host, self.port)}/{self.key}/{self.type_key}/{self.kind.name}"

    @property
    def wire_key(self) -> Key:
        return Key(self.key, self.type_key)

    @property
    def label(self) -> str:
        return label_of(self.key)

    def __repr__(self) -> str:
        return f"<cap {self.kind.name.lower()} {self.label}>"


@dataclass(frozen=True, slots=True)
class CapabilitySet:
    """The three capabilities of one allocation."""

    read: Capability
    write: Capability
    manage: Capability

    def secured(self) -> "CapabilitySet":
        """The same, to be used through TLS alone."""
        return CapabilitySet(*(replace(one, secure=True) for one in (self.read, self.write, self.manage)))


def parse_place(place: str) -> tuple[str, int]:
    """`HOST:PORT` (an IPv6 host in brackets) as host without brackets, and port 1..65535."""
    host, colon, port = place.rpartition(":")
    if not (colon and _HOST.fullmatch(host)):
        raise BadCapability("the part before the key is not HOST:PORT")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise BadCapability("the port is not a number from 1 to 65535")
    return host.strip("[]"), int(port)


def render_place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
