"""Commands that move bytes in more than one piece, or to and from others than the client."""

from dataclasses import dataclass
from typing import ClassVar

from ibpfs.depot.capability import Capability, Key
from ibpfs.depot.wire.command import Carrying, Command
from ibpfs.depot.wire.digests import Checksum

Ranges = tuple[tuple[int, int], ...]

APPEND = -1  # in place of an offset


@dataclass(frozen=True, slots=True)
class _Vector(Command):
    """`ranges`: offset and length each."""

    key: Key
    ranges: Ranges
    checksum: Checksum | None = None

    @property
    def length(self) -> int:
        return sum(length for _, length in self.ranges)


@dataclass(frozen=True, slots=True)
class VecWrite(_Vector, Carrying):
    """The bytes of the ranges follow one after another."""


@dataclass(frozen=True, slots=True)
class VecRead(_Vector):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy(Command):
    """`target_timeout` bounds the other depot, `client_timeout` is its client's: our depot's."""

    target_timeout: int = 30
    client_timeout: int = 30


@dataclass(frozen=True, slots=True)
class Send(_Copy):
    """Append a range of `key` to `target`, an allocation of any depot. Asked of the source's depot."""

    key: Key
    target: Capability
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Between(_Copy):
    key: Key
    remote: Capability
    offset: int
    remote_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Push(_Between):
    """As Send, to an offset of the target or `APPEND`."""


@dataclass(frozen=True, slots=True)
class Pull(_Between):
    """Fetch a range of `remote` to an offset of `key` or `APPEND`. Asked of the target's depot."""


@dataclass(frozen=True, slots=True)
class Deliver(Command):
    """Send raw bytes to HOST:PORT."""

    key: Key
    host: str
    port: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class RemoteStore(Command):
    """Append `length` raw bytes that HOST:PORT sends. The depot says `Ready` when it is connected there."""

    ready_first: ClassVar[bool] = True
    key: Key
    host: str
    port: int
    length: int
