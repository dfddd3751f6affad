"""The commands of a depot beyond storing and leasing: queues, vectors, digests, aliases, copies.

What a depot does not offer is asked once: from then on NotOffered comes without asking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ibpfs.depot.calls import Calls
from ibpfs.depot.capability import Capability, CapabilityKind, CapabilitySet, Key
from ibpfs.depot.later import Buffer
from ibpfs.depot.wire import Checksum, DepotError, ErrorCode, error_for
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.digests import Deframer, Framer

APPEND: Final = ev.APPEND
#: Seconds that a depot may move bytes between others without a word to us.
COPY_PATIENCE: Final = 300

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class AliasStatus:
    """`length` 0 = all of the parent."""

    read_count: int
    write_count: int
    offset: int
    length: int
    seconds_left: int


class ProtocolCommands(Calls):
    """Part of the client."""

    # --- queues ---

    async def put(self, key: Key, data: bytes, *, wait: int = 0) -> int:
        """Into a FIFO, waiting `wait` seconds for room (NoRoom), or into a circular queue or BUFFER."""
        command = ev.Store(key, len(data), version=0, timeout=wait)
        reply = await self._call(command, ev.Stored, [data], repeatable=False, patience=wait, stepwise=True)
        return reply.length

    async def take(self, key: Key, length: int, *, wait: int = 0) -> bytes:
        """Up to `length` of the oldest bytes of a queue; b"" when none came within `wait` seconds."""
        into = bytearray(length)
        command = ev.Load(key, 0, length, version=0, timeout=wait)
        try:
            with memoryview(into) as view:
                reply = await self._call(command, ev.Loading, (), view, repeatable=False, patience=wait)
        except DepotError as error:
            if error.code in (ErrorCode.GENERIC, ErrorCode.SERVER_TIMEOUT):
                return b""
            raise
        return bytes(into[: reply.length])

    # --- vectors and digests on the wire ---

    async def write_vector(self, key: Key, ranges: Ranges, data: Sequence[Buffer]) -> int:
        """`data` fill the ranges (offset, length) one after another."""
        return (await self._call(ev.VecWrite(key, tuple(ranges)), ev.Stored, data)).length

    async def read_vector(self, key: Key, ranges: Ranges) -> bytearray:
        command = ev.VecRead(key, tuple(ranges))
        into = bytearray(command.length)
        with memoryview(into) as view:
            await self._call(command, ev.Loading, (), view)
        return into

    async def store_checked(self, key: Key, data: bytes, checksum: Checksum) -> int:
        """Appends what arrives whole; DepotError with code -63 when it does not."""
        framer = Framer(checksum)
        framed = [framer.feed(data) + framer.finish()]
        return (await self._call(ev.Store(key, len(data), checksum), ev.Stored, framed, repeatable=False)).length

    async def load_checked(self, key: Key, offset: int, length: int, checksum: Checksum) -> bytes:
        into = bytearray(checksum.framed_length(length))
        with memoryview(into) as view:
            await self._call(ev.Load(key, offset, length, checksum), ev.Loading, (), view)
        deframer = Deframer(checksum, length)
        data = deframer.feed(bytes(into))
        if deframer.damaged:
            raise error_for(ErrorCode.CHKSUM)
        return data

    # --- digests on disk ---

    async def digests(self, manage: Key) -> tuple[Checksum, list[bytes]]:
        """The digests that the depot keeps, one a block."""
        report = await self._call(ev.GetDigests(manage, info_only=True), ev.DigestReport)
        into = bytearray(report.length)
        with memoryview(into) as view:
            report = await self._call(ev.GetDigests(manage), ev.DigestReport, (), view)
        width = report.checksum.digest_size
        return report.checksum, [bytes(into[at : at + width]) for at in range(0, report.length, width)]

    async def validate(self, manage: Key, *, correct: bool = False, seconds: int = COPY_PATIENCE) -> int:
        """How many blocks do not fit their digests; `correct` makes new ones."""
        command = ev.ValidateDigests(manage, correct, timeout=seconds)
        return (await self._call(command, ev.BadBlocks, patience=seconds)).count

    # --- keys, parts, aliases ---

    async def rename(self, manage: Key) -> CapabilitySet:
        """New capabilities; the old ones end at once, even if the answer is lost."""
        return (await self._call(ev.Rename(manage), ev.Allocated, repeatable=False)).capabilities

    async def split(self, manage: Key, size: int, duration: int) -> CapabilitySet:
        return (await self._call(ev.Split(manage, size, duration), ev.Allocated, repeatable=False)).capabilities

    async def merge(self, manage: Key, child: Key) -> None:
        await self._call(ev.Merge(manage, child), ev.Done, repeatable=False)

    async def alias(self, manage: Key, offset: int = 0, length: int = 0, duration: int = 0) -> CapabilitySet:
        """For a window of an allocation; length 0 = all, duration 0 = as long as the parent."""
        command = ev.AliasAllocate(manage, offset, length, duration)
        return (await self._call(command, ev.Allocated, repeatable=False)).capabilities

    async def probe_alias(self, alias: Key) -> AliasStatus:
        reply = await self._call(ev.AliasProbe(alias), ev.AliasProbed)
        return AliasStatus(reply.read_count, reply.write_count, reply.offset, reply.length, reply.seconds_left)

    async def change_alias(self, alias: Key, manage: Key, offset: int, length: int, duration: int = 0) -> None:
        await self._call(ev.AliasChange(alias, offset, length, duration, manage), ev.Done)

    async def revoke_alias(self, alias: Key, manage: Key) -> None:
        """`manage`: the parent's."""
        await self._call(ev.AliasDecrement(alias, CapabilityKind.READ, manage), ev.Done, repeatable=False)

    # --- from depot to depot, and to others ---

    async def copy(
        self, read: Key, target: Capability, offset: int, length: int, *, seconds: int = COPY_PATIENCE
    ) -> int:
        """Appends a range of an allocation of this depot to one of any depot."""
        command = ev.Send(read, target, offset, length, version=0, **_allowed(seconds))
        return (await self._call(command, ev.Stored, repeatable=False, patience=seconds)).length

    async def push(
        self, read: Key, target: Capability, offset: int, target_offset: int, length: int,
        *, seconds: int = COPY_PATIENCE,
    ) -> int:  # fmt: skip
        """As `copy`, to an offset of the target, or APPEND."""
        command = ev.Push(read, target, offset, target_offset, length, **_allowed(seconds))
        repeatable = target_offset != APPEND
        return (await self._call(command, ev.Stored, repeatable=repeatable, patience=seconds)).length

    async def pull(
        self, write: Key, source: Capability, offset: int, source_offset: int, length: int,
        *, seconds: int = COPY_PATIENCE,
    ) -> int:  # fmt: skip
        """Fetches from another depot to an offset of an allocation of this one, or APPEND."""
        command = ev.Pull(write, source, offset, source_offset, length, **_allowed(seconds))
        return (await self._call(command, ev.Stored, repeatable=offset != APPEND, patience=seconds)).length

    async def deliver(
        self, read: Key, host: str, port: int, offset: int, length: int, *, seconds: int = COPY_PATIENCE
    ) -> int:
        """The depot connects to HOST:PORT, which most depots only do where the client is, and sends raw bytes."""
        command = ev.Deliver(read, host, port, offset, length, version=0, timeout=seconds)
        return (await self._call(command, ev.Stored, repeatable=False, patience=seconds)).length

    async def remote_store(
        self, write: Key, host: str, port: int, length: int, *, seconds: int = COPY_PATIENCE
    ) -> int:
        """The depot connects to HOST:PORT and appends what it says there."""
        command = ev.RemoteStore(write, host, port, length, version=0, timeout=seconds)
        return (await self._call(command, ev.Stored, repeatable=False, patience=seconds)).length

    # --- the depot ---

    async def resources(self) -> tuple[str, ...]:
        return (await self._call(ev.StatusResources(), ev.Resources)).rids

    async def version_text(self) -> tuple[str, ...]:
        return (await self._call(ev.StatusVersion(), ev.VersionText)).lines


def _allowed(seconds: int) -> dict[str, int]:
    return {"timeout": seconds, "target_timeout": seconds, "client_timeout": seconds}
