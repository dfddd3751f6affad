"""Commands of a manage capability beside MANAGE: new keys, parts, aliases, digests on disk."""

from dataclasses import dataclass

from ibpfs.depot.capability import CapabilityKind, Key
from ibpfs.depot.wire.command import Command
from ibpfs.depot.wire.digests import Checksum
from ibpfs.depot.wire.protocol import AllocationKind, Reliability


@dataclass(frozen=True, slots=True)
class Rename(Command):
    """New capabilities; the old ones end at once."""

    key: Key


@dataclass(frozen=True, slots=True)
class Split(Command):
    """A new allocation of `size` bytes out of the room of `key`. `duration` as in Allocate."""

    key: Key
    size: int
    duration: int
    reliability: Reliability = Reliability.STABLE
    kind: AllocationKind = AllocationKind.BYTE_ARRAY
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Merge(Command):
    """`key` grows by the room of `child`, which ends with its data."""

    key: Key
    child: Key


@dataclass(frozen=True, slots=True)
class AliasAllocate(Command):
    """Capabilities for a window of `key`. Length 0 = all; duration 0 = as long as the parent."""

    key: Key
    offset: int = 0
    length: int = 0
    duration: int = 0


@dataclass(frozen=True, slots=True)
class AliasProbe(Command):
    key: Key


@dataclass(frozen=True, slots=True)
class AliasIncrement(Command):
    """`parent`: the parent's manage key."""

    key: Key
    counted: CapabilityKind
    parent: Key


@dataclass(frozen=True, slots=True)
class AliasDecrement(Command):
    """No readers left: the alias is revoked."""

    key: Key
    counted: CapabilityKind
    parent: Key


@dataclass(frozen=True, slots=True)
class AliasChange(Command):
    key: Key
    offset: int
    length: int
    duration: int
    parent: Key


@dataclass(frozen=True, slots=True)
class GetDigests(Command):
    """The digests kept on disk; `info_only`: how many, not which."""

    key: Key
    info_only: bool = False


@dataclass(frozen=True, slots=True)
class ValidateDigests(Command):
    """Read everything again and count blocks that do not fit their digests; `correct`: and make new digests."""

    key: Key
    correct: bool = False
