"""Verifying in the background, over real depots: what it finds, and that it goes on where the last owner ended."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from ibpfs.config import VolumePaths
from ibpfs.errors import UsageError
from tests.cache.stack import Stack, run_depot, run_stack

from .test_verification import TEXTS, allocations, answers, assert_well, flip, harmed, volume

__all__ = ["volume"]


def age(stack: Stack, seconds: float) -> None:
    with stack.db.transaction() as db:
        db.execute("UPDATE segments SET created_at = created_at - ?", (seconds,))
        db.execute("UPDATE replicas SET verified_at = verified_at - ?", (seconds,))


async def test_nothing_is_verified_before_half_of_the_period(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: None) as now:
        assert now.warmer.scrubbing.period == 30 * 86400
        assert await now.warmer.scrubbing.catch_up() == 0
        state = now.warmer.scrubbing.state()
        assert state["total_bytes"] == 2 * now.ledger.segment_length(1)
        assert state["verified_bytes"] == 0


async def test_sound_replicas_are_verified_once(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: None) as now:
        age(now, 31 * 86400)
        assert await now.warmer.scrubbing.catch_up() == 2
        assert await now.warmer.scrubbing.catch_up() == 0
        state = now.warmer.scrubbing.state()
        assert state["verified_bytes"] == state["total_bytes"]
        await assert_well(now, volume)


async def test_a_flipped_bit_nobody_has_read_is_found_and_mended(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: flip(volume, "two", TEXTS[1])) as now:
        await now.warmer.scrubbing.set_period(2.0)
        await trio.lowlevel.checkpoint()
        with trio.fail_after(30):
            while now.db.value("SELECT count(*) FROM replicas WHERE verified_at IS NULL") or now.ledger.suspects():
                await trio.sleep(0.02)
            while True:
                try:
                    await assert_well(now, volume)
                    break
                except (AssertionError, ValueError):  # what was replaced is still to be released
                    await trio.sleep(0.05)


async def test_a_lost_allocation_is_found_and_mended(volume: VolumePaths) -> None:
    def lose() -> None:
        (path,) = allocations(volume, "one")
        path.unlink()

    async with harmed(volume, lose) as now:
        age(now, 31 * 86400)
        await now.warmer.scrubbing.catch_up()
        assert [one.depot for one in now.ledger.suspects()] == [1]
        await now.warmer.verify()
        await now.warmer.repair()
        await now.warmer.verify()
        await now.warmer.release_orphans()
        await assert_well(now, volume)


async def test_it_goes_on_with_the_next_owner(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: None, back=("one",)) as now:
        age(now, 31 * 86400)
        assert await now.warmer.scrubbing.catch_up() == 1
    async with harmed_again(volume) as now:
        age(now, 10 * 86400)  # the first one's turn has not come again
        assert sorted(one.depot for one in now.ledger.replicas(1)) == [1, 2]
        assert await now.warmer.scrubbing.catch_up() == 1
        assert now.db.value("SELECT count(*) FROM replicas WHERE verified_at IS NULL") == 0


@asynccontextmanager
async def harmed_again(volume: VolumePaths) -> AsyncIterator[Stack]:
    """The same volume with its next owner."""
    one, two = (volume.root.with_name(name) for name in ("one", "two"))
    async with run_depot(one), run_depot(two), run_stack(volume) as stack:
        await answers(stack, 2)
        yield stack


async def test_never(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: None) as now:
        age(now, 400 * 86400)
        await now.warmer.scrubbing.set_period(None)
        assert now.warmer.scrubbing.period is None
        assert await now.warmer.scrubbing.catch_up() == 0
        with pytest.raises(UsageError):
            await now.warmer.scrubbing.set_period(0.1)
