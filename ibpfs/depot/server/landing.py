"""Where the bytes of one STORE or WRITE go, and what makes them part of the allocation at its end.

Nothing that was there is lost before the new bytes are: until `commit` a crash leaves the allocation as it was, but
for bytes that a WRITE replaces.
"""

import os
from pathlib import Path
from typing import Any

import trio

from ibpfs.depot.server import digests
from ibpfs.depot.server.allocation import HEADER_BYTES, Allocation
from ibpfs.depot.server.laying import lay_ahead
from ibpfs.depot.server.scan import NEW
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.syncing import SyncThreads, Unsynced
from ibpfs.depot.server.target import Target
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import AllocationKind
from ibpfs.ext4 import lay_out
from ibpfs.writeback import start_writeback

WRITEBACK_EVERY = 2 << 20
#: Bytes that get their blocks together, of stretches that are not so short.
_BLOCKS, _SHORT = 4 << 20, 64 << 10
_INLINE_DIGESTS = 1 << 20  # beyond so many bytes a thread makes them

Spans = list[tuple[int, int]]


def ring_spans(allocation: Allocation, position: int, length: int) -> Spans:
    """Where `length` bytes from `position` on lie in a queue's ring."""
    position %= allocation.ring
    first = min(length, allocation.ring - position)
    return [(position, first)] if first == length else [(position, first), (0, length - first)]


