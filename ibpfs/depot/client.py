"""A depot as seen by those who keep bytes there: one coroutine per command, values and exceptions back.

Knows allocations and leases, nothing of files. Deadlines belong to the caller: a cancelled command closes
its connection. Raises only DepotError and DepotUnreachable.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias, TypeVar

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilityKind, CapabilitySet, Key
from ibpfs.depot.pool import ConnectionPool
from ibpfs.depot.protocol_commands import APPEND, AliasStatus, ProtocolCommands
from ibpfs.depot.stream import SILENCE_LIMIT, Buffer, DepotStream, ShortLoad, Unanswered
from ibpfs.depot.wire import (
    PERMANENT_SECONDS,
    AllocationKind,
    BadRequest,
    Checksum,
    DepotError,
    DepotUnreachable,
    ErrorCode,
    NotOffered,
    OutOfSockets,
    Reliability,
    error_for,
)
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.protocol import ANY_RESOURCE

__all__ = ["APPEND", "PERMANENT", "AliasStatus", "AllocationStatus", "DepotClient", "DepotStatus", "ShortLoad"]

PERMANENT: Final = -1  # as a duration: a lease without an end
_CONNECTION_TRIES: Final = 4
_LONGEST_BACKOFF: Final = 5.0
_MOST_AHEAD: Final = 64  # commands that wait for their reply on one connection: some kilobytes, in every buffer
_READ: Final = CapabilityKind.READ
_Feature: TypeAlias = tuple[type[ev.Command], bool]  # a command, and whether with digests
#: What every depot knows.
_ALWAYS_THERE: Final = frozenset[_Feature]((kind, False) for kind in (
    ev.Allocate, ev.Store, ev.Load, ev.Probe, ev.Increment, ev.Decrement, ev.Change, ev.StatusInquire, ev.Send,
))  # fmt: skip

_Reply = TypeVar("_Reply", bound=ev.Reply)
_log = logging.getLogger(__name__)


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
    """One depot. Commands may run side by side, each on a connection of its own.

    With `fingerprint`, through TLS with the certificate that has this SHA-256; an ibps address without one takes
    the certificate of its first connection, and no other from then on.
    """

    def __init__(
        self,
        address: Address,
        *,
        fingerprint: bytes | None = None,
        max_connections: int = 8,
        silence_limit: float = SILENCE_LIMIT,
    ) -> None:
        self.address = address
        self._pin = fingerprint
        self._silence_limit = silence_limit
        self._pool = ConnectionPool(self._connect, max_connections)
        self._version: int | None = None  # None until the depot has answered in one
        self._missing: set[_Feature] = set()  # what it does not offer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

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

    async def store(self, key: Key, data: Sequence[Buffer]) -> int:
        """Appends `data`, which must not change meanwhile; the number of bytes acknowledged. Never sent
        twice: after DepotUnreachable the allocation may hold all, some or none of them."""
        length = sum(map(len, data))
        if not length:
            return 0
        return (await self._call(ev.Store(key, length, version=0), ev.Stored, data, repeatable=False)).length

    async def write(self, key: Key, offset: int, data: Sequence[Buffer]) -> int:
        length = sum(map(len, data))
        if not length:
            return 0
        return (await self._call(ev.Write(key, offset, length), ev.Stored, data)).length

    async def load(self, key: Key, offset: int, length: int) -> bytearray:
        """Exactly `length` bytes; ShortLoad when the allocation does not hold them."""
        into = bytearray(length)
        if length:
            with memoryview(into) as view:
                await self._load_into(ev.Load(key, offset, length, version=0), view)
        return into

    async def probe(self, key: Key) -> AllocationStatus:
        """`key` is the manage key, as in the other commands below."""
        return _status(await self._call(ev.Probe(key, version=0), ev.Probed))

    async def probe_all(self, keys: Sequence[Key]) -> list[AllocationStatus | DepotError]:
        """As `probe`, of many at once."""
        replies = await self._carry_all([ev.Probe(key, version=0) for key in keys], repeatable=True)
        return [_status(reply) if isinstance(reply, ev.Probed) else _refusal(reply) for reply in replies]

    async def incr(self, key: Key, counted: CapabilityKind = CapabilityKind.READ) -> None:
        await self._call(ev.Increment(key, counted, version=0), ev.Done, repeatable=False)

    async def decr(self, key: Key, counted: CapabilityKind = CapabilityKind.READ) -> None:
        """A read count of 0 deletes the allocation."""
        await self._call(ev.Decrement(key, counted, version=0), ev.Done, repeatable=False)

    async def decr_all(self, keys: Sequence[Key]) -> list[DepotError | None]:
        """Takes one from the read counts of many at once. After DepotUnreachable some of it may have been done."""
        replies = await self._carry_all([ev.Decrement(key, _READ, version=0) for key in keys], repeatable=False)
        return [None if isinstance(reply, ev.Done) else _refusal(reply) for reply in replies]

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
        # Hanging up on version 1 may have been chance: it is asked again each time.
        for version in (1,) if self._version == 1 else (1, 0):
            reply = await self._try_version(ev.StatusInquire(version=version), ev.StatusReport)
            if reply is not None:
                max_lease = reply.max_lease if reply.max_lease >= 0 else None
                return DepotStatus(reply.total, reply.used, reply.free, max_lease, reply.version_text)
        raise AssertionError("unreachable")

    def pin(self, fingerprint: bytes) -> None:
        """Through TLS with this certificate from now on."""
        self._pin = fingerprint
        self._pool.drop()

    def drop_connections(self) -> None:
        """After a suspend: nothing waits on a connection that may be dead."""
        self._pool.drop()

    async def aclose(self) -> None:
        self._pool.close()
        await trio.lowlevel.checkpoint()

    # --- how a command is carried ---

    async def _connect(self) -> DepotStream:
        stream = await DepotStream.connect(self.address, pin=self._pin, silence_limit=self._silence_limit)
        self._pin = self._pin or stream.fingerprint
        return stream

    async def _try_version(
        self, command: ev.Command, expected: type[_Reply], *, repeatable: bool = True
    ) -> _Reply | None:
        """None: the depot hung up on version 1, as the oldest ones do; they also take one command per
        connection."""
        try:
            reply = await self._call(command, expected, repeatable=repeatable)
        except Unanswered:
            if command.version == 1 and self._version != 1:
                return None
            raise
        self._learn(command.version)
        return reply

    async def _is_one_of_the_oldest(self) -> bool:
        if self._version is None:
            await self.status()
        return self._version == 0

    def _learn(self, version: int) -> None:
        self._version = version
        self._pool.keep_connections(version > 0)

    async def _load_into(self, command: ev.Load, into: memoryview) -> None:
        reply = await self._carry(command, (), into, repeatable=True)
        if isinstance(reply, ev.Failed) and reply.code in self._nothing_there:
            raise ShortLoad
        _expect(reply, ev.Loading)

    @property
    def _nothing_there(self) -> tuple[int, ...]:
        """What a LOAD behind the last byte is answered with; the oldest depots have waited for more."""
        waited = (ErrorCode.SERVER_TIMEOUT,) if self._version == 0 else ()
        return (ErrorCode.WOULD_EXCEED_LIMIT, *waited)

    async def _call(
        self,
        command: ev.Command,
        expected: type[_Reply],
        data: Sequence[Buffer] = (),
        into: memoryview | None = None,
        *,
        repeatable: bool = True,
        patience: float = 0.0,
        stepwise: bool = False,
    ) -> _Reply:
        feature = _feature(command)
        if feature in self._missing:
            raise error_for(ErrorCode.UNKNOWN_FUNCTION)
        try:
            reply = await self._carry(
                command, data, into, repeatable=repeatable, patience=patience, stepwise=stepwise, may_be_short=True
            )
        except Unanswered:
            if feature in _ALWAYS_THERE or not await self._is_one_of_the_oldest():
                raise
            reply = ev.Failed(ErrorCode.UNKNOWN_FUNCTION)  # the oldest depots hang up instead of saying so
        if isinstance(reply, ev.Failed) and reply.code == ErrorCode.UNKNOWN_FUNCTION and feature not in _ALWAYS_THERE:
            self._missing.add(feature)
        reply = _expect(reply, expected)
        if isinstance(reply, ev.Allocated) and self.address.secure:
            return replace(reply, capabilities=reply.capabilities.secured())
        if isinstance(reply, ev.Loading) and isinstance(command, ev.VecRead) and reply.length < command.length:
            raise ShortLoad
        return reply

    async def _carry(
        self,
        command: ev.Command,
        data: Sequence[Buffer],
        into: memoryview | None,
        *,
        repeatable: bool,
        patience: float = 0.0,
        stepwise: bool = False,
        may_be_short: bool = False,
    ) -> ev.Reply:
        # A depot of unknown age may be about to close the connection, as the oldest do after each reply.
        fresh = self._version is None and not repeatable
        for tries_left in reversed(range(_CONNECTION_TRIES)):
            is_new = True
            try:
                async with self._pool.connection(fresh=fresh) as (stream, is_new):
                    wait = stepwise or self._version == 0
                    reply = await stream.transact(
                        command, data, into, wait_for_ready=wait, may_be_short=may_be_short, patience=patience
                    )
                    if command.version == 1 and self._version != 1:
                        self._learn(1)
                    return reply
            except Unanswered as lost:
                if is_new:
                    raise
                # A kept connection may have been closed just before our bytes came, or after.
                if not repeatable:
                    raise DepotUnreachable(str(lost)) from lost
            except OutOfSockets as busy:
                # Instead of an answer: the depot has not read the command.
                if is_new:
                    await self._back_off(busy, tries_left)
            fresh = True
        raise DepotUnreachable(f"{self.address}: the depot keeps closing the connection")

    async def _carry_all(self, commands: Sequence[ev.Command], *, repeatable: bool) -> list[ev.Reply]:
        """One reply each. Many lines go out before the first reply, to depots that keep connections."""
        replies: list[ev.Reply] = []
        while rest := commands[len(replies) : len(replies) + _MOST_AHEAD]:
            before = len(replies)
            if self._version == 1:
                try:
                    async with self._pool.connection() as (stream, _):
                        await stream.transact_all(rest, replies)
                except OutOfSockets:
                    pass  # the depot has not read those that it did not answer
                except Unanswered as lost:
                    if not repeatable:
                        raise DepotUnreachable(str(lost)) from lost
            if len(replies) == before:
                replies.append(await self._carry(rest[0], (), None, repeatable=repeatable))
        return replies

    async def _back_off(self, busy: OutOfSockets, tries_left: int) -> None:
        if not tries_left or busy.backoff > _LONGEST_BACKOFF:
            raise busy
        _log.debug("%s: out of sockets, again in %.2f s", self.address, busy.backoff)
        await trio.sleep(max(busy.backoff, 0.05))


def _feature(command: ev.Command) -> _Feature:
    return type(command), getattr(command, "checksum", None) is not None


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


def _refusal(reply: ev.Reply) -> DepotError:
    assert isinstance(reply, ev.Failed)
    return error_for(reply.code)


def _wire_duration(duration: int, version: int) -> int:
    return (0 if version == 0 else -1) if duration == PERMANENT else duration


def _expect(reply: ev.Reply, expected: type[_Reply]) -> _Reply:
    if isinstance(reply, ev.Failed):
        raise error_for(reply.code)
    assert isinstance(reply, expected)
    return reply
