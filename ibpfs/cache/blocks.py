"""Stored bytes of segments for readers: from the clean cache, else whole blocks from a depot, many readers per load.

Knows where bytes came from (so that the reader can say who lied), not what they mean: no key, no frame.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import trio

from ibpfs.cache.clean import BLOCK, Buffer, CleanCache, Key, by_block
from ibpfs.cache.first_looks import FirstLooks, following
from ibpfs.cache.parts import Loaded, Part, StoredSource, in_order, memory_of, shares
from ibpfs.errors import DataError, IbpfsError

_log = logging.getLogger(__name__)

#: Loads of blocks at any time, and so MiB of memory held by them.
MAX_LOADS = 32
#: Loads ahead of readers at any time, and how many more may wait. What does not fit is not loaded ahead.
PREFETCHES = 8
_WAITING = 32
#: Seconds after which a load ahead is given up.
_PREFETCH_PATIENCE = 20.0
#: Blocks of a stream that one load brings from a depot nearby, where a load costs 70 us beside its bytes: a slice of
#: 4 MiB. So many of these at a time: as many MiB of memory are held by each.
_RUN = 5
_RUNS = 2
#: Seconds after which a run is given up, so that readers fetch their own block, and other runs get their turn; a little
#: more than those after which a stuck depot is given up for another. Then so many seconds in which blocks that lie on
#: the same depots come one by one: where these are only slow, runs would come to nothing again and again.
_RUN_PATIENCE = 8.0
_RUN_PAUSE = 60.0
#: Blocks kept in memory when the cache on disk does not keep them, those counted that came with one and stay in memory
#: because of it; and seconds that one waits there for its reader.
_HELD_BLOCKS = 16
_HELD_FOR = 2.0
#: Who wants so much at once is reading it all.
_STREAMED = BLOCK // 4
#: Writes to the cache's disk at any time, and how long a reader waits for one, in seconds.
_WRITES = 8
_WRITE_PATIENCE = 0.25
#: Tasks that write blocks to the cache while who asked for them goes on. Without, random reads of a depot nearby were
#: 5,000 per second, and are 8,500.
_KEEPERS = 2
#: Seconds after which descriptors of the own depot's files that nobody uses are closed.
_UNUSED = 2.0
#: When nobody has read from a depot for so many seconds, blocks that were looked into are fetched whole, so many each.
_QUIET = 1.0
_COMPLETED = 4


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
    """Fetches stored bytes. `segment_length` says how much of a segment is committed, `is_beside` whether the replica
    that gave bytes of it lies on the disk of the cache anyway. These are not copied there: of 3.2 ms of CPU time per MB
    of a stream, on a busy machine, 2 were that copy's."""

    def __init__(
        self, segment_length: Callable[[int], int], source: StoredSource, cache: CleanCache,
        is_beside: Callable[[int, int], bool] = lambda *_: False,
    ) -> None:  # fmt: skip
        self._segment_length = segment_length
        self._source = source
        self._own_files = source.own_files
        self._cache = cache
        self._is_beside = is_beside
        self._flights: dict[Key, _Flight] = {}
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._loads = trio.Semaphore(MAX_LOADS)
        self._writes = trio.CapacityLimiter(_WRITES)
        self._looks = FirstLooks()
        self._demands = 0
        self.ahead = 0  # loads ahead that wait or are under way
        self._opening = 0  # of these, those that only ask for a file
        self._runs = trio.Semaphore(_RUNS)
        self._paused: dict[frozenset[int], float] = {}  # until when runs are, by the depots that hold the segment
        self._wishes, self._wished = trio.open_memory_channel[tuple[int, int, int, bool]](_WAITING)
        self._to_keep, self._kept = trio.open_memory_channel[tuple[Key, Loaded]](0)

    async def parts(self, segment: int, start: int, stop: int, *, small: bool = False) -> list[Part]:
        """Return the bytes [start, stop), in order, in parts that each have one origin.

        `small`: they are a slice, and its neighbours may be wanted next.
        """
        wanted = [((segment, number), begin, end) for number, begin, end in by_block(start, stop)]
        found = [self._at_hand(*want) for want in wanted]
        fetch = partial(self._part, small=small, stream=stop - start >= _STREAMED)
        lacking = [partial(fetch, *want) for want, part in zip(wanted, found, strict=True) if part is None]
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
        self._own_files.forget(segment)
        for number, _, _ in by_block(start, stop):
            self._held.pop((segment, number), None)

    def drop(self) -> None:
        """Forget the blocks in memory, and what can be read past the depot."""
        self._held.clear()
        self._looks.clear()
        self._own_files.close()

    def prefetch(self, segment: int, start: int, stop: int, *, stream: bool = False) -> None:
        """Have the blocks of [start, stop) loaded soon, as far as they exist and there is capacity.

        `stream`: they are wanted once, in a moment.
        """
        stop = min(stop, self._segment_length(segment))
        is_run = stream and start < stop and not self._source.is_far(segment)
        together = self._together(segment) if is_run else 1
        for begin, end in self._lacking(segment, start, stop, together):
            try:
                self._wishes.send_nowait((segment, begin, end, stream))
            except trio.WouldBlock:
                return
            self.ahead += 1

    def _together(self, segment: int) -> int:
        now = trio.current_time()
        if self._paused:
            self._paused = {holders: until for holders, until in self._paused.items() if until > now}
        return 1 if self._paused and self._source.holders(segment) in self._paused else _RUN

    def _lacking(self, segment: int, start: int, stop: int, together: int) -> list[tuple[int, int]]:
        """What is neither here nor on its way: runs of at most so many blocks, from the beginning of the first."""
        runs: list[tuple[int, int]] = []
        for begin, end in self._cache.missing(segment, start, stop):
            key = segment, begin // BLOCK
            end = min(end, stop)
            if key in self._flights or self._is_held(key, end - begin) or self._own_files.has(segment, begin, end):
                continue
            if runs and runs[-1][1] == begin < runs[-1][0] + together * BLOCK:
                begin = runs.pop()[0]
            runs.append((begin, end))
        return runs

    async def serve(self) -> None:
        """Load ahead, for ever; the owner runs this as a task."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(PREFETCHES):
                    nursery.start_soon(self._load_ahead)
                nursery.start_soon(self._complete)
                nursery.start_soon(self._close_unused)
                for _ in range(_KEEPERS):
                    nursery.start_soon(self._keep_each)
        finally:
            self._own_files.close()

    async def _close_unused(self) -> None:
        while True:
            await trio.sleep(_UNUSED)
            self._own_files.close_unused()

    async def _complete(self) -> None:
        """What was looked into is in the cache some time later: it may be wanted when the depot is away."""
        before = 0
        while True:
            await trio.sleep(_QUIET)
            if before == self._demands:
                for segment, number in self._looks.take(_COMPLETED):
                    self.prefetch(segment, number * BLOCK, (number + 1) * BLOCK)
            before = self._demands

    @property
    def is_loading_ahead(self) -> bool:
        return self.ahead > self._opening

    async def _load_ahead(self) -> None:
        async for segment, start, stop, stream in self._wished:
            try:
                with trio.move_on_after(_PREFETCH_PATIENCE):
                    if stop - start <= BLOCK or self._together(segment) == 1:
                        await self._load_run(segment, start, stop, stream)
                    else:
                        await self._load_run_in_turn(segment, start, stop, stream)
            except IbpfsError as error:
                # Whoever really reads these bytes meets the error again.
                _log.debug("not loaded ahead: %s", error)
            except Exception:
                _log.exception("loading bytes %d to %d of segment %d ahead failed", start, stop, segment)
            finally:
                self.ahead -= 1

    async def _load_run_in_turn(self, segment: int, start: int, stop: int, stream: bool) -> None:
        async with self._runs:
            with trio.move_on_after(_RUN_PATIENCE) as scope:
                await self._load_run(segment, start, stop, stream)
        if scope.cancelled_caught:
            self._paused[self._source.holders(segment)] = trio.current_time() + _RUN_PAUSE
            _log.debug("bytes %d to %d of segment %d did not come in %g s", start, stop, segment, _RUN_PATIENCE)

    async def _load_run(self, segment: int, start: int, stop: int, stream: bool) -> None:
        self._opening += 1
        try:
            await self._own_files.open(segment)
        finally:
            self._opening -= 1
        # Some of it may have come, or be on its way, since it was wished for.
        while runs := self._lacking(segment, start, stop, self._together(segment)):
            begin, start = runs[0]
            number, last = begin // BLOCK, (start - 1) // BLOCK
            await self._lead((segment, number), start - last * BLOCK, stream, True, last - number + 1)

    def at_hand(self, segment: int, start: int, stop: int) -> Buffer | None:
        """The bytes [start, stop) as memory or the cache has them, if the disk need not be waited for."""
        parts = [self._at_hand((segment, number), begin, end) for number, begin, end in by_block(start, stop)]
        found = [part.data for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        return found[0] if len(found) == 1 else b"".join(found)

    def past_depot(self, segment: int, start: int, stop: int) -> memoryview | None:
        """The bytes [start, stop) as one piece, if all of them can be read past the depot now."""
        own = self._own_files.read_now(segment, start, stop)
        return None if own is None else memoryview(own.data)

    def _at_hand(self, key: Key, begin: int, end: int) -> Part | None:
        start = key[1] * BLOCK + begin
        held = self._held_block(key, end)
        if held is not None:
            return Part(start, memoryview(held.data)[begin:end], held)
        own = self._own_files.read_now(key[0], start, start + end - begin)
        if own is not None:
            return Part(start, memoryview(own.data), own)
        cached = self._cache.read_now(key[0], start, start + end - begin)
        return None if cached is None else Part(start, memoryview(cached), None)

    async def _part(self, key: Key, begin: int, end: int, *, small: bool, stream: bool) -> Part:
        start, stop = key[1] * BLOCK + begin, key[1] * BLOCK + end
        if self._cache.covers(key[0], start, stop):
            cached = await trio.to_thread.run_sync(self._cache.read, key[0], start, stop)
            if cached is not None:
                return Part(start, memoryview(cached), None)
        self._demands += 1
        await self._own_files.open(key[0])  # or somebody else has meanwhile
        if (part := self._at_hand(key, begin, end)) is not None:
            return part
        if self._is_look(key, end - begin, small):
            loaded = await self.load(key[0], start, stop, frozenset())
            return Part(start, memoryview(loaded.data), loaded)
        loaded = await self._block(key, end, stream=stream)
        return Part(start, memoryview(loaded.data)[begin:end], loaded)

    def _is_look(self, key: Key, wanted: int, small: bool) -> bool:
        """Whether to fetch just that. What may be wanted next of a far depot is fetched meanwhile."""
        segment, number = key
        if key in self._flights or self._is_held(key) or not self._source.is_far(segment):
            return False
        is_look = self._looks.is_enough(key, wanted, self._segment_length(segment) - number * BLOCK)
        if small and is_look:
            self.prefetch(segment, number * BLOCK, (number + 1) * BLOCK)
        if (small or not is_look) and number and self._is_here(segment, number - 1):
            self.prefetch(segment, *following(number))
        return is_look

    def _is_here(self, segment: int, number: int) -> bool:
        key = segment, number
        return self._is_held(key, BLOCK) or self._cache.covers(segment, number * BLOCK, (number + 1) * BLOCK)

    def _is_held(self, key: Key, end: int = 0) -> bool:
        """Whether a block is in memory, its first `end` bytes at least."""
        held = self._held.get(key)
        return held is not None and len(held.loaded.data) >= end

    async def _block(self, key: Key, end: int, *, stream: bool) -> Loaded:
        """Return at least the first `end` bytes of a block."""
        while True:
            held = self._held_block(key, end)
            if held is not None:
                return held
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, end, stream)
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
        self._held[key] = _Held(held.loaded, 0.0)
        self._held.move_to_end(key)
        return held.loaded

    async def _lead(self, key: Key, end: int, stream: bool, ahead: bool = False, blocks: int = 1) -> Loaded:
        """Load so many blocks from `key` on, at least the first `end` bytes of the last one."""
        segment, number = key
        flights = {(segment, one): _Flight() for one in range(number, number + blocks)}
        self._flights |= flights
        start, last = number * BLOCK, (number + blocks - 1) * BLOCK
        stop = max(min(self._segment_length(segment), last + BLOCK), last + end)
        try:
            async with self._loads:
                loaded = await self.load(segment, start, stop, frozenset())
                each = dict(zip(flights, shares(loaded, blocks), strict=True))
                for one, flight in flights.items():
                    flight.loaded = each[one]
                    flight.done.set()
                if stream and self._is_beside(segment, loaded.replica) and self._has_room_to_hold(blocks):
                    for one, share in each.items():
                        self._hold(one, share, _HELD_FOR if ahead and not flights[one].is_read else 0.0)
                elif ahead:
                    await self._keep(key, loaded, blocks)
                else:
                    await self._keep_later(key, loaded)
            return loaded
        except DataError as error:
            if blocks == 1:  # of a run, each block may be had
                flights[key].error = error
            raise
        finally:
            for one, flight in flights.items():
                flight.done.set()
                if self._flights.get(one) is flight:
                    del self._flights[one]

    async def _keep_later(self, key: Key, loaded: Loaded) -> None:
        """Have a block written to the cache while its reader goes on, if a task for that has time.

        Not one from the cache's own disk, which the kernel has in memory now, and which can be read past the depot.
        """
        start = key[1] * BLOCK
        if self._is_beside(key[0], loaded.replica) and self._own_files.has(key[0], start, start + len(loaded.data)):
            self._hold(key, loaded)
            return
        try:
            self._to_keep.send_nowait((key, loaded))
        except trio.WouldBlock:
            await self._keep(key, loaded)
        else:
            self._hold(key, loaded)

    async def _keep_each(self) -> None:
        async for key, loaded in self._kept:
            held = self._held.get(key)
            if held is not None and held.loaded is loaded:  # neither dropped nor found to be wrong meanwhile
                await self._keep(key, loaded)

    async def _keep(self, key: Key, loaded: Loaded, blocks: int = 1) -> None:
        kept = False
        # A disk that hangs must not hold up who reads from a depot: the write goes on without us.
        with trio.move_on_after(_WRITE_PATIENCE):
            kept = await trio.to_thread.run_sync(
                self._cache.insert, key[0], key[1] * BLOCK, loaded.data, abandon_on_cancel=True, limiter=self._writes
            )
        if not kept:
            for number, share in enumerate(shares(loaded, blocks), key[1]):
                self._hold((key[0], number), share)

    def _hold(self, key: Key, loaded: Loaded, seconds: float = 0.0) -> None:
        self._held[key] = _Held(loaded, trio.current_time() + seconds if seconds else 0.0)
        self._held.move_to_end(key)
        while _blocks_of(self._held.values()) > _HELD_BLOCKS:
            del self._held[self._least_wanted() or next(iter(self._held))]

    def _has_room_to_hold(self, blocks: int) -> bool:
        """Whether nothing that a reader may still want goes when so many more are held."""
        now = trio.current_time()
        return _blocks_of(held for held in self._held.values() if held.until >= now) + blocks <= _HELD_BLOCKS

    def _least_wanted(self) -> Key | None:
        now = trio.current_time()
        return next((key for key, held in self._held.items() if held.until < now), None)


def _blocks_of(held: Iterable[_Held]) -> int:
    """How many blocks of memory these keep from being freed."""
    wholes = dict(memory_of(one.loaded) for one in held)
    return sum(-(-length // BLOCK) for length in wholes.values())
