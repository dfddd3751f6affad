"""The warmer: what is due, and what it does about it over real depots."""

from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.ledger import Replica
from ibpfs.exnode_store.warmer import SMALL_SEGMENTS, Shortage, most_endangered, plan_compaction, renewal_due
from tests.cache.stack import run_depot, run_stack

KEY = Key("key", "1")


def replica(number: int, told_at: float, lease_end: float | None) -> Replica:
    return Replica(number, 1, 1, KEY, KEY, KEY, lease_end, told_at, False)


@pytest.mark.parametrize("number", range(1, 50))
def test_a_lease_is_renewed_between_50_and_70_percent_of_its_time(number: int) -> None:
    assert not renewal_due(replica(number, 1000.0, 2000.0), 1499.0)
    assert renewal_due(replica(number, 1000.0, 2000.0), 1701.0)


def test_leases_taken_together_are_not_renewed_together() -> None:
    due = [renewal_due(replica(number, 0.0, 1000.0), 600.0) for number in range(100)]
    assert 20 < sum(due) < 80


def test_a_permanent_lease_is_never_due() -> None:
    assert not renewal_due(replica(1, 0.0, None), 1e12)


def test_what_misses_most_is_repaired_first() -> None:
    order = most_endangered([Shortage(1, 10, 1), Shortage(2, 10, 2), Shortage(3, 10, 1)])
    assert [one.segment for one in order] == [2, 1, 3]


def test_half_dead_segments_are_compacted() -> None:
    assert plan_compaction([(1, 1, 100 << 20, 49 << 20), (2, 1, 100 << 20, 51 << 20)]) == [1]


def test_small_segments_are_compacted_when_there_are_many() -> None:
    small = [(number, 1, 1000, 900) for number in range(SMALL_SEGMENTS + 1)]
    assert plan_compaction(small[1:]) == []
    assert plan_compaction(small) == list(range(SMALL_SEGMENTS + 1))


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


async def test_compaction_moves_live_slices_and_releases_the_rest(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        inos = {name: now.create(b"%d" % name).ino for name in range(40)}
        for name, ino in inos.items():
            await now.files.write(ino, 0, b"%d" % name * 5000)
        await now.files.flush()
        await now.transfer.close_old(every=True)
        (old,) = [segment for segment, *_ in now.ledger.packing()]
        for name in range(30):
            now.files.unlinked(now.names.unlink(1, b"%d" % name))
            del inos[name]
        with trio.fail_after(5):
            while plan_compaction(now.ledger.packing()) != [old]:
                await trio.sleep(0.01)
        await now.warmer.compact(1 << 30)
        assert now.ledger.segment_length(old) == 0
        await now.files.drop()
        for name, ino in inos.items():
            assert await now.files.read(ino, 0, 1 << 20) == b"%d" % name * 5000


async def test_a_lease_that_ends_is_renewed_in_time(volume: VolumePaths) -> None:
    async with run_depot(volume.depot, max_lease=600), run_stack(volume) as now:
        with now.db.transaction() as db:
            db.execute("UPDATE depots SET embedded = 0, address = ?", (f"unix:{volume.depot}/depot.sock",))
    async with run_depot(volume.depot, max_lease=600), run_stack(volume) as now:
        ino = now.create(b"leased").ino
        await now.files.write(ino, 0, b"x")
        await now.files.flush()
        (before,) = now.ledger.leased_replicas(1)
        assert before.lease_end is not None
        with now.db.transaction() as db:  # as if most of the lease had passed
            db.execute("UPDATE replicas SET told_at = told_at - 500, lease_end = lease_end - 500")
        await now.warmer.renew()
        (after,) = now.ledger.leased_replicas(1)
        assert after.lease_end is not None
        assert after.lease_end >= before.lease_end
