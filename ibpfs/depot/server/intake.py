"""Getting one's turn and the room to store: from the key to a `Landing`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

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

    @asynccontextmanager
    async def landing(
        self,
        store: AllocationStore,
        target: Target,
        ranges: Spans | None,
        length: int,
        *,
        limit: float,
        wait: float,
    ) -> AsyncIterator[Landing]:
        """`ranges` None = append. `limit` bounds waiting for one's turn, `wait` that for room in a FIFO."""
        target.require_writable()
        _require_fit(target, ranges, length)
        if not _needs_turn(target, ranges):
            async with _abandoned_on_error(kind_of_landing(store, target, ranges, length)) as landing:
                yield landing
            return
        gate = self._shared.gate(target.allocation)
        await self._take_turn(gate, target, limit, wait)
        try:
            await self._wait_for_room(gate, target, length, wait)
            target.require_writable()  # much can have happened while we waited
            _require_fit(target, ranges, length)
            async with _abandoned_on_error(kind_of_landing(store, target, ranges, length)) as landing:
                yield landing
            gate.tell()
        finally:
            gate.writing.release()

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


@asynccontextmanager
async def _abandoned_on_error(landing: Landing) -> AsyncIterator[Landing]:
    try:
        yield landing
    finally:
        landing.abandon()