class Landing:
    """Into a byte array. `spans`: where the bytes go, one after another; offsets in the data of the file."""

    def __init__(self, store: AllocationStore, target: Target, spans: Spans, *, appends: bool) -> None:
        self.allocation = target.allocation
        self._store = store
        self._target = target
        self._spans = spans
        self._at = 0  # which span, and how far in it
        self._inside = 0
        self._written_back = self._has_blocks = 0  # in the span, up to where
        self._appends_at = self.allocation.size if appends else None
        self._end = max((offset + length for offset, length in spans if length), default=0)
        self._grows = self._end > self.allocation.size
        self.fd = self._open()

    def _open(self) -> int:
        fd = self._store.open(self.allocation)
        try:
            self._mark_stale(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def write(self, data: memoryview) -> None:
        """Raises NoRoom when the disk is full."""
        while data:
            offset, length = self._spans[self._at]
            piece = data[: length - self._inside]
            if self._inside + len(piece) > self._has_blocks and length > _SHORT:
                self._lay_out(offset, length)
            self._store.write_data(self.fd, piece, offset + self._inside)
            self._inside += len(piece)
            data = data[len(piece) :]
            if self._inside == length:
                self._write_back(offset, length)
                self._at, self._inside, self._written_back, self._has_blocks = self._at + 1, 0, 0, 0
        if self._inside - self._written_back >= WRITEBACK_EVERY:
            self._write_back(self._spans[self._at][0], self._inside)

    def _lay_out(self, offset: int, length: int) -> None:
        ahead = min(_BLOCKS, length - self._inside)
        lay_out(self.fd, HEADER_BYTES + offset + self._inside, ahead)
        self._has_blocks = self._inside + ahead

    def _write_back(self, offset: int, inside: int) -> None:
        if self.allocation.stable and inside - self._written_back >= WRITEBACK_EVERY:
            start_writeback(self.fd, HEADER_BYTES + offset + self._written_back, inside - self._written_back)
        self._written_back = inside

    async def commit(self, unsynced: Unsynced, syncs: SyncThreads) -> None:
        """Hands the descriptor over."""
        self._target.require_writable()
        if self._appends_at is not None and self.allocation.size != self._appends_at:
            raise error_for(ErrorCode.WOULD_DAMAGE_DATA)  # truncated while we appended
        if self.allocation.checksum is not None:
            if self._end > self.allocation.max_size:
                raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
            await refresh_digests(self._store, self.allocation, self.fd, unsynced, end=self._end)
        else:
            self._store.keep_data(self.allocation, self.fd, self._end)
            if self._appends_at is not None:
                lay_ahead(self.allocation, self.fd, self._end - self._appends_at)
        self._hand_over(unsynced)

    def _hand_over(self, unsynced: Unsynced) -> None:
        fd, self.fd = self.fd, -1
        self._store.hand_over(self.allocation, fd, unsynced)

    def abandon(self) -> None:
        """What was written behind the size is not to be. After `commit` it does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                if self._grows:  # only then is it our turn, and nobody else writes behind the size
                    self._store.drop_data(self.allocation, fd)
            finally:
                os.close(fd)

    def _mark_stale(self, fd: int) -> None:
        checksum, written = self.allocation.checksum, [span for span in self._spans if span[1]]
        if checksum is None or not written:
            return
        touched = digests.touched(checksum, self.allocation.size, written)
        self._store.rewrite(self.allocation, fd, stale=digests.widened(self.allocation.stale, touched))


class QueueLanding(Landing):
    """Behind the newest byte of a FIFO or a circular queue; the latter forgets its oldest bytes."""

    def __init__(self, store: AllocationStore, target: Target, length: int) -> None:
        allocation = target.allocation
        self._length = length
        self._tail = allocation.head + allocation.size
        super().__init__(store, target, ring_spans(allocation, self._tail, length), appends=False)
        self._grows = False

    async def commit(self, unsynced: Unsynced, syncs: SyncThreads) -> None:
        self._target.require_writable()
        allocation = self.allocation
        size = min(allocation.max_size, allocation.size + self._length)
        head = (self._tail + self._length - size) % allocation.ring
        self._store.rewrite(allocation, self.fd, size=size, head=head)
        self._hand_over(unsynced)


class BufferLanding(Landing):
    """In place of all that a BUFFER holds: a new file, durable before it takes the name of the old one."""

    def __init__(self, store: AllocationStore, target: Target, length: int) -> None:
        self._length = length
        super().__init__(store, target, [(0, length)], appends=False)
        self._grows = False

    def _open(self) -> int:
        self._path = self._store.path(self.allocation)
        fd = os.open(self._path + NEW, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, HEADER_BYTES)
        except BaseException:
            os.close(fd)
            Path(self._path + NEW).unlink()
            raise
        return fd

    async def commit(self, unsynced: Unsynced, syncs: SyncThreads) -> None:
        if self.allocation.stable:
            unsynced_file = Unsynced()
            unsynced_file.take(os.dup(self.fd))
            await syncs.settle(unsynced_file)
        self._target.require_writable()
        if self._length > self.allocation.max_size:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        self._store.replace_file(self.allocation, self.fd, self._path + NEW, self._length, unsynced)
        self._hand_over(unsynced)

    def abandon(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            Path(self._path + NEW).unlink(missing_ok=True)


async def refresh_digests(
    store: AllocationStore, allocation: Allocation, fd: int, unsynced: Unsynced, *, end: int = 0
) -> None:
    """Makes stale digests anew; `end`: where data that are not part of the allocation yet will end."""
    checksum = allocation.checksum
    assert checksum is not None
    before, stale = allocation.size, allocation.stale
    size = max(before, end)
    kept = digests.open_digests(store.path(allocation))
    try:
        await in_thread_if_long(
            (stale[1] - stale[0]) * checksum.block_size,
            lambda check: digests.refresh(fd, kept, checksum, stale, size, check),
        )
        if allocation.gone:
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        if allocation.size != before:  # truncated meanwhile
            raise error_for(ErrorCode.WOULD_DAMAGE_DATA)
        store.rewrite(allocation, fd, size=size, stale=(0, 0))
    except BaseException:
        os.close(kept)
        raise
    store.hand_over(allocation, kept, unsynced)


async def in_thread_if_long(length: int, work: Any) -> Any:
    """`work` gets a function that it calls now and then, and that raises when nobody waits for it any more."""
    if length <= _INLINE_DIGESTS:
        return work(lambda: None)
    return await trio.to_thread.run_sync(lambda: work(trio.from_thread.check_cancelled))


def kind_of_landing(
    store: AllocationStore, target: Target, ranges: Spans | None, length: int
) -> Landing:
    """`ranges` None = append. Whoever calls has the turn that this needs."""
    kind = target.allocation.kind
    if kind.is_queue:
        return QueueLanding(store, target, length)
    if ranges is None:
        if kind is AllocationKind.BUFFER:
            return BufferLanding(store, target, length)
        return Landing(store, target, [(target.start + target.size, length)], appends=True)
    return Landing(store, target, [(target.start + offset, span) for offset, span in ranges], appends=False)
