"""When what is stored gets into the clean cache, and that it gets to its place."""

from pathlib import Path

import pytest
import trio
import trio.testing

from ibpfs.cache.clean import BLOCK, CleanCache
from ibpfs.cache.fresh import Fresh


@pytest.fixture
def clean(tmp_path: Path) -> CleanCache:
    return CleanCache(tmp_path / "cache", 16 * BLOCK, 0.0)


async def test_small_appends_are_cached_together(clean: CleanCache, autojump_clock: trio.testing.MockClock) -> None:
    fresh = Fresh(clean, lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fresh.run)
        for round_ in range(2):
            await fresh.add(7, 6 * round_, [b"ab", b"c"], 3, 1)
            await fresh.add(8, 2 * round_, [b"xy"], 2, 1)
            await fresh.add(7, 6 * round_ + 3, [b"def"], 3, 1)
            assert not clean.covers(7, 6 * round_, 6 * round_ + 1)
            await trio.sleep(1)
            while not clean.covers(8, 0, 2 * round_ + 2):
                await trio.sleep(0.1)  # of the test's clock: `run` may begin to gather only now
        assert clean.read(7, 0, 12) == b"abcdefabcdef"
        assert clean.read(8, 0, 4) == b"xyxy"
        nursery.cancel_scope.cancel()


async def test_many_small_appends_wait_for_no_clock(clean: CleanCache, mock_clock: trio.testing.MockClock) -> None:
    fresh = Fresh(clean, lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fresh.run)
        for number in range(40):
            await fresh.add(1, 50_000 * number, [bytes([number]) * 50_000], 50_000, 1)
        while not clean.covers(1, 0, BLOCK):
            await trio.lowlevel.checkpoint()
        assert clean.read(1, 100_000, 150_000) == b"\x02" * 50_000
        nursery.cancel_scope.cancel()


async def test_what_the_disk_does_not_keep_up_with_is_not_kept_in_memory(clean: CleanCache) -> None:
    fresh = Fresh(clean, lambda _: False)
    for number in range(1000):
        await fresh.add(1, 50_000 * number, [bytes(50_000)], 50_000, 1)
    assert fresh._size < 9 * BLOCK


async def test_what_follows_a_gap_is_not_put_into_it(
    clean: CleanCache, autojump_clock: trio.testing.MockClock
) -> None:
    fresh = Fresh(clean, lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fresh.run)
        await fresh.add(1, 0, [b"abc"], 3, 1)
        await fresh.add(1, 5, [b"fgh"], 3, 1)
        await trio.sleep(1)
        while not clean.covers(1, 0, 3):
            await trio.lowlevel.checkpoint()
        assert clean.read(1, 0, 3) == b"abc"
        assert not clean.covers(1, 3, 6)
        nursery.cancel_scope.cancel()


async def test_a_long_append_comes_behind_the_short_ones_before_it(clean: CleanCache) -> None:
    fresh = Fresh(clean, lambda _: False)
    await fresh.add(1, 0, [b"abc"], 3, 1)
    await fresh.add(1, 3, [b"x" * 100_000], 100_000, 1)
    assert clean.read(1, 0, 5) == b"abcxx"


async def test_what_waits_is_dropped_with_the_rest(clean: CleanCache, autojump_clock: trio.testing.MockClock) -> None:
    fresh = Fresh(clean, lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fresh.run)
        await fresh.add(1, 0, [b"abc"], 3, 1)
        await fresh.drop()
        await trio.sleep(1)
        assert not clean.covers(1, 0, 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_beside", [True, False])
async def test_streams_pass_by_a_disk_that_has_them_anyway(clean: CleanCache, is_beside: bool) -> None:
    await Fresh(clean, lambda _: is_beside).add(1, 0, [bytes(BLOCK)], BLOCK, 1)
    assert clean.covers(1, 0, BLOCK) is not is_beside


async def test_who_reads_what_waits_has_it_written_first(tmp_path: Path) -> None:
    clean = CleanCache(tmp_path / "cache", 64 << 20, 0.0)
    fresh = Fresh(clean, lambda _: False)
    await fresh.add(1, 0, [b"x" * 100], 100, 1)
    await fresh.settle(2)  # another one, which nobody waits for
    assert fresh.is_settling(1)
    await fresh.settle(1)  # nobody writes: that is not waited for
    assert fresh.is_settling(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fresh.run)
        while fresh.is_settling(1):
            await fresh.settle(1)
        nursery.cancel_scope.cancel()
    assert clean.read(1, 0, 100) == b"x" * 100
