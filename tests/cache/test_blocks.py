import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from ibpfs.cache.blocks import MAX_LOADS, PREFETCHES, BlockReader
from ibpfs.cache.clean import BLOCK, Buffer, CleanCache
from ibpfs.errors import DataError

from .library import FakeSource, until_cached

MIB = 1024 * 1024
DATA = bytes(range(251)) * 80_000


class Bench:
    """A reader over one segment of DATA, `length` bytes of which are committed."""

    def __init__(self, directory: Path, length: int = len(DATA), limit: int = 64 * MIB) -> None:
        self.source = FakeSource({1: bytearray(DATA[:length])})
        self.cache = CleanCache(directory, limit, 0.0)
        self.reader = BlockReader(lambda segment: len(self.source.segments[segment]), self.source, self.cache)

    async def read(self, start: int, stop: int) -> bytes:
        parts = await self.reader.parts(1, start, stop)
        assert [part.start for part in parts] == [start, *(part.stop for part in parts[:-1])]
        return b"".join(part.data for part in parts)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


@pytest.fixture
def diskless(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache", limit=0)


@pytest.fixture
def own(bench: Bench) -> Bench:
    """Its segment lies on the own depot, on the disk of the cache, and the kernel has all of it in memory."""
    bench.reader = BlockReader(lambda _: len(DATA), bench.source, bench.cache, lambda *_: True)
    bench.source.own_files.offered = {1}
    return bench


async def test_the_source_keeps_its_contract() -> None:
    source = FakeSource({1: bytearray(b"abcdef")})
    loaded = await source.load(1, 2, 5)
    assert (loaded.data, loaded.label != "") == (b"cde", True)
    other = await source.load(1, 2, 5, avoid=frozenset({loaded.replica}))
    assert (other.data, other.replica != loaded.replica) == (b"cde", True)
    with pytest.raises(DataError):
        await source.load(1, 2, 5, avoid=frozenset({loaded.replica, other.replica}))
    for segment, start, stop in ((1, 0, 7), (2, 0, 1)):
        with pytest.raises(DataError):
            await source.load(segment, start, stop)
    source.report(loaded.replica, "lies")
    assert (await source.load(1, 2, 5)).replica == other.replica


async def test_one_load_serves_a_whole_block(bench: Bench) -> None:
    for at in range(0, BLOCK, 1000):
        stop = min(at + 1000, BLOCK)
        assert await bench.read(at, stop) == DATA[at:stop]
    assert bench.source.loads == [(1, 0, BLOCK)]


async def test_blocks_of_one_read_are_loaded_at_the_same_time(bench: Bench) -> None:
    assert await bench.read(BLOCK - 5, 4 * BLOCK + 5) == DATA[BLOCK - 5 : 4 * BLOCK + 5]
    assert bench.source.peak == 5
    assert await bench.read(100, 5 * BLOCK) == DATA[100 : 5 * BLOCK]
    assert len(bench.source.loads) == 5


async def test_readers_of_one_block_share_its_load(bench: Bench) -> None:
    bench.source.gate = trio.Event()

    async def read(at: int) -> None:
        assert await bench.read(at, at + 10) == DATA[at : at + 10]

    async with trio.open_nursery() as nursery:
        for at in range(0, 50_000, 1000):
            nursery.start_soon(read, at)
        await wait_all_tasks_blocked()
        bench.source.gate.set()
    assert len(bench.source.loads) == 1


async def test_readers_share_a_failure_too(bench: Bench) -> None:
    bench.source.gate = trio.Event()
    bench.source.dead = {1, 2}

    async def read() -> None:
        with pytest.raises(DataError, match="no replica"):
            await bench.read(0, 10)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
        await wait_all_tasks_blocked()
        bench.source.gate.set()
    assert len(bench.source.loads) == 1
    bench.source.dead = set()
    assert await bench.read(0, 10) == DATA[:10]


async def test_who_waits_takes_over_from_who_gave_up(bench: Bench) -> None:
    bench.source.gate = trio.Event()
    first = trio.CancelScope()

    async def give_up() -> None:
        with first:
            await bench.read(0, 10)

    async def wait() -> None:
        assert await bench.read(0, 10) == DATA[:10]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        bench.source.gate.set()
    assert len(bench.source.loads) == 2


async def test_a_block_that_has_grown_is_fetched_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, length=BLOCK + 500)
    assert await bench.read(0, BLOCK + 500) == DATA[: BLOCK + 500]
    bench.source.segments[1] += DATA[BLOCK + 500 : BLOCK + 900]
    assert await bench.read(BLOCK + 400, BLOCK + 900) == DATA[BLOCK + 400 : BLOCK + 900]
    assert bench.source.loads[2:] == [(1, BLOCK, BLOCK + 900)]
    assert await bench.read(BLOCK, BLOCK + 900) == DATA[BLOCK : BLOCK + 900]
    assert len(bench.source.loads) == 3


