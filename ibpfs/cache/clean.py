"""The clean cache: sealed bytes of segments on the local disk, in blocks of 1 MiB; the longest unused go first.

A block file `XX/SEGMENT.BLOCK` holds the first bytes of its block, as many as there were. Knows numbers and bytes: no
key, no slice, no depot. What it returns is unverified; whoever opens the frames evicts what does not open. All methods
may be called from any thread, and none raises because of the disk: a cache that cannot keep bytes does not keep them.
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from ibpfs.ext4 import spread_directories

_log = logging.getLogger(__name__)

BLOCK = 1024 * 1024

#: Read without a thread where the kernel cannot say whether that would wait for the disk (tmpfs): a frame.
SMALL_READ = 72 * 1024

#: A block's file time says when it was last used, to this many seconds: it is the order after a restart.
_TOUCH_AFTER = 600.0
#: More pieces than this are joined before they are written (IOV_MAX is 1024).
_MANY_PIECES = 512
_PAGE = 4096

Buffer = bytes | bytearray | memoryview
Key = tuple[int, int]


def by_block(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut [start, stop) of a segment at block boundaries: block number, and the range inside that block."""
    while start < stop:
        number, begin = divmod(start, BLOCK)
        end = min(BLOCK, begin + stop - start)
        yield number, begin, end
        start += end - begin


class _Block:
    """One cached block: how many of its first bytes are here, and when its file's time was last set."""

    __slots__ = ("length", "touched")

    def __init__(self, length: int, touched: float) -> None:
        self.length = length
        self.touched = touched


