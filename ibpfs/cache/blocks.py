"""Stored bytes of segments for readers: from the clean cache, else whole blocks from a depot, many readers per load.

Knows where bytes came from (so that the reader can say who lied), not what they mean: no key, no frame.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import trio

from ibpfs.cache.clean import BLOCK, Buffer, CleanCache, Key, by_block
from ibpfs.cache.first_looks import FirstLooks, following
from ibpfs.errors import DataError, IbpfsError

_log = logging.getLogger(__name__)

#: Loads of blocks at any time, and so MiB of memory held by them.
MAX_LOADS = 32
#: Loads ahead of readers at any time, and how many more may wait. What does not fit is not loaded ahead.
PREFETCHES = 8
_WAITING = 32
#: Seconds after which a load ahead is given up.
_PREFETCH_PATIENCE = 20.0
#: Blocks kept in memory when the cache on disk does not keep them, and seconds that one waits there for its reader.
_HELD_BLOCKS = 16
_HELD_FOR = 2.0
#: Who wants so much of a block is reading it all.
_STREAMED = BLOCK // 4
#: Writes to the cache's disk at any time, and how long a reader waits for one, in seconds.
_WRITES = 8
_WRITE_PATIENCE = 0.25
#: Tasks that write blocks to the cache while who asked for them goes on. Without, random reads of a depot nearby were
#: 5,000 per second, and are 8,500.
_KEEPERS = 2
#: When nobody has read from a depot for so many seconds, blocks that were looked into are fetched whole, so many each.
_QUIET = 1.0
_COMPLETED = 4


class Loaded(Protocol):
    """Stored bytes as one replica gave them, or several together; `label` names depot and allocation for a log."""

    @property
    def data(self) -> bytes | bytearray: ...
    @property
    def replica(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def givers(self) -> Sequence[int]: ...


class StoredSource(Protocol):
    """Where stored bytes come from when they are not in the cache."""

    async def load(
        self, segment: int, start: int, stop: int, *, avoid: frozenset[int] = frozenset()
    ) -> Loaded:
        """Return bytes [start, stop) from a replica not in `avoid`; DataError when none can give them."""

    async def blame(self, givers: Sequence[int], reason: str) -> frozenset[int]:
        """What these replicas gave together is wrong: report those to blame, and return them, one at least."""

    def is_far(self, segment: int) -> bool:
        """Whether no depot that has the segment is near."""


class Part(NamedTuple):
    """Bytes of a segment from `start` on, and who gave them: None when the local cache did."""

    start: int
    data: memoryview
    origin: Loaded | None

    @property
    def stop(self) -> int:
        return self.start + len(self.data)


class _Held(NamedTuple):
    """A block in memory. It is dropped when others come, or only after a while if nobody has read it `until` then."""

    loaded: Loaded
    until: float


class _Flight:
    """One load of a block, and who waits for it. Neither `loaded` nor `error` when its leader was cancelled."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.loaded: Loaded | None = None
        self.error: DataError | None = None
        self.is_read = False


