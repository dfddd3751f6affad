"""Putting into the clean cache what is being stored: beside its way to the depots, or right after it."""

from collections import deque
from collections.abc import Callable, Sequence

import trio

from ibpfs.cache.clean import BLOCK, CleanCache
from ibpfs.exnode_store.sealing import Buffer

#: Put there without a thread: 40 us for 4 KiB, which a hop takes, too.
_AT_ONCE = 64 * 1024


class Fresh:
    """Of one volume. `is_beside`: whether a segment lies on the disk of the clean cache anyway."""

    def __init__(self, clean: CleanCache, is_beside: Callable[[int], bool]) -> None:
        self._clean = clean
        self._is_beside = is_beside
        self._writing: set[trio.Event] = set()  # in threads; set when they are done
        self._waiting: deque[tuple[int, int, Sequence[Buffer]]] = deque()  # for `run`
        self._wanted = trio.Event()
        self._runs = False

    def append(self, pieces: Sequence[Buffer], length: int, slices: int) -> "Append":
        return Append(self, pieces, length, slices)

    async def run(self) -> None:
        """Write small appends while those who make them wait for their depot, until cancelled."""
        self._runs = True
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                while self._waiting:
                    self._clean.append(*self._waiting.popleft())
        finally:
            self._runs = False
            self._waiting.clear()

    def write_soon(self, segment: int, offset: int, pieces: Sequence[Buffer]) -> bool:
        """False: there is nobody who does."""
        if self._runs:
            self._waiting.append((segment, offset, pieces))
            self._wanted.set()
        return self._runs

    async def write(self, segment: int, offset: int, pieces: Sequence[Buffer], length: int, slices: int) -> None:
        if length >= slices * BLOCK and self._is_beside(segment):  # a stream passes by, as when it is read
            return
        if length <= _AT_ONCE:
            self._clean.append(segment, offset, pieces)
            return
        written = trio.Event()
        self._writing.add(written)
        try:
            # About 1 ms per MiB; before the segment is given back, so that appends arrive in order.
            await trio.to_thread.run_sync(self._clean.append, segment, offset, pieces)
        finally:
            self._writing.discard(written)
            written.set()

    async def drop(self) -> None:
        """Forget all of it, and all else that is in the cache."""
        for written in list(self._writing):
            await written.wait()
        self._waiting.clear()
        await trio.to_thread.run_sync(self._clean.clear)


class Append:
    """`pieces` of so many slices, together `length` bytes, on their way to one segment after another until one has
    them."""

    __slots__ = ("_begun", "_fresh", "_length", "_pieces", "_slices")

    def __init__(self, fresh: Fresh, pieces: Sequence[Buffer], length: int, slices: int) -> None:
        self._fresh = fresh
        self._pieces, self._length, self._slices = pieces, length, slices
        self._begun: tuple[int, int] | None = None

    def goes(self, segment: int, offset: int) -> None:
        """It is being sent there. If it does not arrive, nothing else is ever stored at this place: it may be cached
        while the depot works, which takes 40 us from an fsync."""
        if self._length <= _AT_ONCE and self._fresh.write_soon(segment, offset, self._pieces):
            self._begun = segment, offset

    async def stored(self, segment: int, offset: int) -> None:
        """It is committed there."""
        if self._begun != (segment, offset):
            await self._fresh.write(segment, offset, self._pieces, self._length, self._slices)
