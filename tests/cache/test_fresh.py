"""When what is stored gets into the clean cache: beside its way to the depots, or after it."""

from pathlib import Path

import pytest
import trio
import trio.testing

from ibpfs.cache.clean import BLOCK, CleanCache
from ibpfs.cache.fresh import Fresh


@pytest.fixture
def clean(tmp_path: Path) -> CleanCache:
    return CleanCache(tmp_path / "cache", 16 * BLOCK, 0.0)


async def test_a_small_append_is_cached_while_its_maker_waits(clean: CleanCache) -> None:
    fresh = Fresh(clean, lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fresh.run)
        await trio.testing.wait_all_tasks_blocked()
        append = fresh.append([b"abc", b"def"], 6, 1)
        append.goes(7, 0)
        assert not clean.covers(7, 0, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert clean.read(7, 0, 6) == b"abcdef"
        append.goes(8, 0)  # the first segment did not take it
        await append.stored(8, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert clean.read(8, 0, 6) == b"abcdef"
        nursery.cancel_scope.cancel()


async def test_what_nobody_could_cache_before_is_cached_in_the_end(clean: CleanCache) -> None:
    fresh = Fresh(clean, lambda _: False)
    unannounced, unattended = fresh.append([b"abc"], 3, 1), fresh.append([b"def"], 3, 1)
    await unannounced.stored(1, 0)
    unattended.goes(1, 3)
    assert not clean.covers(1, 3, 6)
    await unattended.stored(1, 3)
    assert clean.read(1, 0, 6) == b"abcdef"


@pytest.mark.parametrize("is_beside", [True, False])
async def test_streams_pass_by_a_disk_that_has_them_anyway(clean: CleanCache, is_beside: bool) -> None:
    append = Fresh(clean, lambda _: is_beside).append([bytes(BLOCK)], BLOCK, 1)
    append.goes(1, 0)
    await append.stored(1, 0)
    assert clean.covers(1, 0, BLOCK) is not is_beside