@pytest.mark.parametrize("limit", [0, 64 * MIB])
async def test_a_block_that_grows_while_it_is_loaded(tmp_path: Path, limit: int) -> None:
    bench = Bench(tmp_path, length=500, limit=limit)
    bench.source.gate = trio.Event()

    async def read(stop: int) -> None:
        assert await bench.read(0, stop) == DATA[:stop]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 500)
        await wait_all_tasks_blocked()
        bench.source.segments[1] += DATA[500:900]
        nursery.start_soon(read, 900)
        nursery.start_soon(read, 900)
        await wait_all_tasks_blocked()
        bench.source.gate.set()
    assert len(bench.source.loads) == 2


async def test_bytes_written_through_are_not_loaded(bench: Bench) -> None:
    bench.cache.append(1, 0, [DATA[: BLOCK + 100]])
    assert await bench.read(50, BLOCK + 100) == DATA[50 : BLOCK + 100]
    assert bench.source.loads == []


async def test_a_replica_that_gives_too_little_is_reported_and_passed_over(bench: Bench) -> None:
    bench.source.short = {1}
    assert await bench.read(0, 10) == DATA[:10]
    assert [replica for replica, _ in bench.source.reports] == [1]
    bench.source.short = {1, 2}
    with pytest.raises(DataError):
        await bench.read(BLOCK, BLOCK + 10)


async def test_without_a_disk_the_last_blocks_stay_in_memory(diskless: Bench) -> None:
    for at in range(0, 2 * BLOCK, 50_000):
        assert await diskless.read(at, at + 10) == DATA[at : at + 10]
    assert len(diskless.source.loads) == 2
    for at in range(0, 19 * BLOCK, BLOCK):
        await diskless.read(at, at + 10)
    assert len(diskless.reader._held) == 16
    diskless.reader.drop()
    await diskless.read(18 * BLOCK, 18 * BLOCK + 10)
    assert len(diskless.source.loads) == 20


