"""Suspect replicas: looked at again, trusted again or replaced, over real depots."""

import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.errors import DataError
from ibpfs.exnode_store.creation import create_volume
from tests.cache.stack import Stack, run_depot, run_stack

TEXTS = [random.Random(number).randbytes(50_000) for number in range(3)]


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    """Two copies of each byte, in clear, on depots `one` and `two`."""
    paths = VolumePaths(tmp_path / "volume")
    addresses = [f"unix:{tmp_path}/{name}/depot.sock" for name in ("one", "two")]
    create_volume(paths, depots=addresses, plain=True)
    return paths


def allocations(volume: VolumePaths, name: str) -> list[Path]:
    return [one for one in (volume.root.with_name(name) / "allocations").rglob("*") if one.is_file()]


def flip(volume: VolumePaths, name: str, text: bytes) -> None:
    """Change a byte of a text on a depot."""
    (path,) = allocations(volume, name)
    raw = path.read_bytes()
    assert raw.count(text) == 1
    path.write_bytes(raw.replace(text, text[:100] + bytes([text[100] ^ 1]) + text[101:]))


@asynccontextmanager
async def harmed(
    volume: VolumePaths, harm: Callable[[], None], back: tuple[str, ...] = ("one", "two")
) -> AsyncIterator[Stack]:
    """Three files in a segment with two copies, which were harmed while their depots were down; some are `back`."""
    async with AsyncExitStack() as before:
        for name in ("one", "two"):
            await before.enter_async_context(run_depot(volume.root.with_name(name)))
        stack = await before.enter_async_context(run_stack(volume))
        await answers(stack, 2)
        for number, text in enumerate(TEXTS):
            await stack.files.write(stack.create(b"%d" % number).ino, 0, text)
        await stack.files.drop()
        assert await stack.flusher.finish(5)
        assert stack.warmer.under_replicated_bytes == 0
    harm()
    async with AsyncExitStack() as after:
        for name in back:
            await after.enter_async_context(run_depot(volume.root.with_name(name)))
        stack = await after.enter_async_context(run_stack(volume))
        await answers(stack, len(back))
        await stack.flusher.drop_clean()
        yield stack


async def answers(stack: Stack, number: int) -> None:
    with trio.fail_after(10):
        while stack.transfer.answering() < number:
            await trio.sleep(0.01)


async def look(stack: Stack) -> None:
    await stack.warmer.verify()
    await stack.warmer.repair()
    await stack.warmer.verify()
    await stack.warmer.release_orphans()


def suspect_all(stack: Stack) -> None:
    for replica in stack.ledger.replicas(1):
        stack.ledger.suspect(replica)


async def assert_well(stack: Stack, volume: VolumePaths) -> None:
    """Two sound copies on two depots, each of which has every byte right; nothing else is left there."""
    replicas = stack.ledger.replicas(1)
    assert sorted((one.depot, one.suspect) for one in replicas) == [(1, False), (2, False)]
    assert stack.warmer.under_replicated_bytes == 0
    for name in ("one", "two"):
        (path,) = allocations(volume, name)
        assert all(text in path.read_bytes() for text in TEXTS)


async def test_a_sound_replica_is_trusted_again(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: None) as now:
        before = {replica.id for replica in now.ledger.replicas(1)}
        suspect_all(now)
        await now.warmer.verify()
        await assert_well(now, volume)
        assert {replica.id for replica in now.ledger.replicas(1)} == before
        assert now.db.value("SELECT count(*) FROM replicas WHERE verified_at IS NULL") == 0


async def test_one_on_a_depot_that_is_away_stays_suspect(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: None, back=("one",)) as now:
        suspect_all(now)
        await now.warmer.verify()
        assert {one.depot: one.suspect for one in now.ledger.replicas(1)} == {1: False, 2: True}


async def test_a_flipped_bit_is_replaced_on_the_same_depot(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: flip(volume, "two", TEXTS[1])) as now:
        (bad,) = [one for one in now.ledger.replicas(1) if one.depot == 2]
        now.transfer.report(bad.id, "as a reader found")
        await look(now)
        await assert_well(now, volume)
        assert now.ledger.replica(bad.id) is None


async def test_a_lost_allocation_is_replaced(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: shutil.rmtree(volume.root.with_name("two") / "allocations")) as now:
        (gone,) = [one for one in now.ledger.replicas(1) if one.depot == 2]
        avoided = frozenset(one.id for one in now.ledger.replicas(1) if one.depot == 1)
        with pytest.raises(DataError):
            await now.transfer.load(1, 0, 100, avoid=avoided)
        assert [one.suspect for one in now.ledger.replicas(1) if one.id == gone.id] == [True]
        await look(now)
        await assert_well(now, volume)


async def test_replicas_that_are_bad_in_different_places_are_put_together(volume: VolumePaths) -> None:
    def harm() -> None:
        flip(volume, "one", TEXTS[0])
        flip(volume, "two", TEXTS[2])

    async with harmed(volume, harm) as now:
        suspect_all(now)
        await look(now)
        await assert_well(now, volume)


async def test_a_bad_one_waits_for_the_depot_of_the_sound_one(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: flip(volume, "two", TEXTS[1]), back=("two",)) as now:
        suspect_all(now)
        await look(now)
        assert sorted((one.depot, one.suspect) for one in now.ledger.replicas(1)) == [(1, True), (2, True)]
        async with run_depot(volume.root.with_name("one")):
            await answers(now, 2)
            await look(now)
            await assert_well(now, volume)


async def test_what_is_bad_everywhere_is_kept(volume: VolumePaths) -> None:
    def harm() -> None:
        flip(volume, "one", TEXTS[1])
        flip(volume, "two", TEXTS[1])

    async with harmed(volume, harm) as now:
        before = {replica.id for replica in now.ledger.replicas(1)}
        suspect_all(now)
        await look(now)
        await look(now)
        assert {replica.id for replica in now.ledger.replicas(1)} == before
        assert all(len(allocations(volume, name)) == 1 for name in ("one", "two"))


async def test_nothing_is_allocated_for_what_no_depot_has(volume: VolumePaths) -> None:
    def harm() -> None:
        for name in ("one", "two"):
            shutil.rmtree(volume.root.with_name(name) / "allocations")

    async with harmed(volume, harm) as now:
        suspect_all(now)
        await look(now)
        await look(now)
        assert [one.suspect for one in now.ledger.replicas(1)] == [True, True]
        assert now.db.value("SELECT max(id) FROM orphans") is None
        assert now.db.value("SELECT seq FROM sqlite_sequence WHERE name = 'pending'") == 2  # those of the first copies


async def test_a_bad_one_on_a_full_depot_makes_room_for_its_replacement(volume: VolumePaths) -> None:
    async with harmed(volume, lambda: flip(volume, "two", TEXTS[1])) as now:
        (bad,) = [one for one in now.ledger.replicas(1) if one.depot == 2]
        now.ledger.suspect(bad)
        now.depots.get(2).free_bytes = 1000
        await look(now)
        assert now.ledger.replica(bad.id) is None
        await now.depots.get(2).look()
        await look(now)
        await assert_well(now, volume)
