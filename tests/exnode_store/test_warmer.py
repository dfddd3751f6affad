"""The warmer: what is due, and what it does about it over real depots."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.compaction import SMALL_SEGMENTS, plan_packing
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.ledger_rows import StoredRun
from ibpfs.exnode_store.repairing import Shortage, most_endangered, within
from ibpfs.exnode_store.verification import chunks, neighbours
from tests.cache.stack import Stack, run_depot, run_stack

KEY = Key("key", "1")


def test_what_misses_most_is_repaired_first() -> None:
    order = most_endangered([Shortage(1, 10, 1), Shortage(2, 10, 2), Shortage(3, 10, 1)])
    assert [one.segment for one in order] == [2, 1, 3]


shortages = st.lists(
    st.builds(Shortage, st.integers(1, 99), st.integers(1, 1000), st.integers(1, 3), st.integers(-1, 2)), max_size=12
)


@given(shortages, st.integers(0, 5000))
def test_a_look_repairs_what_is_in_danger_and_so_many_bytes_of_the_rest(found: list[Shortage], budget: int) -> None:
    order = most_endangered(found)
    chosen = within(order, budget)
    assert chosen == order[: len(chosen)]
    assert all(one in chosen for one in order if one.spare <= 0)
    assert bool(chosen) == bool(order)
    others = [one.length * one.missing for one in chosen if one.spare > 0]
    assert len(chosen) == 1 or sum(others) <= budget
    assert within(order, float("inf")) == order


async def test_what_is_in_no_danger_is_made_up_at_its_pace(volume: VolumePaths) -> None:
    async with two_depots(volume) as now, run_depot(volume.root.with_name("second")):
        while now.transfer.answering() < 2:
            await trio.sleep(0.01)
        for number in range(3):
            ino = now.create(b"%d" % number).ino
            await now.files.write(ino, 0, b"x" * 50_000)
            await now.files.flush()
            assert await now.flusher.finish(5)
            await now.transfer.close_old(every=True)
        async with run_depot(volume.root.with_name("third")), now.warmer.turn:
            now.depots.add(f"unix:{volume.root.with_name('third')}/depot.sock", {})
            while now.transfer.answering() < 3:
                await trio.sleep(0.01)
            with now.db.transaction() as db:
                db.execute("UPDATE policies SET copies = 3")
            before = [row[:1] + row[2:] for row in now.ledger.shortages()]
            assert len(before) == 3
            assert {row[1:] for row in before} == {(1, 1)}
            for left in (2, 1, 0):
                await now.warmer.repair(budget=1.0)
                assert len(now.ledger.shortages()) == left


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
        assert await now.flusher.finish(5)
        (old,) = [segment for segment, *_ in now.ledger.packing()]
        for name in range(30):
            now.files.unlinked(now.names.unlink(1, b"%d" % name))
            del inos[name]
        with trio.fail_after(5):
            while plan_packing(now.ledger.packing()) != [old]:
                await trio.sleep(0.01)
        await now.warmer.pack(1 << 30)
        assert now.ledger.segment_length(old) == 0
        await now.files.drop()
        for name, ino in inos.items():
            assert await now.files.read(ino, 0, 1 << 20) == b"%d" % name * 5000


@asynccontextmanager
async def two_depots(paths: VolumePaths, min_copies: int = 1) -> AsyncIterator[Stack]:
    """A volume of two copies, whose second depot nobody has started; it is at `paths`/second."""
    second = paths.root.with_name("second")
    async with run_depot(paths.depot), run_stack(paths) as now:
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET copies = 2, min_copies = ?", (min_copies,))
            db.execute(
                "INSERT INTO depots (address, embedded, labels, role, seq) VALUES (?, 0, '{}', 'active', 1)",
                (f"unix:{second}/depot.sock",),
            )
    async with run_depot(paths.depot), run_stack(paths) as now:
        await now.depots.wait_for_any(5)
        yield now


async def test_many_tiny_segments_of_several_policies_keep_the_bound(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        with now.db.transaction() as db:
            for _ in range(3):
                db.execute("INSERT INTO policies (copies, min_copies, labels, seq) VALUES (1, 1, '[]', 1)")
        written: dict[int, bytes] = {}
        for number in range(120):
            ino = now.create(b"%d" % number).ino
            with now.db.transaction() as db:
                db.execute("UPDATE inodes SET policy = ? WHERE ino = ?", (1 + number % 4, ino))
            written[ino] = b"%d" % number * 300
            await now.files.write(ino, 0, written[ino])
            await now.files.fsync(ino)
            await now.transfer.close_old(every=True)
        assert now.ledger.segments > 100
        await now.warmer.pack_all(lambda done, total: None)
        assert now.ledger.segments <= now.files.used_bytes // (4 << 20) + 100
        assert now.ledger.segments == 4
        assert not now.ledger.orphans()
        await now.files.drop()
        for ino, data in written.items():
            assert await now.files.read(ino, 0, 10_000) == data


async def test_small_segments_stay_while_a_depot_is_away(volume: VolumePaths) -> None:
    async with two_depots(volume) as now:
        for name in range(SMALL_SEGMENTS + 4):  # each append without the second depot has a segment of its own
            ino = now.create(b"%d" % name).ino
            await now.files.write(ino, 0, bytes(1000))
            await now.files.fsync(ino)
        assert await now.flusher.finish(5)
        assert len(plan_packing(now.ledger.packing())) > SMALL_SEGMENTS
        assert await now.warmer.pack(1 << 30) == 0


async def test_orphans_of_a_depot_that_is_away_do_not_keep_others(volume: VolumePaths) -> None:
    async with two_depots(volume) as now:
        with now.db.transaction() as db:
            for number in range(1100):
                db.execute(
                    "INSERT INTO orphans (depot, manage_key, read_key, since, seq) VALUES (2, ?, 'k/1', 0, 1)",
                    (f"{number}/1",),
                )
            db.execute("INSERT INTO orphans (depot, manage_key, read_key, since, seq) VALUES (1, 'k/1', 'k/1', 0, 1)")
        await now.warmer.release_orphans()
        assert now.db.value("SELECT count(*) FROM orphans WHERE depot = 1") == 0
        assert now.db.value("SELECT count(*) FROM orphans WHERE depot = 2") == 1100


async def test_the_last_capability_of_a_segment_is_never_let_go(volume: VolumePaths) -> None:
    async with run_depot(volume.depot, max_lease=600), run_stack(volume) as now:
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x")
        await now.files.flush()
        before = now.ledger.replicas(1)
        with now.db.transaction() as db:
            db.execute("UPDATE replicas SET told_at = told_at - 500, lease_end = lease_end - 500, manage_key = 'k/1'")
        await now.warmer.renew()  # the depot runs on another store by mistake, and knows nothing of it
        await now.warmer.renew()
        after = now.ledger.replicas(1)
        assert [one.read for one in after] == [one.read for one in before]
        assert [one.suspect for one in after] == [True]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40))), st.integers(0, 50), st.integers(1, 20))
def test_a_segment_is_cut_between_its_slices(slices: list[tuple[int, int]], end: int, size: int) -> None:
    runs, at = [], 0
    for number, (gap, length) in enumerate(slices):
        runs.append(StoredRun(number, at + gap, length, b""))
        at += gap + length
    cut = chunks(runs, at + end, size)
    assert [start for start, _, _ in cut] == [0, *(stop for _, stop, _ in cut)][: len(cut)]
    assert (cut[-1][1] if cut else 0) == at + end
    assert all(start <= run.offset and run.offset + run.length <= stop for start, stop, inside in cut for run in inside)
    assert [run for _, _, inside in cut for run in inside] == runs
    assert all(stop - start <= size + 40 for start, stop, _ in cut)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40))), st.integers(0, 30))
def test_slices_near_each_other_are_loaded_together(slices: list[tuple[int, int]], most: int) -> None:
    runs, at = [], 0
    for number, (gap, length) in enumerate(slices):
        runs.append(StoredRun(number, at + gap, length, b""))
        at += gap + length
    groups = neighbours(runs, most)
    assert [run for group in groups for run in group] == runs
    for group in groups:
        assert all(after.offset - before.offset - before.length <= most for before, after in pairwise(group))
    for before, after in pairwise(groups):
        assert after[0].offset - before[-1].offset - before[-1].length > most


async def test_a_repair_copies_no_replica_that_is_damaged(tmp_path: Path) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume, plain=True)
    async with two_depots(volume) as now, run_depot(tmp_path / "second"):
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET min_copies = 2")
        while now.transfer.answering() < 2:
            await trio.sleep(0.01)
        ino = now.create(b"file").ino
        data = b"so it was written" * 10_000
        await now.files.write(ino, 0, data)
        await now.files.flush()
        assert await now.flusher.finish(5)
        first = now.transfer._order(now.ledger.replicas(1))[0]
        where = volume.depot if first.depot == 1 else tmp_path / "second"
        (allocation,) = [one for one in (where / "allocations").rglob("*") if one.is_file()]
        allocation.write_bytes(allocation.read_bytes().replace(b"so it was", b"or it was"))
        async with run_depot(tmp_path / "third"):
            third = now.depots.add(f"unix:{tmp_path}/third/depot.sock", {})
            with now.db.transaction() as db:
                db.execute("UPDATE policies SET copies = 3")
            while now.transfer.answering() < 3:
                await trio.sleep(0.01)
            await now.warmer.repair()
            (copy,) = [one for one in now.ledger.replicas(1) if one.depot == third.id]
            (allocation,) = [one for one in (tmp_path / "third" / "allocations").rglob("*") if one.is_file()]
            assert data in allocation.read_bytes()
            assert not copy.suspect
