"""Appends and loads over real depots: what a failed step leaves behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.allocator import SEGMENT_SIZE, OpenSegment
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.sealing import MAX_SLICE
from ibpfs.exnode_store.transfer import Transfer
from tests.cache.stack import Stack, run_depot, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


@asynccontextmanager
async def full_disk(stack: Stack) -> AsyncIterator[None]:
    """The exNode store cannot grow, as on a full disk."""
    pages = stack.db.value("PRAGMA page_count")
    stack.db.execute(f"PRAGMA max_page_count = {pages}")
    yield
    stack.db.execute("PRAGMA max_page_count = 1000000000")


async def test_a_commit_that_is_rolled_back_leaves_no_segment_behind(volume: VolumePaths) -> None:
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            await now.depots.wait_for_any(5)
            inos = [now.create(b"%d" % number).ino for number in range(1000)]
            async with full_disk(now):
                for ino in inos:
                    await now.files.write(ino, 0, b"%d" % ino * 100)
                with trio.fail_after(10):
                    while not isinstance(now.flusher.trouble, NoSpace):
                        await trio.sleep(0.01)
            with trio.fail_after(60):
                await now.files.flush()
            mapped = "SELECT count(*) FROM slices WHERE segment NOT IN (SELECT id FROM segments)"
            assert now.db.value(mapped) == 0
            assert now.db.value("SELECT count(*) FROM pending") == 0
            await now.files.drop()
            for ino in inos:
                assert await now.files.read(ino, 0, 1000) == b"%d" % ino * 100
        async with run_stack(volume) as now:
            await now.files.drop()
            assert await now.files.read(inos[7], 0, 1000) == b"%d" % inos[7] * 100


async def test_two_tasks_close_the_same_segments(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        await open_segments(now.transfer, 3)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(lambda: now.transfer.close_old(every=True))
        assert all(depot.busy == 0 for depot in now.depots)


async def open_segments(transfer: Transfer, number: int) -> None:
    policy = transfer.policy(1)
    segments = [(await transfer.append(policy, [b"x"], 1))[0] for _ in range(number)]
    for segment in segments:
        with transfer.committing(segment):
            pass
        await transfer.release(segment)


async def test_an_append_that_is_neither_short_nor_long_waits_for_another(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ibpfs.exnode_store.transfer._SOON", 10.0)  # 20 ms are over soon where others work as well
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        policy = now.transfer.policy(1)
        first, _ = await now.transfer.append(policy, [b"x"], 1)
        taken: list[tuple[OpenSegment, int]] = []

        async def append() -> None:
            taken.append(await now.transfer.append(policy, [bytes(100_000)], 100_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            others = [(await now.transfer.append(policy, [bytes(length)], length))[0] for length in (1000, MAX_SLICE)]
            assert not taken
            await now.transfer.release(first)
        assert taken == [(first, 1)]
        assert len({first, *others}) == 3
        for segment in (first, *others):
            await now.transfer.release(segment)


async def test_no_append_waits_for_long_nor_for_what_is_closed(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        policy, data = now.transfer.policy(1), bytes(100_000)
        segments = [(await now.transfer.append(policy, [data], len(data)))[0] for _ in range(2)]
        assert segments[0] is not segments[1]

        async def give_back() -> None:
            for segment in segments:
                segment.sound = False
                await now.transfer.release(segment)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back)
            again, offset = await now.transfer.append(policy, [data], len(data))
        assert (again in segments, offset) == (False, 0)
        await now.transfer.release(again)


async def test_room_in_a_segment_that_is_appended_to_counts_as_free(tmp_path: Path) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    async with run_depot(volume.depot, capacity=20 << 20), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        before = now.transfer.free_bytes(1)
        segment, _ = await now.transfer.append(now.transfer.policy(1), [b"x" * 1000], 1000)
        during = now.transfer.free_bytes(1)
        await now.transfer.release(segment)
        assert before is not None
        assert during is not None
        assert during > before - (1 << 20)


async def reserved(stack: Stack) -> int:
    """Bytes that the first segment's allocation reserves on its depot."""
    (segment,) = [row for (row,) in stack.db.rows("SELECT id FROM segments")]
    (replica,) = stack.ledger.replicas(segment)
    return (await stack.depots.get(replica.depot).client.probe(replica.manage)).max_size


async def test_a_segment_left_open_by_a_kill_gives_back_what_it_does_not_use(volume: VolumePaths) -> None:
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            await now.files.write(now.create(b"small").ino, 0, bytes(1000))
            await now.files.flush()
            assert await reserved(now) > 16 << 20
        async with run_stack(volume) as now:
            with trio.fail_after(10):
                while await reserved(now) > 2000:
                    await trio.sleep(0.05)


