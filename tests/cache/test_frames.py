import logging
import os
import random
import shutil
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from ibpfs.cache.clean import BLOCK, CleanCache
from ibpfs.cache.frames import FrameMemory, SliceReader
from ibpfs.errors import DataError
from ibpfs.exnode_store.keys import make_keys
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.sealing import AES_256_GCM, CHACHA20_POLY1305, FRAME_SIZE, HEADER, PLAIN_XXH3

from .library import Library, until_cached

MIB = 1024 * 1024
DATA = random.Random(2).randbytes(3 * MIB + 123)
FUNCTIONS = [AES_256_GCM, CHACHA20_POLY1305, PLAIN_XXH3]


class Desk:
    """A library, a cache, and a reader of both."""

    def __init__(self, directory: Path, limit: int = 64 * MIB) -> None:
        self.library = Library()
        self.source = self.library.source
        self.directory = directory
        self.cache = CleanCache(directory, limit, 0.0)
        self.reader = self.another_reader()

    def another_reader(self, memory: int = 32 * MIB) -> SliceReader:
        return SliceReader(self.library.length, self.source, self.library.keys, self.cache, memory)

    def flip(self, replica: int, ref: SliceRef, offset: int) -> None:
        """Change the stored byte of a sealed slice that comes from the file byte at `offset`."""
        frame, within = divmod(offset, ref.form.frame_size)
        at = ref.segment_offset + HEADER.size + frame * (ref.form.frame_size + ref.form.overhead) + within
        self.source.damage.setdefault(replica, set()).add((ref.segment, at))

    def block_files(self) -> list[Path]:
        return sorted(path for path in self.directory.rglob("*") if path.is_file())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "cache")


@settings(max_examples=60, deadline=None)
@given(
    function=st.sampled_from(FUNCTIONS),
    frame_size=st.sampled_from([4096, 16384, 65536]),
    lengths=st.lists(st.integers(1, 700_000), min_size=1, max_size=6),
    reads=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12),
    limit=st.sampled_from([0, BLOCK, 64 * MIB]),
)
def test_reads_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    function: int,
    frame_size: int,
    lengths: list[int],
    reads: list[tuple[int, float, float]],
    limit: int,
) -> None:
    async def main() -> None:
        directory = tmp_path_factory.mktemp("frames")
        desk = Desk(directory, limit)
        datas = [DATA[at : at + length] for at, length in enumerate(lengths)]
        refs = [desk.library.write(data, function=function, frame_size=frame_size) for data in datas]
        for which, one, other in reads:
            data, ref = datas[which % len(refs)], refs[which % len(refs)]
            start, stop = sorted((int(one * len(data)), int(other * len(data))))
            assert await desk.reader.read(ref, start, stop) == data[start:stop]
        desk.reader.drop()
        for data, ref in zip(datas, refs, strict=True):
            assert await desk.reader.read(ref, 0, len(data)) == data
        assert desk.source.reports == []
        shutil.rmtree(directory)

    trio.run(main)


async def test_nothing_outside_of_a_slice_is_read(desk: Desk) -> None:
    ref = desk.library.write(b"abc")
    assert await desk.reader.read(ref, 3, 3) == b""
    for start, stop in ((0, 4), (2, 1), (-1, 2)):
        with pytest.raises(ValueError, match="outside"):
            await desk.reader.read(ref, start, stop)


async def test_thousands_of_tiny_slices_cost_one_load(desk: Desk) -> None:
    refs = [desk.library.write(b"%d" % number) for number in range(3000)]
    for number, ref in enumerate(refs):
        assert await desk.reader.read(ref, 0, ref.form.length) == b"%d" % number
    assert len(desk.source.loads) == 1


