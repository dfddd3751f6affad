"""A depot as seen by those who keep bytes there: one coroutine per command, values and exceptions back.

Knows allocations and leases, nothing of files. Deadlines belong to the caller: a cancelled command closes
its connection. Raises only DepotError and DepotUnreachable.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ibpfs.depot.calls import refusal
from ibpfs.depot.capability import CapabilityKind, CapabilitySet, Key
from ibpfs.depot.later import Buffer, Later
from ibpfs.depot.protocol_commands import APPEND, AliasStatus, ProtocolCommands
from ibpfs.depot.stream import Meanwhile, ShortLoad
from ibpfs.depot.wire import (
    PERMANENT_SECONDS,
    AllocationKind,
    BadRequest,
    Checksum,
    DepotError,
    ErrorCode,
    NotOffered,
    Reliability,
    error_for,
)
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.protocol import ANY_RESOURCE
from ibpfs.memory import unfilled

__all__ = ["APPEND", "PERMANENT", "AliasStatus", "AllocationStatus", "DepotClient", "DepotStatus", "ShortLoad"]

PERMANENT: Final = -1  # as a duration: a lease without an end
_READ: Final = CapabilityKind.READ


@dataclass(frozen=True, slots=True)
class AllocationStatus:
    """`seconds_left` None = permanent."""

    read_count: int
    write_count: int
    size: int
    max_size: int
    seconds_left: float | None
    reliability: Reliability
    kind: AllocationKind


@dataclass(frozen=True, slots=True)
class DepotStatus:
    """`max_lease` in seconds, None = unlimited."""

    total_bytes: int
    used_bytes: int
    free_bytes: int
    max_lease: int | None
    version: str


class DepotClient(ProtocolCommands):
    """One depot: see Calls."""

    # --- allocations ---

    async def allocate(
        self,
        size: int,
        duration: int | None,
        *,
        reliability: Reliability = Reliability.STABLE,
        kind: AllocationKind = AllocationKind.BYTE_ARRAY,
        checksum: Checksum | None = None,
        rid: str = ANY_RESOURCE,
    ) -> CapabilitySet:
        """Leases `size` bytes for `duration` seconds; None or PERMANENT = without an end, which some depots
        shorten to their longest lease and others refuse with LeaseTooLong."""
        permanent = duration is None or duration == PERMANENT
        newer_only = checksum is not None or rid != ANY_RESOURCE
        for version in (1,) if newer_only else (1, 0) if self._version is None else (self._version,):
            seconds = _wire_duration(PERMANENT if duration is None else duration, version)
            command = ev.Allocate(size, seconds, reliability, kind, rid if version else "0", checksum, version=version)
            # A lost answer would leave an allocation behind; only one that ends by itself may be risked.
            reply = await self._try_version(command, ev.Allocated, repeatable=not permanent)
            if reply is not None:
                return reply.capabilities
        raise error_for(ErrorCode.UNKNOWN_FUNCTION)  # the depot is one of the oldest, and knows no such fields

    async def store(self, key: Key, data: Sequence[Buffer], meanwhile: Meanwhile | None = None) -> int:
        """Appends `data`, which must not change meanwhile; the number of bytes acknowledged. Never sent
        twice: after DepotUnreachable the allocation may hold all, some or none of them."""
        length = data.length if isinstance(data, Later) else sum(map(len, data))
        if not length:
            return 0
        command = ev.Store(key, length, version=0)
        return (await self._call(command, ev.Stored, data, repeatable=False, meanwhile=meanwhile)).length

    async def write(self, key: Key, offset: int, data: Sequence[Buffer]) -> int:
        length = sum(map(len, data))
        if not length:
            return 0
        return (await self._call(ev.Write(key, offset, length), ev.Stored, data)).length

    async def load(self, key: Key, offset: int, length: int) -> bytearray:
        """Exactly `length` bytes; ShortLoad when the allocation does not hold them."""
        into = unfilled(length)
        if length:
            with memoryview(into) as view:
                await self._load_into(ev.Load(key, offset, length, version=0), view)
        return into

    async def open(self, key: Key) -> tuple[int, int]:
        """A descriptor, now the caller's, to read the allocation with past the depot, and where it begins in that file.
        Only a depot of ours on this machine has it to give: NotOffered."""
        if self.address.path is None:
            raise error_for(ErrorCode.UNKNOWN_FUNCTION)
        came: list[int] = []
        try:
            reply = await self._call(ev.Open(key), ev.Opened, descriptors=came)
            return came.pop(), reply.offset
        except IndexError:
            raise error_for(ErrorCode.FILE_OPEN) from None
        finally:
            for descriptor in came:
                os.close(descriptor)

    async def probe(self, key: Key) -> AllocationStatus:
        """`key` is the manage key, as in the other commands below."""
        return _status(await self._call(ev.Probe(key, version=0), ev.Probed))

    async def probe_all(self, keys: Sequence[Key]) -> list[AllocationStatus | DepotError]:
        """As `probe`, of many at once."""
        replies = await self._carry_all([ev.Probe(key, version=0) for key in keys], repeatable=True)
        return [_status(reply) if isinstance(reply, ev.Probed) else refusal(reply) for reply in replies]

    async def incr(self, key: Key, counted: CapabilityKind = CapabilityKind.READ) -> None:
        await self._call(ev.Increment(key, counted, version=0), ev.Done, repeatable=False)

    async def decr(self, key: Key, counted: CapabilityKind = CapabilityKind.READ) -> None:
        """A read count of 0 deletes the allocation."""
        await self._call(ev.Decrement(key, counted, version=0), ev.Done, repeatable=False)

    async def decr_all(self, keys: Sequence[Key]) -> list[DepotError | None]:
        """Takes one from the read counts of many at once. After DepotUnreachable some of it may have been done."""
        replies = await self._carry_all([ev.Decrement(key, _READ, version=0) for key in keys], repeatable=False)
        return [None if isinstance(reply, ev.Done) else refusal(reply) for reply in replies]

    async def change(self, key: Key, *, max_size: int | None = None, duration: int | None = None) -> None:
        """`duration` in seconds from now, or PERMANENT. None = leave it, which costs a probe."""
        reliability = None
        if max_size is None or duration is None or self._version != 1:
            now = await self.probe(key)
            reliability = now.reliability  # the oldest depots want to hear the present one
            max_size = now.max_size if max_size is None else max_size
            left = PERMANENT if now.seconds_left is None else max(1, int(now.seconds_left))
            duration = left if duration is None else duration
        # A duration of -1 would leave the lease as it is.
        command = ev.Change(key, max_size, 0 if duration == PERMANENT else duration, reliability, version=0)
        try:
            await self._call(command, ev.Done)
        except BadRequest as error:
            if duration == PERMANENT and error.code == ErrorCode.INVALID_PARAMETER:
                raise error_for(ErrorCode.LONG_DURATION) from error  # by a depot without permanent leases
            raise

    async def truncate(self, key: Key, size: int) -> None:
        """Sets the maximum size, too. The oldest depots can do it only where no bytes are cut off."""
        try:
            await self._call(ev.Truncate(key, size), ev.Done)
        except NotOffered:
            if (await self.probe(key)).size > size:
                raise
            await self.change(key, max_size=size)

    # --- the depot ---

    async def status(self) -> DepotStatus:
        report = await self._inquire()
        max_lease = report.max_lease if report.max_lease >= 0 else None
        return DepotStatus(report.total, report.used, report.free, max_lease, report.version_text)


def _status(reply: ev.Probed) -> AllocationStatus:
    permanent = reply.seconds_left >= PERMANENT_SECONDS
    return AllocationStatus(
        read_count=reply.read_count,
        write_count=reply.write_count,
        size=reply.size,
        max_size=reply.max_size,
        seconds_left=None if permanent else float(reply.seconds_left),
        reliability=reply.reliability,
        kind=reply.kind,
    )


def _wire_duration(duration: int, version: int) -> int:
    return (0 if version == 0 else -1) if duration == PERMANENT else duration