async def test_a_missed_append_takes_no_copy_from_what_was_committed_before(volume: VolumePaths) -> None:
    second = volume.root.with_name("second")
    async with run_depot(volume.depot), run_stack(volume) as now:
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET copies = 2, min_copies = 1")
            db.execute(
                "INSERT INTO depots (address, embedded, labels, role, seq) VALUES (?, 0, '{}', 'active', 1)",
                (f"unix:{second}/depot.sock",),
            )
    async with run_depot(volume.depot), run_stack(volume) as now:
        before, after = now.create(b"before").ino, now.create(b"after").ino
        async with run_depot(second):
            with trio.fail_after(5):
                while now.transfer.answering() < 2:
                    await trio.sleep(0.01)
            await now.files.write(before, 0, b"before")
            await now.files.flush()
            assert now.warmer.under_replicated_bytes == 0
        await now.files.write(after, 0, b"after")
        await now.files.flush()
        assert now.warmer.under_replicated_bytes > 0  # at once
        copies = dict(now.db.rows("SELECT segment, count(*) FROM replicas GROUP BY segment ORDER BY segment"))
        assert list(copies.values()) == [2, 1]
        await now.files.drop()
        assert await now.files.read(before, 0, 10) == b"before"
        assert await now.files.read(after, 0, 10) == b"after"


async def test_a_read_from_a_depot_on_which_nobody_listens_fails_at_once(tmp_path: Path) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume, depots=[f"unix:{tmp_path}/depot/depot.sock"])
    async with run_stack(volume) as now:
        async with run_depot(tmp_path / "depot"):
            await now.depots.wait_for_any(5)
            ino = now.create(b"file").ino
            await now.files.write(ino, 0, b"x" * 1000)
            await now.files.drop()
        with pytest.raises(DataError), trio.fail_after(5):  # a depot that is only silent is waited for twice as long
            await now.files.read(ino, 0, 1000)
        assert [depot.state for depot in now.depots] == ["failed"]
        with pytest.raises(DataError, match=f"segment 1: allocation .* depot unix:{tmp_path}/depot/.*: nobody listens"):
            await now.files.read(ino, 0, 1000)
        async with run_depot(tmp_path / "depot"):
            await now.depots.wait_for_any(5)
            assert await now.files.read(ino, 0, 1000) == b"x" * 1000


async def test_a_full_segment_is_closed_at_once_and_holds_nothing_back(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        length = SEGMENT_SIZE - 1000
        segment, _ = await now.transfer.append(now.transfer.policy(1), [bytes(length)], length)
        with now.transfer.committing(segment):
            pass
        await now.transfer.release(segment)
        assert now.db.value("SELECT count(*) FROM segments") == 0  # nothing lives in it


@pytest.mark.parametrize(
    ("left", "sound", "asked_back"), [(4000, True, False), (4000, False, True), (99_000, True, True)]
)
async def test_the_last_crumbs_of_a_full_segment_are_not_asked_back(
    volume: VolumePaths, left: int, sound: bool, asked_back: bool
) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        segment = await filled(now, SEGMENT_SIZE - left)
        segment.sound = sound  # else what was never acknowledged lies behind
        assert now.transfer._close(segment) is asked_back


@pytest.mark.parametrize(("left", "uncommitted"), [(10_000, 6000), (100_000, 96_000)])
async def test_what_is_not_committed_is_asked_back(volume: VolumePaths, left: int, uncommitted: int) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        segment = await filled(now, SEGMENT_SIZE - left)
        segment.length += uncommitted  # as an append leaves it
        assert now.transfer._close(segment)


async def filled(now: Stack, length: int) -> OpenSegment:
    """A segment to which so many bytes were appended, and committed."""
    segment, _ = await now.transfer.append(now.transfer.policy(1), [bytes(length)], length)
    with now.transfer.committing(segment) as row:
        now.ledger.commit(row, length, [], dict)
    return segment


async def test_who_is_cancelled_while_it_closes_segments_leaves_none_open(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        policy = now.transfer.policy(1)
        inos = [now.create(b"%d" % number).ino for number in range(2)]
        await now.files.write(inos[0], 0, b"x")
        await now.files.fsync(inos[0])
        with trio.fail_after(5):
            while (held := now.transfer._take(policy, 1)) is None:  # so that the next has a segment of its own
                await trio.lowlevel.checkpoint()
        await now.files.write(inos[1], 0, b"x")
        await now.files.fsync(inos[1])
        await now.transfer.release(held)
        with trio.fail_after(5):
            while len(now.transfer._idle) < 2:  # what fsync waits for comes before the segment is given back
                await trio.lowlevel.checkpoint()
        with trio.CancelScope() as scope:
            scope.cancel()
            await now.transfer.close_old(every=True)
        assert now.db.value("SELECT count(*) FROM segments WHERE state = 0") == 0
        assert now.transfer._open_segments == set()
        assert all(depot.busy == 0 for depot in now.depots)


async def test_who_is_cancelled_while_it_opens_a_segment_leaves_nothing_pending(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now, trio.open_nursery() as nursery:
        await now.depots.wait_for_any(5)
        nursery.start_soon(now.transfer.append, now.transfer.policy(1), [b"x"], 1)
        with trio.fail_after(5):
            while not now.db.value("SELECT count(*) FROM pending"):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        while nursery.child_tasks:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
        assert now.db.value("SELECT count(*) FROM pending") == 0
        assert now.db.value("SELECT count(*) FROM orphans") == 1