class BlockReader:
    """Fetches stored bytes. `segment_length` says how much of a segment is committed, `is_beside` whether it lies on
    the disk of the cache anyway. Streams of such are not copied there: of 3.2 ms of CPU time per MB, on a busy machine,
    2 were that copy's."""

    def __init__(
        self, segment_length: Callable[[int], int], source: StoredSource, cache: CleanCache,
        is_beside: Callable[[int], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        self._segment_length = segment_length
        self._source = source
        self._cache = cache
        self._is_beside = is_beside
        self._flights: dict[Key, _Flight] = {}
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._loads = trio.Semaphore(MAX_LOADS)
        self._writes = trio.CapacityLimiter(_WRITES)
        self._looks = FirstLooks()
        self._demands = 0
        self._wishes, self._wished = trio.open_memory_channel[tuple[Key, int, bool]](_WAITING)
        self._to_keep, self._kept = trio.open_memory_channel[tuple[Key, Loaded]](0)

    async def parts(self, segment: int, start: int, stop: int, *, small: bool = False) -> list[Part]:
        """Return the bytes [start, stop), in order, in parts that each have one origin.

        `small`: they are a slice, and its neighbours may be wanted next.
        """
        wanted = [((segment, number), begin, end) for number, begin, end in by_block(start, stop)]
        found = [self._at_hand(*want) for want in wanted]
        lacking = [partial(self._part, *want, small) for want, part in zip(wanted, found, strict=True) if part is None]
        fetched = iter(await in_order(lacking))
        return [part or next(fetched) for part in found]

    async def load(self, segment: int, start: int, stop: int, avoid: frozenset[int]) -> Loaded:
        """Return exactly these bytes from one source. One that gives fewer or more is reported and avoided."""
        while True:
            loaded = await self._source.load(segment, start, stop, avoid=avoid)
            if len(loaded.data) == stop - start:
                return loaded
            reason = f"{len(loaded.data)} bytes came where {stop - start} are"
            avoid |= await self._source.blame(loaded.givers, reason)

    def evict(self, segment: int, start: int, stop: int) -> None:
        """Forget what the cache has of [start, stop): it is wrong."""
        self._cache.evict(segment, start, stop)
        for number, _, _ in by_block(start, stop):
            self._held.pop((segment, number), None)

    def drop(self) -> None:
        """Forget the blocks in memory."""
        self._held.clear()
        self._looks.clear()

    def prefetch(self, segment: int, start: int, stop: int, *, stream: bool = False) -> None:
        """Have the blocks of [start, stop) loaded soon, as far as they exist and there is capacity.

        `stream`: they are wanted once, in a moment.
        """
        stop = min(stop, self._segment_length(segment))
        for begin, end in self._cache.missing(segment, start, stop):
            key = (segment, begin // BLOCK)
            if key in self._flights or key in self._held:
                continue
            try:
                self._wishes.send_nowait((key, min(end, stop) - begin, stream))
            except trio.WouldBlock:
                return

    async def serve(self) -> None:
        """Load ahead, for ever; the owner runs this as a task."""
        async with trio.open_nursery() as nursery:
            for _ in range(PREFETCHES):
                nursery.start_soon(self._load_ahead)
            nursery.start_soon(self._complete)
            for _ in range(_KEEPERS):
                nursery.start_soon(self._keep_each)

    async def _complete(self) -> None:
        """What was looked into is in the cache some time later: it may be wanted when the depot is away."""
        before = 0
        while True:
            await trio.sleep(_QUIET)
            if before == self._demands:
                for segment, number in self._looks.take(_COMPLETED):
                    self.prefetch(segment, number * BLOCK, (number + 1) * BLOCK)
            before = self._demands

    async def _load_ahead(self) -> None:
        async for (segment, number), end, stream in self._wished:
            if self._cache.covers(segment, number * BLOCK, number * BLOCK + end):
                continue
            try:
                with trio.move_on_after(_PREFETCH_PATIENCE):
                    await self._block((segment, number), end, stream=stream, ahead=True)
            except IbpfsError as error:
                # Whoever really reads these bytes meets the error again.
                _log.debug("not loaded ahead: %s", error)
            except Exception:
                _log.exception("loading block %d of segment %d ahead failed", number, segment)

    def at_hand(self, segment: int, start: int, stop: int) -> Buffer | None:
        """The bytes [start, stop) as memory or the cache has them, if the disk need not be waited for."""
        parts = [self._at_hand((segment, number), begin, end) for number, begin, end in by_block(start, stop)]
        found = [part.data for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        return found[0] if len(found) == 1 else b"".join(found)

    def _at_hand(self, key: Key, begin: int, end: int) -> Part | None:
        start = key[1] * BLOCK + begin
        held = self._held_block(key, end)
        if held is not None:
            return Part(start, memoryview(held.data)[begin:end], held)
        cached = self._cache.read_now(key[0], start, start + end - begin)
        return None if cached is None else Part(start, memoryview(cached), None)

    async def _part(self, key: Key, begin: int, end: int, small: bool) -> Part:
        start, stop = key[1] * BLOCK + begin, key[1] * BLOCK + end
        if self._cache.covers(key[0], start, stop):
            cached = await trio.to_thread.run_sync(self._cache.read, key[0], start, stop)
            if cached is not None:
                return Part(start, memoryview(cached), None)
        self._demands += 1
        if self._is_look(key, end - begin, small):
            loaded = await self.load(key[0], start, stop, frozenset())
            return Part(start, memoryview(loaded.data), loaded)
        loaded = await self._block(key, end, stream=end - begin >= _STREAMED)
        return Part(start, memoryview(loaded.data)[begin:end], loaded)

    def _is_look(self, key: Key, wanted: int, small: bool) -> bool:
        """Whether to fetch just that. What may be wanted next of a far depot is fetched meanwhile."""
        segment, number = key
        if key in self._flights or key in self._held or not self._source.is_far(segment):
            return False
        is_look = self._looks.is_enough(key, wanted, self._segment_length(segment) - number * BLOCK)
        if small and is_look:
            self.prefetch(segment, number * BLOCK, (number + 1) * BLOCK)
        if (small or not is_look) and number and self._is_here(segment, number - 1):
            self.prefetch(segment, *following(number))
        return is_look

    def _is_here(self, segment: int, number: int) -> bool:
        return (segment, number) in self._held or self._cache.covers(segment, number * BLOCK, (number + 1) * BLOCK)

    async def _block(self, key: Key, end: int, *, stream: bool, ahead: bool = False) -> Loaded:
        """Return at least the first `end` bytes of a block."""
        while True:
            held = self._held_block(key, end)
            if held is not None:
                return held
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, end, stream, ahead)
            flight.is_read = True
            await flight.done.wait()
            if flight.error is not None:
                raise DataError(str(flight.error)) from flight.error
            if flight.loaded is not None and len(flight.loaded.data) >= end:
                return flight.loaded
            # The segment has grown since that load began, or its leader was cancelled. It has left the table, or will:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _held_block(self, key: Key, end: int) -> Loaded | None:
        held = self._held.get(key)
        if held is None or len(held.loaded.data) < end:
            return None
        self._hold(key, held.loaded)
        return held.loaded

    async def _lead(self, key: Key, end: int, stream: bool, ahead: bool) -> Loaded:
        segment, number = key
        flight = self._flights[key] = _Flight()
        start = number * BLOCK
        stop = max(min(self._segment_length(segment), start + BLOCK), start + end)
        try:
            async with self._loads:
                loaded = flight.loaded = await self.load(segment, start, stop, frozenset())
                flight.done.set()
                if stream and self._is_beside(segment) and self._has_room_to_hold():
                    self._hold(key, loaded, _HELD_FOR if ahead and not flight.is_read else 0.0)
                elif ahead or not self._keep_later(key, loaded):
                    await self._keep(key, loaded)
            return loaded
        except DataError as error:
            flight.error = error
            raise
        finally:
            flight.done.set()
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _keep_later(self, key: Key, loaded: Loaded) -> bool:
        """Have a block written to the cache while its reader goes on, if a task for that has time."""
        try:
            self._to_keep.send_nowait((key, loaded))
        except trio.WouldBlock:
            return False
        self._hold(key, loaded)
        return True

    async def _keep_each(self) -> None:
        async for key, loaded in self._kept:
            held = self._held.get(key)
            if held is not None and held.loaded is loaded:  # neither dropped nor found to be wrong meanwhile
                await self._keep(key, loaded)

    async def _keep(self, key: Key, loaded: Loaded) -> None:
        kept = False
        # A disk that hangs must not hold up who reads from a depot: the write goes on without us.
        with trio.move_on_after(_WRITE_PATIENCE):
            kept = await trio.to_thread.run_sync(
                self._cache.insert, key[0], key[1] * BLOCK, loaded.data, abandon_on_cancel=True, limiter=self._writes
            )
        if not kept:
            self._hold(key, loaded)

    def _hold(self, key: Key, loaded: Loaded, seconds: float = 0.0) -> None:
        self._held[key] = _Held(loaded, trio.current_time() + seconds if seconds else 0.0)
        self._held.move_to_end(key)
        if len(self._held) > _HELD_BLOCKS:
            del self._held[self._least_wanted() or next(iter(self._held))]

    def _has_room_to_hold(self) -> bool:
        """Whether nothing that a reader may still want goes when one more is held."""
        return len(self._held) < _HELD_BLOCKS or self._least_wanted() is not None

    def _least_wanted(self) -> Key | None:
        now = trio.current_time()
        return next((key for key, held in self._held.items() if held.until < now), None)


async def in_order(jobs: Sequence[Callable[[], Awaitable[Part]]]) -> list[Part]:
    """Run jobs at the same time; return their results in order, or raise one of their errors."""
    if len(jobs) <= 1:
        return [await job() for job in jobs]
    results: dict[int, Part] = {}
    errors: list[Exception] = []

    async def run(at: int, job: Callable[[], Awaitable[Part]]) -> None:
        try:
            results[at] = await job()
        except Exception as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for at, job in enumerate(jobs):
            nursery.start_soon(run, at, job)
    if errors:
        raise errors[0]
    return [results[at] for at in range(len(jobs))]
