"""Putting into the clean cache what was stored: small appends many at a time, others right away.

It is a cache: what waits here and is lost is on the depots. What is read meanwhile is written first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from ibpfs.cache.clean import BLOCK, CleanCache
from ibpfs.exnode_store.sealing import Buffer

#: Appends up to this wait for others (bytes), for so long (seconds), or until there are so many (bytes): one of 4 KiB
#: alone takes 40 us, of which 35 are for opening the file and asking the disk for room.
_SMALL = 64 * 1024
_GATHER = 0.25
_ENOUGH = 1024 * 1024
#: Beyond this many that wait, the disk cannot keep up, and further ones are not cached.
_MOST = 8 * _ENOUGH
#: Seconds that a reader waits for the cache's disk before depots are asked.
_READER_PATIENCE = 0.25


@dataclass(slots=True)
class _Run:
    """Appends one after another."""

    start: int
    end: int
    pieces: list[Buffer] = field(default_factory=list)

    def add(self, pieces: Sequence[Buffer], length: int) -> None:
        self.pieces += pieces
        self.end += length


class Fresh:
    """Of one volume. `is_beside`: whether a segment lies on the disk of the clean cache anyway."""

    def __init__(self, clean: CleanCache, is_beside: Callable[[int], bool]) -> None:
        self._clean = clean
        self._is_beside = is_beside
        self._writing: dict[trio.Event, int] = {}  # set when they are done; into which segment
        self._landed = trio.Event()  # the next of them is done
        self._turn = trio.Lock()  # of who writes: in the order in which they came
        self._waiting: dict[int, _Run] = {}  # by segment
        self._size = 0  # of what is waiting
        self._wanted = trio.Event()
        self._is_enough = trio.Event()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await self._wanted.wait()
            with trio.move_on_after(_GATHER):
                await self._is_enough.wait()
            self._wanted, self._is_enough = trio.Event(), trio.Event()
            for segment in list(self._waiting):
                await self._write_waiting(segment)

    def passes_by(self, segment: int, length: int, slices: int) -> bool:
        """Whether `add` has nothing to do: a stream passes by where it lies on the same disk, as when it is read."""
        return length >= slices * BLOCK and self._is_beside(segment)

    async def add(self, segment: int, offset: int, pieces: Sequence[Buffer], length: int, slices: int) -> None:
        """So many slices, which are committed there. In the order of their places in a segment."""
        if self.passes_by(segment, length, slices):
            return
        if length > _SMALL:
            await self._write_waiting(segment)
            await self._write(segment, offset, pieces)
        elif self._size < _MOST:
            if segment in self._waiting and self._waiting[segment].end != offset:  # what was between never came
                await self._write_waiting(segment)
            self._waiting.setdefault(segment, _Run(offset, offset)).add(pieces, length)
            self._size += length
            self._wanted.set()
            if self._size >= _ENOUGH:
                self._is_enough.set()

    async def _write_waiting(self, segment: int) -> None:
        run = self._waiting.pop(segment, None)
        if run is not None:
            self._size -= run.end - run.start
            await self._write(segment, run.start, run.pieces)

    async def _write(self, segment: int, offset: int, pieces: Sequence[Buffer]) -> None:
        written = trio.Event()
        self._writing[written] = segment
        try:
            async with self._turn:
                # About 1 ms per MiB; before the segment is given back, so that appends arrive in order.
                await trio.to_thread.run_sync(self._clean.append, segment, offset, pieces)
        finally:
            del self._writing[written]
            written.set()
            self._landed.set()
            self._landed = trio.Event()

    async def settle(self, segment: int) -> None:
        """Return when nothing of the segment is on its way into the cache, or its disk takes too long.

        Whoever reads may find the segment's depots away.
        """
        with trio.move_on_after(_READER_PATIENCE):
            while self.is_settling(segment):
                self._is_enough.set()
                await self._landed.wait()

    def is_settling(self, segment: int) -> bool:
        return segment in self._waiting or segment in self._writing.values()

    async def drop(self) -> None:
        """Forget all of it, and all else that is in the cache."""
        self._waiting.clear()
        self._size = 0
        while self._writing:  # who has written what waited goes on to write what came with it
            await next(iter(self._writing)).wait()
        await trio.to_thread.run_sync(self._clean.clear)
