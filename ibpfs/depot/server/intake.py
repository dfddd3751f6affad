"""Getting one's turn and the room to store: from the key to a `Landing`."""

from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from ibpfs.depot.server.landing import Landing, Spans, kind_of_landing
from ibpfs.depot.server.shared import Gate, Shared
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.target import Target
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import AllocationKind


class Intake:
    """`flush` sends what a session owes its client before it waits for others."""

    def __init__(self, shared: Shared, flush: Callable[[], Awaitable[None]]) -> None:
        self._shared = shared
        self._flush = flush

    def landing(
        self,
        store: AllocationStore,
        target: Target,
        ranges: Spans | None,
        length: int,
        *,
        limit: float,
        wait: float,
    ) -> "_Taken":
        """`ranges` None = append. `limit` bounds waiting for one's turn, `wait` that for room in a FIFO."""
        return _Taken(self, store, target, ranges, length, limit, wait)

    async def take_turn(self, target: Target, ranges: Spans | None, length: int, limit: float, wait: float) -> Gate:
        """For `landing`: the gate at which it is the caller's turn until he releases it."""
        gate = self._shared.gate(target.allocation)
        await self._take_turn(gate, target, limit, wait)
        try:
            await self._wait_for_room(gate, target, length, wait)
            target.require_writable()  # much can have happened while we waited
            _require_fit(target, ranges, length)
        except BaseException:
            gate.writing.release()
            raise
        return gate

    async def _take_turn(self, gate: Gate, target: Target, limit: float, wait: float) -> None:
        try:
            gate.writing.acquire_nowait()
            return
        except trio.WouldBlock:
            await self._flush()
        is_fifo = target.allocation.kind is AllocationKind.FIFO
        with trio.move_on_after(wait if is_fifo else limit):
            await gate.writing.acquire()
            return
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT if is_fifo else ErrorCode.SERVER_TIMEOUT)

    async def _wait_for_room(self, gate: Gate, target: Target, length: int, wait: float) -> None:
        allocation = target.allocation
        if allocation.kind is not AllocationKind.FIFO or allocation.size + length <= allocation.max_size:
            return
        await self._flush()
        with trio.move_on_after(wait):
            while allocation.size + length > allocation.max_size and not target.gone:
                await gate.wait()
            return
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)


def _needs_turn(target: Target, ranges: Spans | None) -> bool:
    """Whoever only replaces bytes of a plain array disturbs nobody."""
    if ranges is None or target.allocation.checksum is not None:
        return True
    end = max((offset + length for offset, length in ranges), default=0)
    return target.start + end > target.allocation.size


def _require_fit(target: Target, ranges: Spans | None, length: int) -> None:
    kind = target.allocation.kind
    if ranges is None:
        replaces = kind.is_queue or kind is AllocationKind.BUFFER
        if length > target.max_size - (0 if replaces else target.size):
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        return
    if kind.is_queue:
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
    if any(offset + span > target.max_size for offset, span in ranges):
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)


class _Taken:
    """The `async with` of a landing, which is abandoned unless it was committed. No generators: one
    in another cost 2 us of each STORE."""

    __slots__ = ("_gate", "_intake", "_landing", "_length", "_limits", "_ranges", "_store", "_target")

    def __init__(
        self, intake: Intake, store: AllocationStore, target: Target, ranges: Spans | None, length: int, limit: float,
        wait: float,
    ) -> None:  # fmt: skip
        self._intake, self._store, self._target = intake, store, target
        self._ranges, self._length, self._limits = ranges, length, (limit, wait)
        self._gate: Gate | None = None

    async def __aenter__(self) -> Landing:
        target, ranges, length = self._target, self._ranges, self._length
        target.require_writable()
        _require_fit(target, ranges, length)
        if _needs_turn(target, ranges):
            self._gate = await self._intake.take_turn(target, ranges, length, *self._limits)
        try:
            self._landing = kind_of_landing(self._store, target, ranges, length)
        except BaseException:
            self._leave()
            raise
        return self._landing

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._landing.abandon()
            if self._gate is not None and error is None:
                self._gate.tell()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._gate is not None:
            self._gate.writing.release()