async def test_a_frame_in_memory_needs_nothing_else(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    await desk.reader.read(ref, 100_000, 100_010)
    desk.source.dead = {1, 2}
    desk.cache.clear()
    assert await desk.reader.read(ref, 70_000, 130_000) == DATA[70_000:130_000]
    desk.reader.drop()
    with pytest.raises(DataError):
        await desk.reader.read(ref, 70_000, 130_000)


async def test_a_dead_replica_is_not_noticed(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    desk.source.dead = {1}
    assert await desk.reader.read(ref, 0, len(DATA)) == DATA


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_lying_replica_is_reported_and_passed_over(desk: Desk, function: int) -> None:
    ref = desk.library.write(DATA, function=function)
    desk.flip(1, ref, 200_000)
    assert await desk.reader.read(ref, 199_000, 201_000) == DATA[199_000:201_000]
    assert [replica for replica, _ in desk.source.reports] == [1]
    # The bad block is not in the cache any more: others get sound bytes.
    assert await desk.another_reader().read(ref, 0, len(DATA)) == DATA
    assert [replica for replica, _ in desk.source.reports] == [1]


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_what_was_read_past_a_lying_depot_blames_it(desk: Desk, function: int) -> None:
    ref = desk.library.write(DATA, function=function)
    desk.source.own_files.offered = {ref.segment}
    desk.flip(1, ref, 200_000)
    assert await desk.reader.read(ref, 0, 10) == DATA[:10]
    assert desk.source.loads == []
    assert desk.reader.read_now(ref, 200_000, 200_010) is None
    assert await desk.reader.read(ref, 200_000, 200_010) == DATA[200_000:200_010]
    assert [replica for replica, _ in desk.source.reports] == [1]
    assert len(desk.source.loads) == 1


async def test_a_lie_that_was_cached_before_it_was_read(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    ref = desk.library.write(DATA)
    desk.flip(1, ref, 200_000)
    assert await desk.reader.read(ref, 0, 10) == DATA[:10]
    assert desk.source.reports == []
    assert await desk.reader.read(ref, 200_000, 200_010) == DATA[200_000:200_010]
    assert [replica for replica, _ in desk.source.reports] == [1]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()


async def test_replicas_that_each_lie_elsewhere(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    desk.flip(1, ref, 100_000)
    desk.flip(2, ref, 200_000)
    assert await desk.reader.read(ref, 0, 300_000) == DATA[:300_000]


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_frame_that_nobody_has_is_an_error_that_names_them(desk: Desk, function: int) -> None:
    ref = desk.library.write(DATA, function=function)
    desk.flip(1, ref, 100_000)
    desk.flip(2, ref, 100_001)
    with pytest.raises(DataError, match=r"depot ibp://d1 allocation.*depot ibp://d2 allocation") as caught:
        await desk.reader.read(ref, 0, 200_000)
    assert "\n" not in str(caught.value)
    assert {replica for replica, _ in desk.source.reports} == {1, 2}
    assert await desk.reader.read(ref, 0, 60_000) == DATA[:60_000]
    assert await desk.reader.read(ref, 140_000, len(DATA)) == DATA[140_000:]


async def test_a_liar_and_a_dead_one(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    desk.flip(1, ref, 100_000)
    desk.source.dead = {2}
    with pytest.raises(DataError, match="depot ibp://d1 allocation"):
        await desk.reader.read(ref, 90_000, 110_000)


@pytest.mark.parametrize("limit", [0, 64 * MIB])
async def test_a_frame_across_two_blocks_blames_nobody_wrongly(tmp_path: Path, limit: int) -> None:
    desk = Desk(tmp_path / "cache", limit)
    ref = desk.library.write(DATA)
    border = BLOCK - HEADER.size - 16 * (BLOCK // (65536 + 16))  # the file byte that lies on the blocks' border
    # First block from replica 1, the next from replica 2, which lies there.
    await desk.reader.read(ref, 0, 10)
    desk.source.dead = {1}
    desk.flip(2, ref, border + 50)
    await desk.reader.read(ref, 2 * BLOCK - 10_000, 2 * BLOCK)
    desk.source.dead = set()
    loads = len(desk.source.loads)
    assert await desk.reader.read(ref, border - 5, border + 100) == DATA[border - 5 : border + 100]
    assert len(desk.source.loads) == loads + 1
    assert desk.source.reports == []


async def test_short_answers(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    desk.source.short = {1}
    assert await desk.reader.read(ref, 0, len(DATA)) == DATA
    assert {replica for replica, _ in desk.source.reports} == {1}


async def test_frames_are_had_from_a_block_that_is_not_whole_anywhere(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    length = desk.library.length(1)
    del desk.source.segments[1][700_000:]
    reader = SliceReader(lambda _: length, desk.source, desk.library.keys, desk.cache)
    assert await reader.read(ref, 0, 500_000) == DATA[:500_000]
    with pytest.raises(DataError):
        await reader.read(ref, 650_000, 750_000)


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_changed_bit_in_the_cache(desk: Desk, function: int, caplog: pytest.LogCaptureFixture) -> None:
    ref = desk.library.write(DATA, function=function)
    await desk.reader.read(ref, 0, len(DATA))
    for path in desk.block_files():
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 4]))
    assert await desk.another_reader().read(ref, 0, len(DATA)) == DATA
    assert desk.source.reports == []
    assert "local cache" in caplog.text
    caplog.clear()
    assert await desk.another_reader().read(ref, 0, len(DATA)) == DATA
    assert not caplog.records


async def test_cut_and_deleted_cache_files(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    await desk.reader.read(ref, 0, len(DATA))
    first, second, *_ = desk.block_files()
    os.truncate(first, 1000)
    second.unlink()
    assert await desk.another_reader().read(ref, 0, len(DATA)) == DATA
    shutil.rmtree(desk.directory)
    assert await desk.another_reader().read(ref, 0, len(DATA)) == DATA
    assert desk.source.reports == []


async def test_files_of_another_life_in_the_cache_are_found_out(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A volume restored from an older state may use a segment's number again."""
    desk.library.write(DATA)
    desk.cache.insert(1, 0, bytes(desk.source.segments[1]))
    desk.source.segments.clear()
    ref = desk.library.write(DATA[::-1])
    assert await desk.reader.read(ref, 0, 1000) == DATA[::-1][:1000]
    assert desk.source.reports == []
    assert "local cache" in caplog.text
    caplog.clear()


async def test_the_wrong_key_opens_nothing(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    reader = SliceReader(desk.library.length, desk.source, make_keys(), desk.cache)
    with pytest.raises(DataError, match="allocation"):
        await reader.read(ref, 0, 10)


async def test_a_frame_of_another_slice_does_not_pass(desk: Desk) -> None:
    one, other = desk.library.write(DATA[:100]), desk.library.write(DATA[100:200])
    swapped = SliceRef(99, one.form, 1, other.segment_offset)
    with pytest.raises(DataError):
        await desk.reader.read(swapped, 0, 100)
    assert await desk.reader.read(one, 0, 100) == DATA[:100]


async def test_many_readers_of_a_lying_block(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    for frame in range(16):
        desk.flip(1, ref, frame * 65536)
    desk.source.gate = trio.Event()

    async def read(start: int) -> None:
        assert await desk.reader.read(ref, start, start + 4096) == DATA[start : start + 4096]

    async with trio.open_nursery() as nursery:
        for start in range(0, 900_000, 20_000):
            nursery.start_soon(read, start)
        await wait_all_tasks_blocked()
        desk.source.gate.set()
    assert {replica for replica, _ in desk.source.reports} == {1}


async def test_prefetched_bytes_need_no_source(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.reader.serve)
        desk.reader.prefetch(ref, 0, len(DATA) + 5 * MIB)
        await until_cached(desk.cache, 1, 0, ref.form.stored_span(0, ref.form.frames)[1])
        nursery.cancel_scope.cancel()
    desk.source.dead = {1, 2}
    assert await desk.reader.read(ref, 0, len(DATA)) == DATA


@pytest.mark.parametrize("beside", [False, True])
async def test_a_lie_in_a_load_of_many_blocks(desk: Desk, beside: bool) -> None:
    desk.reader = SliceReader(
        desk.library.length, desk.source, desk.library.keys, desk.cache, is_beside=lambda *_: beside
    )
    ref = desk.library.write(DATA)
    desk.flip(1, ref, 1_500_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.reader.serve)
        desk.reader.prefetch(ref, 0, len(DATA), stream=True)
        await wait_all_tasks_blocked()
        if not beside:
            await until_cached(desk.cache, 1, 0, ref.form.stored_span(0, ref.form.frames)[1])
        assert len(desk.source.loads) == 1
        assert await desk.reader.read(ref, 0, len(DATA)) == DATA
        nursery.cancel_scope.cancel()
    assert [replica for replica, _ in desk.source.reports] == [1]


async def test_frames_are_had_from_a_run_that_is_not_whole_anywhere(desk: Desk) -> None:
    ref = desk.library.write(DATA)
    stored = desk.source.segments[1]
    desk.source.segments[1] = stored[: 2 * MIB]  # the rest is lost
    desk.reader = SliceReader(lambda _: len(stored), desk.source, desk.library.keys, desk.cache)
    desk.source.gate = trio.Event()
    found: list[bytes] = []

    async def read() -> None:
        found.append(bytes(await desk.reader.read(ref, 0, MIB)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.reader.serve)
        desk.reader.prefetch(ref, 0, len(DATA), stream=True)
        await wait_all_tasks_blocked()
        nursery.start_soon(read)  # waits for the run, which comes to nothing
        await wait_all_tasks_blocked()
        desk.source.gate.set()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert found == [DATA[:MIB]]


async def test_what_is_at_hand_is_read_without_waiting(desk: Desk) -> None:
    data = os.urandom(3 * FRAME_SIZE)
    ref = desk.library.write(data)
    assert desk.reader.read_now(ref, 10, 20) is None
    await desk.reader.read(ref, 0, 1)
    again = desk.another_reader()
    loads = len(desk.source.loads)
    assert again.read_now(ref, FRAME_SIZE, FRAME_SIZE + 4096) == data[FRAME_SIZE : FRAME_SIZE + 4096]
    assert again.read_now(ref, 2 * FRAME_SIZE - 1, 2 * FRAME_SIZE) == data[2 * FRAME_SIZE - 1 : 2 * FRAME_SIZE]
    assert again.read_now(ref, FRAME_SIZE - 1, FRAME_SIZE + 1) is None  # of two frames
    assert len(desk.source.loads) == loads


async def test_a_stream_that_can_be_read_past_its_depot_is_at_hand(desk: Desk) -> None:
    desk.library.write(b"what lies before")
    ref = desk.library.write(DATA)
    assert desk.reader.read_now(ref, 0, MIB) is None
    desk.source.own_files.opened = {ref.segment}
    for start, stop in ((0, MIB), (MIB, 2 * MIB), (5, MIB + 7), (2 * MIB, len(DATA)), (0, len(DATA))):
        assert desk.reader.read_now(ref, start, stop) == DATA[start:stop]
    desk.source.own_files.absent = {1}
    assert desk.reader.read_now(ref, MIB, 2 * MIB) is None
    assert desk.source.loads == []


@pytest.mark.parametrize("function", [AES_256_GCM, CHACHA20_POLY1305])
async def test_of_a_damaged_stream_nothing_is_at_hand(desk: Desk, function: int) -> None:
    ref, other = desk.library.write(DATA, function=function), desk.library.write(DATA[::-1], function=function)
    desk.source.own_files.opened = desk.source.own_files.offered = {ref.segment}
    desk.flip(1, ref, 200_000)
    assert desk.reader.read_now(ref, 0, MIB) is None
    assert desk.reader.read_now(other, 0, MIB) == DATA[::-1][:MIB]
    assert await desk.reader.read(ref, 0, MIB) == DATA[:MIB]
    assert [replica for replica, _ in desk.source.reports] == [1]


async def test_damage_in_the_cache_is_never_read_at_once(desk: Desk) -> None:
    data = os.urandom(FRAME_SIZE)
    ref = desk.library.write(data)
    await desk.reader.read(ref, 0, 1)
    (path,) = (path for path in desk.cache.directory.rglob("*") if path.is_file())
    stored = bytearray(path.read_bytes())
    stored[1000] ^= 1
    path.write_bytes(stored)
    assert desk.another_reader().read_now(ref, 10, 20) is None


def test_frame_memory_is_bounded_and_keeps_what_is_used() -> None:
    memory = FrameMemory(100_000)
    memory.put(1, 0, bytes(10_000))
    for number in range(1, 50):
        memory.put(1, number, bytes(10_000))
        assert memory.get(1, 0) is not None
        assert memory.used <= 100_000
    assert memory.get(1, 1) is None
    assert memory.get(1, 49) is not None
    for number in range(1000):
        memory.put(2, number, b"x")
    assert len(memory._frames) < 400
    memory.put(3, 0, bytes(200_000))
    assert memory.used <= 100_000
    memory.clear()
    assert memory.used == 0
    assert memory.get(1, 49) is None
