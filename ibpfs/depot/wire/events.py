"""What a connection carries, as values: commands, replies, data, and the ways it ends.

One frozen dataclass per command and per reply; `Connection` turns them into bytes and back.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, TypeAlias

from ibpfs.depot.capability import CapabilityKind, CapabilitySet, Key
from ibpfs.depot.wire.command import Carrying, is_permanent
from ibpfs.depot.wire.command import Command as Command
from ibpfs.depot.wire.digests import Checksum as Checksum
from ibpfs.depot.wire.managing import AliasAllocate as AliasAllocate
from ibpfs.depot.wire.managing import AliasChange as AliasChange
from ibpfs.depot.wire.managing import AliasDecrement as AliasDecrement
from ibpfs.depot.wire.managing import AliasIncrement as AliasIncrement
from ibpfs.depot.wire.managing import AliasProbe as AliasProbe
from ibpfs.depot.wire.managing import GetDigests as GetDigests
from ibpfs.depot.wire.managing import Merge as Merge
from ibpfs.depot.wire.managing import Rename as Rename
from ibpfs.depot.wire.managing import Split as Split
from ibpfs.depot.wire.managing import ValidateDigests as ValidateDigests
from ibpfs.depot.wire.protocol import (
    ANY_RESOURCE,
    DEFAULT_PASSWORD,
    AllocationKind,
    Opcode,
    Reliability,
)
from ibpfs.depot.wire.transfers import APPEND as APPEND
from ibpfs.depot.wire.transfers import Deliver as Deliver
from ibpfs.depot.wire.transfers import Pull as Pull
from ibpfs.depot.wire.transfers import Push as Push
from ibpfs.depot.wire.transfers import RemoteStore as RemoteStore
from ibpfs.depot.wire.transfers import Send as Send
from ibpfs.depot.wire.transfers import VecRead as VecRead
from ibpfs.depot.wire.transfers import VecWrite as VecWrite


class Waiting(Enum):
    """Why there is no event: more bytes are needed, or a reply has to be sent first."""

    NEED_DATA = "need data"
    PAUSED = "paused"


NEED_DATA: Final = Waiting.NEED_DATA
PAUSED: Final = Waiting.PAUSED


# --- commands ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allocate(Command):
    """`duration` as the wire has it: seconds; permanent is -1 in version 1 and 0 in version 0."""

    size: int
    duration: int
    reliability: Reliability = Reliability.STABLE
    kind: AllocationKind = AllocationKind.BYTE_ARRAY
    rid: str = ANY_RESOURCE
    checksum: Checksum | None = None

    @property
    def permanent(self) -> bool:
        return is_permanent(self.version, self.duration)


@dataclass(frozen=True, slots=True)
class Store(Carrying):
    """Append."""

    key: Key
    length: int
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Write(Carrying):
    """Write at an offset."""

    key: Key
    offset: int
    length: int
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Load(Command):
    key: Key
    offset: int
    length: int
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Open(Command):
    """Over a Unix socket: hand over a descriptor to read the allocation's file with."""

    key: Key


@dataclass(frozen=True, slots=True)
class Probe(Command):
    key: Key


@dataclass(frozen=True, slots=True)
class Increment(Command):
    key: Key
    counted: CapabilityKind


@dataclass(frozen=True, slots=True)
class Decrement(Command):
    key: Key
    counted: CapabilityKind


#: As a duration: L-Store's client changes a size alone with it.
KEEP_LEASE: Final = -1


@dataclass(frozen=True, slots=True)
class Change(Command):
    """`duration` KEEP_LEASE = leave it, in version 0 also 0 = permanent; `reliability` None = leave it."""

    key: Key
    max_size: int
    duration: int
    reliability: Reliability | None = None


@dataclass(frozen=True, slots=True)
class Truncate(Command):
    """Sets the maximum size and cuts the data to it."""

    key: Key
    size: int


@dataclass(frozen=True, slots=True)
class StatusInquire(Command):
    rid: str = ANY_RESOURCE
    password: str = field(default=DEFAULT_PASSWORD, repr=False)


@dataclass(frozen=True, slots=True)
class StatusChange(Command):
    """New limits follow as a line of their own after `Ready`."""

    ready_first: ClassVar[bool] = True
    closes_if_refused: ClassVar[bool] = True
    rid: str = ANY_RESOURCE
    password: str = field(default=DEFAULT_PASSWORD, repr=False)


@dataclass(frozen=True, slots=True)
class StatusResources(Command):
    pass


@dataclass(frozen=True, slots=True)
class StatusStatistics(Command):
    pass


@dataclass(frozen=True, slots=True)
class StatusVersion(Command):
    pass


@dataclass(frozen=True, slots=True)
class NewLimits:
    """The line behind StatusChange: MiB, MiB, days; None if it is not that."""

    numbers: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A command that this codec does not speak: answer -43, and close after it if it carried data."""

    opcode: int
    closes_if_refused: bool
    carries_data: ClassVar[bool] = False
    ready_first: ClassVar[bool] = False

    @property
    def known(self) -> bool:
        return self.opcode in Opcode._value2member_map_


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no command: answer `code`."""

    code: int
    closes_if_refused: bool
    carries_data: ClassVar[bool] = False
    ready_first: ClassVar[bool] = False


Request: TypeAlias = Command | Unsupported | Malformed


# --- replies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allocated:
    capabilities: CapabilitySet


@dataclass(frozen=True, slots=True)
class Ready:
    """Send the data now."""


@dataclass(frozen=True, slots=True)
class Stored:
    length: int


@dataclass(frozen=True, slots=True)
class Loading:
    """`length` raw bytes follow."""

    length: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A descriptor comes with the line; the allocation's bytes begin at `offset` of its file."""

    offset: int


@dataclass(frozen=True, slots=True)
class Probed:
    read_count: int
    write_count: int
    size: int
    max_size: int
    seconds_left: int
    reliability: Reliability
    kind: AllocationKind


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Bytes; `max_lease` seconds or -1 for no limit. Version 0 carries whole MiB only."""

    total: int
    used: int
    free: int
    used_stable: int
    max_lease: int
    version_text: str = ""
    rid: str = "1"


@dataclass(frozen=True, slots=True)
class Resources:
    rids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionText:
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AliasProbed:
    """`length` 0 = all of the parent."""

    read_count: int
    write_count: int
    offset: int
    length: int
    seconds_left: int


@dataclass(frozen=True, slots=True)
class DigestReport:
    """`length` bytes of raw digests follow, unless only this was asked for."""

    checksum: Checksum
    blocks: int
    length: int


@dataclass(frozen=True, slots=True)
class BadBlocks:
    count: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An error number; `length` is what a copy had moved when its destination refused."""

    code: int
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The depot closes the connection by itself and suggests how many seconds to stay away."""

    backoff: float = 0.1


Reply: TypeAlias = (
    Allocated
    | Ready
    | Stored
    | Loading
    | Opened
    | Probed
    | AliasProbed
    | Done
    | DigestReport
    | BadBlocks
    | StatusReport
    | Resources
    | VersionText
    | Failed
    | Goodbye
)


# --- data and the end -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Data:
    chunk: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EndOfData:
    """All announced bytes have passed."""


@dataclass(frozen=True, slots=True)
class ClosedByPeer:
    """`clean`: between commands, nothing owed by either side."""

    clean: bool


Event: TypeAlias = Request | Reply | NewLimits | Data | EndOfData | ClosedByPeer | Waiting