class HangingDisk(CleanCache):
    """Writes nothing before it is let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 64 * MIB, 0.0)
        self.go = threading.Event()

    def insert(self, segment: int, start: int, data: Buffer) -> bool:
        self.go.wait(30)
        return super().insert(segment, start, data)


async def test_a_disk_that_hangs_holds_nobody_up_for_long(bench: Bench, tmp_path: Path) -> None:
    disk = HangingDisk(tmp_path / "slow")
    reader = BlockReader(lambda _: len(DATA), bench.source, disk)
    with trio.fail_after(10):
        for at in range(3):
            (part,) = await reader.parts(1, at * BLOCK, at * BLOCK + 10)
            assert part.data == DATA[at * BLOCK : at * BLOCK + 10]
        await reader.parts(1, 50, 60)  # from memory
        assert len(bench.source.loads) == 3
        disk.go.set()
        await until_cached(disk, 1, 0, 3 * BLOCK)


async def test_a_cache_that_vanished_costs_loads_alone(bench: Bench, tmp_path: Path) -> None:
    await bench.read(0, 3 * BLOCK)
    shutil.rmtree(tmp_path / "cache")
    assert await bench.read(0, 3 * BLOCK) == DATA[: 3 * BLOCK]
    assert len(bench.source.loads) == 6
    assert await bench.read(0, 3 * BLOCK) == DATA[: 3 * BLOCK]
    assert len(bench.source.loads) == 6


async def test_loads_are_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limit=0)
    bench.source.segments = {number: bytearray(b"x" * 100) for number in range(1, 100)}
    bench.source.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for segment in range(1, 100):
            nursery.start_soon(bench.reader.parts, segment, 0, 100)
        await wait_all_tasks_blocked()
        assert bench.source.busy == MAX_LOADS
        bench.source.gate.set()
    assert bench.source.peak == MAX_LOADS


async def test_prefetched_blocks_are_there(bench: Bench) -> None:
    bench.source.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 5, 12 * BLOCK)
        bench.reader.prefetch(1, 5, BLOCK)
        await wait_all_tasks_blocked()
        assert bench.source.busy == PREFETCHES
        bench.source.gate.set()
        await until_cached(bench.cache, 1, 0, 12 * BLOCK)
        nursery.cancel_scope.cancel()
    assert sorted(bench.source.loads) == [(1, at * BLOCK, (at + 1) * BLOCK) for at in range(12)]
    bench.source.loads.clear()
    assert await bench.read(0, 12 * BLOCK) == DATA[: 12 * BLOCK]
    assert bench.source.loads == []


async def test_prefetch_ends_where_the_segment_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, length=BLOCK + 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 0, 8 * BLOCK)
        await until_cached(bench.cache, 1, 0, BLOCK + 10)
        nursery.cancel_scope.cancel()
    assert sorted(bench.source.loads) == [(1, 0, BLOCK), (1, BLOCK, BLOCK + 10)]


async def test_prefetch_of_what_cannot_be_had_harms_nobody(bench: Bench) -> None:
    bench.source.dead = {1, 2}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 0, 3 * BLOCK)
        await wait_all_tasks_blocked()
        assert len(bench.source.loads) == 3
        bench.source.dead = set()
        assert await bench.read(0, 10) == DATA[:10]
        bench.reader.prefetch(1, BLOCK, 2 * BLOCK)
        await until_cached(bench.cache, 1, BLOCK, 2 * BLOCK)
        nursery.cancel_scope.cancel()


async def test_too_many_wishes_are_dropped(bench: Bench) -> None:
    bench.source.segments = {number: bytearray(b"x" * 100) for number in range(1, 200)}
    for number in range(1, 200):
        bench.reader.prefetch(number, 0, 100)
    assert bench.source.loads == []


async def test_the_first_look_into_a_block_of_a_far_depot_fetches_just_that(bench: Bench) -> None:
    bench.source.far = True
    assert await bench.read(3 * BLOCK + 70_000, 3 * BLOCK + 140_000) == DATA[3 * BLOCK + 70_000 : 3 * BLOCK + 140_000]
    assert bench.source.loads == [(1, 3 * BLOCK + 70_000, 3 * BLOCK + 140_000)]
    await bench.read(3 * BLOCK, 3 * BLOCK + 10)
    assert bench.source.loads[1:] == [(1, 3 * BLOCK, 4 * BLOCK)]
    await bench.read(3 * BLOCK + 500, 3 * BLOCK + 5000)
    assert len(bench.source.loads) == 2, "from the cache"


async def test_who_reads_a_far_segment_from_end_to_end_gets_blocks_ahead(
    bench: Bench, nursery: trio.Nursery
) -> None:
    bench.source.far = True
    nursery.start_soon(bench.reader.serve)
    await bench.read(0, BLOCK)
    await bench.read(BLOCK, 2 * BLOCK)
    await until_cached(bench.cache, 1, 2 * BLOCK, 6 * BLOCK)
    assert await bench.read(2 * BLOCK, 6 * BLOCK) == DATA[2 * BLOCK : 6 * BLOCK]
    assert len(bench.source.loads) == 6


async def test_a_small_slice_of_a_far_depot_comes_alone_and_its_neighbours_behind_it(
    bench: Bench, nursery: trio.Nursery
) -> None:
    bench.source.far = True
    nursery.start_soon(bench.reader.serve)
    (part,) = await bench.reader.parts(1, 100, 5000, small=True)
    assert part.data == DATA[100:5000]
    await until_cached(bench.cache, 1, 0, BLOCK)
    assert bench.source.loads == [(1, 100, 5000), (1, 0, BLOCK)]


async def test_what_was_looked_into_is_fetched_whole_in_a_quiet_second(bench: Bench, nursery: trio.Nursery) -> None:
    bench.source.far = True
    nursery.start_soon(bench.reader.serve)
    await bench.read(2 * BLOCK + 10, 2 * BLOCK + 20)
    await until_cached(bench.cache, 1, 2 * BLOCK, 3 * BLOCK)
    assert bench.source.loads == [(1, 2 * BLOCK + 10, 2 * BLOCK + 20), (1, 2 * BLOCK, 3 * BLOCK)]


async def test_a_first_look_that_one_replica_cannot_answer_is_answered_by_the_other(bench: Bench) -> None:
    bench.source.far, bench.source.short = True, {1}
    assert await bench.read(10, 20) == DATA[10:20]
    assert [replica for replica, _ in bench.source.reports] == [1]


async def test_a_stream_from_the_depot_on_the_same_disk_is_not_copied_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "cache")
    bench.reader = BlockReader(lambda _: len(DATA), bench.source, bench.cache, lambda *_: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 0, 8 * BLOCK, stream=True)
        await wait_all_tasks_blocked()
        for at in range(0, 8 * BLOCK, BLOCK // 2):
            assert await bench.read(at, at + BLOCK // 2) == DATA[at : at + BLOCK // 2]
        nursery.cancel_scope.cancel()
    assert bench.cache.used == 0
    assert sorted(bench.source.loads) == [(1, 0, 5 * BLOCK), (1, 5 * BLOCK, 8 * BLOCK)], "few loads of many blocks"


async def test_what_can_be_read_past_the_depot_is_not_loaded(own: Bench, nursery: trio.Nursery) -> None:
    nursery.start_soon(own.reader.serve)
    assert own.reader.at_hand(1, 5, 9) is None, "nobody has asked for the file"
    for start, stop in ((5, 9), (3 * BLOCK - 2, 3 * BLOCK + 2), (BLOCK, 4 * BLOCK)):
        assert await own.read(start, stop) == DATA[start:stop]
        assert own.reader.at_hand(1, start, stop) == DATA[start:stop]
    own.reader.prefetch(1, 0, 8 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    assert (own.source.loads, own.cache.used) == ([], 0)


async def test_who_reads_ahead_asks_for_the_file(own: Bench, nursery: trio.Nursery) -> None:
    nursery.start_soon(own.reader.serve)
    own.reader.prefetch(1, 0, 8 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    assert (own.source.loads, own.source.own_files.opened) == ([], {1})


async def test_asking_for_a_file_is_not_loading(
    own: Bench, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that can be answered at once need not give it turns."""
    answer = trio.Event()
    opened = own.source.own_files.open

    async def open_late(segment: int) -> bool:
        await answer.wait()
        return await opened(segment)

    monkeypatch.setattr(own.source.own_files, "open", open_late)
    serving = await nursery.start(_cancellable, own.reader.serve)
    own.reader.prefetch(1, 0, 8 * BLOCK, stream=True)
    assert own.reader.is_loading_ahead, "a turn is wanted, to ask"
    await wait_all_tasks_blocked()
    assert (own.reader.ahead, own.reader.is_loading_ahead) == (2, False)
    answer.set()
    await wait_all_tasks_blocked()
    assert (own.reader.ahead, own.reader._opening, own.source.loads) == (0, 0, [])
    own.reader.drop()
    answer = trio.Event()
    own.reader.prefetch(1, 0, 8 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    serving.cancel()
    await wait_all_tasks_blocked()
    assert own.reader._opening == 0


async def _cancellable(serve: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await serve()


async def test_what_lies_between_two_ends_that_are_at_hand_is_asked_for(own: Bench, nursery: trio.Nursery) -> None:
    own.source.own_files.opened, own.source.own_files.absent = {1}, {1}
    nursery.start_soon(own.reader.serve)
    own.reader.prefetch(1, 0, 3 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    assert own.source.loads == [(1, BLOCK, 2 * BLOCK)]


async def test_who_comes_while_others_ask_for_the_file_does_not_load(own: Bench) -> None:
    own.source.own_files.opened = {1}  # by others, since it was not at hand
    part = await own.reader._part((1, 2), 5, 9, small=False, stream=True)
    assert part.data == DATA[2 * BLOCK + 5 : 2 * BLOCK + 9]
    assert own.source.loads == []


async def test_what_is_past_the_depot_comes_as_one_piece_or_not_at_all(own: Bench) -> None:
    assert own.reader.past_depot(1, 5, 3 * BLOCK) is None
    await own.source.own_files.open(1)
    assert own.reader.past_depot(1, 5, 3 * BLOCK) == DATA[5 : 3 * BLOCK]
    own.source.own_files.absent = {2}
    assert own.reader.past_depot(1, 5, 3 * BLOCK) is None


async def test_loads_ahead_are_counted_until_they_end(bench: Bench, nursery: trio.Nursery) -> None:
    bench.source.dead = {1, 2}
    for dead in ({1, 2}, set[int]()):
        bench.source.dead = dead
        assert not bench.reader.ahead
        bench.reader.prefetch(1, 0, 3 * BLOCK)
        assert bench.reader.ahead
        if not nursery.child_tasks:
            nursery.start_soon(bench.reader.serve)
        with trio.fail_after(10):
            while bench.reader.ahead:
                await trio.sleep(0.001)
        await until_cached(bench.cache, 1, 0, 0 if dead else 3 * BLOCK)


async def test_what_the_disk_would_have_to_be_waited_for_is_loaded_and_copied_nowhere(own: Bench) -> None:
    own.source.own_files.absent = {3, 5}
    for number in (3, 4, 5):
        assert await own.read(number * BLOCK + 1, number * BLOCK + 10) == DATA[number * BLOCK + 1 : number * BLOCK + 10]
    assert own.source.loads == [(1, 3 * BLOCK, 4 * BLOCK), (1, 5 * BLOCK, 6 * BLOCK)]
    assert own.cache.used == 0
    own.source.dead = {1, 2}
    assert own.reader.at_hand(1, 3 * BLOCK, 6 * BLOCK) == DATA[3 * BLOCK : 6 * BLOCK], "the kernel has it all now"


async def test_where_nothing_can_be_read_past_the_depot_random_reads_are_cached(own: Bench) -> None:
    own.source.own_files.offered = set()
    assert await own.read(5, 10) == DATA[5:10]
    assert own.cache.covers(1, 0, BLOCK)


async def test_the_file_is_asked_for_anew_after_a_drop_and_where_it_was_wrong(own: Bench) -> None:
    for forget in (own.reader.drop, lambda: own.reader.evict(1, 5, 6)):
        assert await own.read(5, 10) == DATA[5:10]
        forget()
        assert own.reader.at_hand(1, 5, 10) is None
    assert own.source.loads == []


async def test_a_stream_from_far_away_comes_in_blocks(bench: Bench) -> None:
    bench.source.far = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 0, 4 * BLOCK, stream=True)
        await until_cached(bench.cache, 1, 0, 4 * BLOCK)
        nursery.cancel_scope.cancel()
    assert sorted(bench.source.loads) == [(1, at * BLOCK, (at + 1) * BLOCK) for at in range(4)]


async def test_a_stream_from_another_disk_is_cached(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 0, 4 * BLOCK + 10, stream=True)
        await until_cached(bench.cache, 1, 0, 4 * BLOCK + 10)
        nursery.cancel_scope.cancel()
    assert bench.source.loads == [(1, 0, 5 * BLOCK)]
    bench.source.dead = {1, 2}
    assert await bench.read(0, 5 * BLOCK) == DATA[: 5 * BLOCK]


async def test_a_run_leaves_out_what_is_on_its_way(bench: Bench, nursery: trio.Nursery) -> None:
    bench.source.gate = trio.Event()
    nursery.start_soon(bench.reader.serve)
    nursery.start_soon(bench.read, 2 * BLOCK, 2 * BLOCK + 10)
    await wait_all_tasks_blocked()
    bench.reader.prefetch(1, 0, 4 * BLOCK, stream=True)
    bench.reader.prefetch(1, 0, 5 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    bench.source.gate.set()
    await until_cached(bench.cache, 1, 0, 5 * BLOCK)
    assert sum(stop - start for _, start, stop in bench.source.loads) == 5 * BLOCK
    assert await bench.read(0, 5 * BLOCK) == DATA[: 5 * BLOCK]


async def test_readers_wait_for_a_run_that_is_on_its_way(bench: Bench, nursery: trio.Nursery) -> None:
    bench.source.gate = trio.Event()
    nursery.start_soon(bench.reader.serve)
    bench.reader.prefetch(1, 0, 4 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    found: list[bytes] = []

    async def read(start: int, stop: int) -> None:
        found.append(await bench.read(start, stop))

    nursery.start_soon(read, 3 * BLOCK - 10, 3 * BLOCK + 10)
    await wait_all_tasks_blocked()
    bench.source.gate.set()
    await wait_all_tasks_blocked()
    assert found == [DATA[3 * BLOCK - 10 : 3 * BLOCK + 10]]
    assert bench.source.loads == [(1, 0, 4 * BLOCK)]


async def test_runs_are_bounded(bench: Bench, nursery: trio.Nursery) -> None:
    bench.source.gate = trio.Event()
    nursery.start_soon(bench.reader.serve)
    for start in range(0, 18, 3):
        bench.reader.prefetch(1, start * BLOCK, (start + 3) * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    assert bench.source.busy == 2
    bench.source.gate.set()
    await until_cached(bench.cache, 1, 0, 18 * BLOCK)


async def test_a_run_that_is_stuck_holds_up_neither_its_readers_nor_others(
    bench: Bench, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench.reader = BlockReader(lambda _: len(DATA), bench.source, bench.cache, lambda *_: True)
    bench.source.longest = BLOCK
    bench.source.segments[2] = bytearray(DATA)
    nursery.start_soon(bench.reader.serve)
    bench.reader.prefetch(1, 0, 10 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    bench.reader.prefetch(2, 0, 5 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    assert [stop - start for _, start, stop in bench.source.loads] == [5 * BLOCK] * 2
    with trio.fail_after(10):
        assert await bench.read(BLOCK, BLOCK + 10) == DATA[BLOCK : BLOCK + 10]
    await wait_all_tasks_blocked()
    bench.reader.prefetch(1, 10 * BLOCK, 15 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    assert {stop - start for _, start, stop in bench.source.loads[2:]} == {BLOCK}, "no run again soon"
    assert {start for number, start, _ in bench.source.loads[2:] if number == 2} == {at * BLOCK for at in range(5)}


async def test_a_run_that_is_stuck_pauses_none_that_comes_from_other_depots(
    bench: Bench, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench.source.longest = BLOCK
    for segment in (2, 3):
        bench.source.segments[segment] = bytearray(DATA)
    bench.source.depots[2] = frozenset({3})
    nursery.start_soon(bench.reader.serve)
    bench.reader.prefetch(1, 0, 5 * BLOCK, stream=True)
    await trio.sleep(10)  # of the test's clock
    bench.source.longest = 5 * BLOCK
    bench.source.loads.clear()
    for segment in (2, 3):
        bench.reader.prefetch(segment, 0, 5 * BLOCK, stream=True)
    await trio.sleep(1)
    lengths = {number: stop - start for number, start, stop in bench.source.loads}
    assert lengths == {2: 5 * BLOCK, 3: BLOCK}
    await trio.sleep(60)
    bench.reader.prefetch(1, 10 * BLOCK, 15 * BLOCK, stream=True)
    await trio.sleep(1)
    assert bench.source.loads[-1] == (1, 10 * BLOCK, 15 * BLOCK)


async def test_readers_of_a_run_that_fails_fetch_their_block(bench: Bench, nursery: trio.Nursery) -> None:
    bench.source.gate = trio.Event()
    bench.source.dead = {1, 2}
    nursery.start_soon(bench.reader.serve)
    bench.reader.prefetch(1, 0, 5 * BLOCK, stream=True)
    await wait_all_tasks_blocked()
    found: list[bytes] = []

    async def read() -> None:
        found.append(await bench.read(BLOCK, BLOCK + 10))

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    gate, bench.source.gate = bench.source.gate, trio.Event()
    gate.set()
    await wait_all_tasks_blocked()
    bench.source.dead = set()
    bench.source.gate.set()
    await wait_all_tasks_blocked()
    assert found == [DATA[BLOCK : BLOCK + 10]]
    assert bench.source.loads == [(1, 0, 5 * BLOCK), (1, BLOCK, 2 * BLOCK)]


async def test_a_block_held_from_a_run_counts_as_the_whole_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "cache")
    bench.source.segments = {number: bytearray(DATA[: 5 * BLOCK]) for number in range(1, 7)}
    bench.reader = BlockReader(lambda _: 5 * BLOCK, bench.source, bench.cache, lambda *_: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        for segment in range(1, 7):
            bench.reader.prefetch(segment, 0, 5 * BLOCK, stream=True)
            await wait_all_tasks_blocked()
            for number in range(5):  # the first one is used again and again
                await bench.reader.parts(1, 0, 10)
                await bench.reader.parts(segment, number * BLOCK, number * BLOCK + 10)
        wholes = {id(memoryview(held.loaded.data).obj) for held in bench.reader._held.values()}
        nursery.cancel_scope.cancel()
    assert len(wholes) == 3
    assert bench.cache.used == 0


async def test_a_block_in_memory_that_has_grown_is_loaded_ahead(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "cache", length=100)
    bench.reader = BlockReader(lambda _: len(bench.source.segments[1]), bench.source, bench.cache, lambda *_: True)
    assert await bench.read(0, 100) == DATA[:100]
    bench.source.segments[1] = bytearray(DATA[:300])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        bench.reader.prefetch(1, 0, 100)
        bench.reader.prefetch(1, 0, 300)
        await until_cached(bench.cache, 1, 0, 300)
        nursery.cancel_scope.cancel()
    assert bench.source.loads == [(1, 0, 100), (1, 0, 300)]


async def test_what_came_from_elsewhere_is_cached(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "cache")
    bench.reader = BlockReader(lambda _: len(DATA), bench.source, bench.cache, lambda _, giver: giver == 1)
    bench.source.own_files.offered, bench.source.own_files.absent = {1}, {0, 1}
    await bench.read(0, 10)
    bench.source.dead = {1}
    await bench.read(BLOCK, BLOCK + 10)
    assert not bench.cache.covers(1, 0, BLOCK)
    assert bench.cache.covers(1, BLOCK, 2 * BLOCK)


async def test_the_end_of_a_read_that_streams_is_not_copied_either(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "cache")
    bench.reader = BlockReader(lambda _: len(DATA), bench.source, bench.cache, lambda *_: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        await wait_all_tasks_blocked()
        assert await bench.read(10, BLOCK + 10) == DATA[10 : BLOCK + 10]
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert bench.cache.used == 0


async def test_what_memory_cannot_hold_for_its_readers_goes_to_the_disk(tmp_path: Path) -> None:
    blocks = 40
    bench = Bench(tmp_path / "cache")
    bench.source.segments[1] = bytearray(DATA * 3)[: blocks * BLOCK]
    bench.reader = BlockReader(lambda _: blocks * BLOCK, bench.source, bench.cache, lambda *_: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        for number in range(blocks):
            bench.reader.prefetch(1, number * BLOCK, (number + 1) * BLOCK, stream=True)
            while len(bench.source.loads) <= number:
                await trio.sleep(0.001)
        for number in range(blocks):
            await bench.read(number * BLOCK, number * BLOCK + 10)
        nursery.cancel_scope.cancel()
    assert len(bench.source.loads) == blocks
    assert bench.cache.used > 0


async def test_a_block_is_written_behind_its_reader_unless_it_is_dropped_first(bench: Bench) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.serve)
        await wait_all_tasks_blocked()
        assert await bench.read(10, 20) == DATA[10:20]
        assert bench.cache.used == 0
        bench.reader.drop()
        await wait_all_tasks_blocked()
        assert bench.cache.used == 0
        assert await bench.read(10, 20) == DATA[10:20]
        await until_cached(bench.cache, 1, 0, BLOCK)
        nursery.cancel_scope.cancel()
    assert len(bench.source.loads) == 2