class CleanCache:
    """Blocks of one volume's segments in `directory` (its own): at most `limit` bytes, those being written included.

    At least the fraction `min_free` of the disk stays free. What an earlier process left there is found again.
    """

    def __init__(self, directory: Path, limit: int, min_free: float) -> None:
        self._directory = directory
        self._prefix = os.fspath(directory)
        self._limit = limit
        self._min_free = min_free
        self._lock = threading.Lock()  # over index and names; never held while bytes are read or written
        self._blocks: OrderedDict[Key, _Block] = OrderedDict()
        self._segments: dict[int, set[int]] = {}
        self._used = 0
        self._reserved = 0
        self._temporary = count()
        self._warned = False
        self._scan()

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def used(self) -> int:
        """Bytes on the disk, in whole pages."""
        return self._used

    def covers(self, segment: int, start: int, stop: int) -> bool:
        """Whether all of [start, stop) is thought to be here."""
        return not self.missing(segment, start, stop)

    def missing(self, segment: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Whole blocks (as ranges of the segment) to insert before [start, stop) can be read.

        The last one reaches to its block's end, which may lie beyond what the segment holds today.
        """
        return [
            (number * BLOCK, (number + 1) * BLOCK)
            for number, _, end in by_block(start, stop)
            if (block := self._blocks.get((segment, number))) is None or block.length < end
        ]

    def read_now(self, segment: int, start: int, stop: int) -> Buffer | None:
        """Return [start, stop) if it is here and the disk need not be waited for, else None.

        Measured: 5 us for a frame, 30 us for a block, against 80 us for a thread's hop alone.
        """
        return self._read(segment, start, stop, wait=False)

    def read(self, segment: int, start: int, stop: int) -> Buffer | None:
        """Return [start, stop), all of it, or None when it is not all here. May wait for the disk."""
        return self._read(segment, start, stop, wait=True)

    def insert(self, segment: int, start: int, data: Buffer) -> bool:
        """Keep bytes that begin at a block's boundary. False: not all of them are kept. About 1 ms for a block."""
        if start % BLOCK:
            raise ValueError("a block is kept from its first byte on")
        return self.append(segment, start, [data])

    def append(self, segment: int, start: int, pieces: Sequence[Buffer]) -> bool:
        """Keep bytes just stored at `start`. False: not all are kept, because they continue no block that is here."""
        views = [memoryview(piece) for piece in pieces if len(piece)]
        if len(views) > _MANY_PIECES:
            views = [memoryview(b"".join(views))]
        kept = True
        for number, begin, end in by_block(start, start + sum(map(len, views))):
            part, views = _split(views, end - begin)
            kept = self._keep((segment, number), part, begin, end) and kept
        return kept

    def evict(self, segment: int, start: int, stop: int) -> None:
        """Forget the blocks that hold [start, stop)."""
        for number, _, _ in by_block(start, stop):
            self._lose((segment, number))

    def forget(self, segment: int) -> None:
        """Forget a whole segment."""
        for number in list(self._segments.get(segment, ())):
            self._lose((segment, number))

    def forget_above(self, segment: int) -> None:
        """Forget segments with a higher number: a power cut took them, and the number will be another one's."""
        for number in [one for one in self._segments if one > segment]:
            self.forget(number)

    def clear(self) -> None:
        """Forget everything. Takes seconds for a large cache."""
        for key in list(self._blocks):
            self._lose(key)

    def _read(self, segment: int, start: int, stop: int, *, wait: bool) -> Buffer | None:
        pieces: list[Buffer] = []
        for number, begin, end in by_block(start, stop):
            piece = self._read_block((segment, number), begin, end, wait=wait)
            if piece is None:
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_block(self, key: Key, begin: int, end: int, *, wait: bool) -> Buffer | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is None or block.length < end:
                return None
            self._blocks.move_to_end(key)
        try:
            piece = self._read_file(self._path(key), block, begin, end, wait=wait)
        except BlockingIOError:
            return None
        except OSError as error:
            _log.info("cached block %d.%d cannot be read: %s", *key, error.strerror)
            piece = b""
        if len(piece) == end - begin:
            return piece
        self._lose(key, block)
        return None

    def _read_file(self, path: str, block: _Block, begin: int, end: int, *, wait: bool) -> Buffer:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            now = time.time()
            if now - block.touched > _TOUCH_AFTER:
                block.touched = now
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
            return os.pread(descriptor, end - begin, begin) if wait else _read_at_hand(descriptor, begin, end)
        finally:
            os.close(descriptor)

    def _keep(self, key: Key, pieces: Sequence[Buffer], begin: int, end: int) -> bool:
        block = self._blocks.get(key)
        present = block.length if block is not None else 0
        if present >= end:
            return True
        if begin not in (0, present):
            return False
        try:
            cost = _pages(end) - _pages(begin)
            if not self._reserve(cost):
                return False
            try:
                return self._write(key, block, pieces, begin, end)
            finally:
                with self._lock:
                    self._reserved -= cost
        except OSError as error:
            self._refuse(error.strerror or str(error))
            return False

    def _write(self, key: Key, block: _Block | None, pieces: Sequence[Buffer], begin: int, end: int) -> bool:
        if begin and block is not None:
            return self._extend(key, block, pieces, begin, end)
        path = Path(self._path(key))
        temporary = path.with_name(f"{path.name}.{next(self._temporary)}.tmp")
        try:
            _write_new(temporary, pieces, end)
            with self._lock:
                temporary.rename(path)
                self._drop(key)
                self._add(key, _Block(end, time.time()))
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return True

    def _extend(self, key: Key, block: _Block, pieces: Sequence[Buffer], begin: int, end: int) -> bool:
        try:
            _write_behind(self._path(key), pieces, begin, end)
        except FileNotFoundError:  # evicted since we looked, or removed under us
            self._lose(key, block)
            return False
        return self._grown(key, block, begin, end)

    def _grown(self, key: Key, block: _Block, begin: int, end: int) -> bool:
        with self._lock:
            # Evicted or replaced meanwhile: the bytes went into a file that has no name any more.
            if self._blocks.get(key) is not block or block.length != begin:
                return False
            self._drop(key)
            block.length = end
            self._add(key, block)
            return True

    def _reserve(self, cost: int) -> bool:
        """Make room for `cost` bytes, at the price of the blocks that were not used for the longest time."""
        if cost > self._limit:
            return False
        with self._lock:
            excess = max(self._used + self._reserved + cost - self._limit, cost - self._spare())
            while excess > 0 and self._blocks:
                excess -= self._evict_oldest()
            if excess > 0:
                if self._spare() < cost:
                    self._refuse("its disk is full")
                return False
            self._reserved += cost
            return True

    def _spare(self) -> int:
        """Bytes that may be written before the disk is as full as it may be; negative when it is fuller."""
        try:
            disk = os.statvfs(self._directory)
        except FileNotFoundError:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk = os.statvfs(self._directory)
        return int((disk.f_bavail - disk.f_blocks * self._min_free) * disk.f_frsize) - self._reserved

    def _evict_oldest(self) -> int:
        key, block = next(iter(self._blocks.items()))
        self._drop(key)
        self._unlink(key)
        return _pages(block.length)

    def _lose(self, key: Key, block: _Block | None = None) -> None:
        with self._lock:
            present = self._blocks.get(key)
            if present is not None and (block is None or block is present):
                self._drop(key)
                self._unlink(key)

    def _unlink(self, key: Key) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(key))  # noqa: PTH108

    def _add(self, key: Key, block: _Block) -> None:
        self._blocks[key] = block
        self._segments.setdefault(key[0], set()).add(key[1])
        self._used += _pages(block.length)

    def _drop(self, key: Key) -> None:
        block = self._blocks.pop(key, None)
        if block is None:
            return
        self._used -= _pages(block.length)
        numbers = self._segments[key[0]]
        numbers.discard(key[1])
        if not numbers:
            del self._segments[key[0]]

    def _refuse(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("the cache in %s cannot keep what is read or written: %s", self._directory, reason)

    def _path(self, key: Key) -> str:
        # As text: a Path costs 2.5 us, and what an fsync stored is kept with one each.
        return f"{self._prefix}/{key[0] & 0xFF:02x}/{key[0]}.{key[1]}"

    def _scan(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            spread_directories(self._directory)
            found = sorted(_left_behind(self._directory))
        except OSError as error:
            self._refuse(error.strerror or str(error))
            return
        for touched, key, length in found:
            self._add(key, _Block(length, touched))
        while self._used > self._limit and self._blocks:
            self._evict_oldest()


def _pages(length: int) -> int:
    return -(-length // _PAGE) * _PAGE


def _split(views: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a run of pieces behind its first `size` bytes."""
    for at, view in enumerate(views):
        if size <= len(view):
            rest = [view[size:]] if size < len(view) else []
            return [*views[:at], view[:size]], rest + views[at + 1 :]
        size -= len(view)
    return views, []


def _read_at_hand(descriptor: int, begin: int, end: int) -> Buffer:
    """Read without waiting for the disk; BlockingIOError when that would be needed."""
    buffer = bytearray(end - begin)
    try:
        got = os.preadv(descriptor, [buffer], begin, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or len(buffer) > SMALL_READ:
            raise BlockingIOError from error
        got = os.preadv(descriptor, [buffer], begin)
    if got < len(buffer):
        # Partly at hand, or cut short: a reader that waits finds out which.
        raise BlockingIOError
    return buffer


def _write_new(path: Path, pieces: Sequence[Buffer], size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        _write_all(descriptor, pieces, 0, size)
    finally:
        os.close(descriptor)


def _write_behind(path: str, pieces: Sequence[Buffer], begin: int, end: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _write_all(descriptor, pieces, begin, end)
    except OSError:
        os.ftruncate(descriptor, begin)
        raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, pieces: Sequence[Buffer], begin: int, end: int) -> None:
    if os.pwritev(descriptor, pieces, begin) < end - begin:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _left_behind(directory: Path) -> Iterator[tuple[float, Key, int]]:
    """The block files of earlier processes: time of last use, key, length. What was never finished is removed."""
    for shelf in directory.iterdir():
        if len(shelf.name) != 2 or not shelf.is_dir():
            continue
        with os.scandir(shelf) as entries:
            for entry in entries:
                if entry.name.endswith(".tmp"):
                    Path(entry).unlink()
                    continue
                segment, _, number = entry.name.partition(".")
                status = entry.stat(follow_symlinks=False)
                if segment.isdecimal() and number.isdecimal() and 0 < status.st_size <= BLOCK:
                    yield status.st_mtime, (int(segment), int(number)), status.st_size
