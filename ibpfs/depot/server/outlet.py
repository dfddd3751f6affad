"""Where the bytes of one LOAD come from, and how they get to a socket or to another allocation."""

import logging
import os
import tempfile
from collections.abc import Iterator

import trio

from ibpfs.depot.server.allocation import HEADER_BYTES, Allocation
from ibpfs.depot.server.landing import Spans, ring_spans
from ibpfs.depot.server.peer import Peer
from ibpfs.depot.server.shared import Gate
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.server.target import Target
from ibpfs.depot.wire.digests import Checksum, Framer
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import AllocationKind

_log = logging.getLogger(__name__)

INLINE = 64 * 1024  # below it, copying into memory beats sendfile's extra system calls
BATCH = 256 * 1024
_PIECE = 256 * 1024
_MEMORY = 64 * 1024


class Source:
    """`length` bytes in the spans of a file; offsets count from the file's beginning. Owns the descriptor."""

    def __init__(self, fd: int, spans: Spans) -> None:
        self.fd = fd
        self.spans = spans
        self.length = sum(length for _, length in spans)

    def pieces(self, limit: int = _PIECE) -> Iterator[bytes]:
        for offset, length in self.spans:
            end = offset + length
            while offset < end:
                piece = os.pread(self.fd, min(limit, end - offset), offset)
                if not piece:
                    raise error_for(ErrorCode.FILE_READ)
                yield piece
                offset += len(piece)

    async def pour(self, peer: Peer, limit: float, checksum: Checksum | None = None) -> None:
        """To a socket, with digests between the bytes if `checksum` says so."""
        if checksum is not None:
            await self._pour_framed(peer, limit, checksum)
            return
        waiting = bytearray()
        for offset, length in self.spans:
            if length <= INLINE:
                waiting += os.pread(self.fd, length, offset)
            if waiting and (length > INLINE or len(waiting) >= BATCH):
                await peer.send(waiting, limit)
                waiting = bytearray()
            if length > INLINE:
                await peer.send_file(self.fd, offset, length, limit)
        if waiting:
            await peer.send(waiting, limit)

    async def _pour_framed(self, peer: Peer, limit: float, checksum: Checksum) -> None:
        framer = Framer(checksum)
        # With its digests a piece is no longer than without: blocks of one byte must not cost memory and time.
        share = checksum.block_size / (checksum.block_size + 2 * checksum.digest_size)
        for piece in self.pieces(max(1, int(_PIECE * share))):
            await peer.send(framer.feed(piece), limit)
        await peer.send(framer.finish(), limit)

    def finish(self, unsynced: Unsynced) -> None:
        """All bytes have gone where they should."""

    def close(self) -> None:
        os.close(self.fd)


class FifoSource(Source):
    """The oldest bytes of a FIFO. They leave it when they have gone out whole; until then it is this reader's turn."""

    def __init__(self, store: AllocationStore, allocation: Allocation, gate: Gate, length: int) -> None:
        super().__init__(store.open(allocation), _in_file(ring_spans(allocation, allocation.head, length)))
        self._store = store
        self._allocation = allocation
        self._gate = gate

    def finish(self, unsynced: Unsynced) -> None:
        _take(self._store, self._allocation, self.length, unsynced)
        self._gate.tell()

    def close(self) -> None:
        self._gate.reading.release()
        super().close()


def _take(store: AllocationStore, allocation: Allocation, length: int, unsynced: Unsynced) -> None:
    if allocation.gone:
        return
    head = (allocation.head + length) % allocation.ring
    store.update(allocation, unsynced, head=head, size=allocation.size - length)


def open_ranges(store: AllocationStore, target: Target, ranges: Spans) -> Source:
    """All or nothing."""
    for offset, length in ranges:
        if offset + length > target.size:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    start = HEADER_BYTES + target.start
    spans = [(start + offset, length) for offset, length in ranges if length]
    fd = store.open(target.allocation)
    # Found out now it can be refused; in the middle of the bytes all that is left is to hang up.
    if os.fstat(fd).st_size < max((offset + length for offset, length in spans), default=0):
        os.close(fd)
        _log.warning("file is shorter than its header says allocation=%s", target.allocation.label)
        raise error_for(ErrorCode.FILE_READ)
    return Source(fd, spans)


async def open_queue(
    store: AllocationStore, target: Target, gate: Gate, length: int, wait: float, unsynced: Unsynced
) -> Source:
    """Up to `length` of the oldest bytes: waits `wait` seconds for all of them, then takes what there is."""
    allocation = target.allocation
    deadline = trio.current_time() + wait
    await _take_turn(gate, deadline)
    try:
        await _fill_up(target, gate, min(length, allocation.max_size), deadline)
        if target.gone:
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        if length and not allocation.size:
            raise error_for(ErrorCode.GENERIC)
        length = min(length, allocation.size)
        if allocation.kind is AllocationKind.FIFO:
            return FifoSource(store, allocation, gate, length)
        source = _copied(store, allocation, length, unsynced)
    except BaseException:
        gate.reading.release()
        raise
    gate.reading.release()
    return source


async def _take_turn(gate: Gate, deadline: float) -> None:
    try:
        gate.reading.acquire_nowait()
        return
    except trio.WouldBlock:
        with trio.move_on_at(deadline):
            await gate.reading.acquire()
            return
    raise error_for(ErrorCode.GENERIC)


async def _fill_up(target: Target, gate: Gate, length: int, deadline: float) -> None:
    with trio.move_on_at(deadline):
        while target.allocation.size < length and not target.gone:
            await gate.wait()


def _copied(store: AllocationStore, allocation: Allocation, length: int, unsynced: Unsynced) -> Source:
    """Of a circular queue, whose writers wait for nobody: the bytes are taken at once, and kept apart."""
    fd = store.open(allocation)
    original = Source(fd, _in_file(ring_spans(allocation, allocation.head, length)))
    try:
        copy = _scratch(store, length)
        try:
            for piece in original.pieces():
                os.write(copy, piece)
            _take(store, allocation, length, unsynced)
        except BaseException:
            os.close(copy)
            raise
    finally:
        original.close()
    return Source(copy, [(0, length)] if length else [])


def _scratch(store: AllocationStore, length: int) -> int:
    if length <= _MEMORY:
        return os.memfd_create("taken")
    with tempfile.TemporaryFile(dir=store.root) as file:
        return os.dup(file.fileno())


def _in_file(spans: Spans) -> Spans:
    return [(HEADER_BYTES + offset, length) for offset, length in spans if length]
