"""Compaction over a real depot: the bounds hold afterwards, and files show what they showed, whatever happens."""

import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ibpfs.cache import compactor
from ibpfs.cache.compactor import IDLE, LOOK_EVERY, Outcome
from ibpfs.config import VolumePaths
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store import merging
from ibpfs.exnode_store.attributes import MAX_SIZE, AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, never
from tests.exnode_store.test_warmer import two_depots

from .stack import Stack, run_depot, run_stack

KIB = 1024
PER_SLICE, MORE = 256 * KIB, 16


@pytest.fixture(params=["sealed", "plain"])
def volume(tmp_path: Path, request: pytest.FixtureRequest) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, plain=request.param == "plain")
    return paths


@pytest.fixture
def sealed(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


async def write(stack: Stack, ino: int, model: bytearray, offset: int, data: bytes) -> None:
    """A write with its own slice."""
    await stack.files.write(ino, offset, data)
    await stack.files.store(ino)
    model.extend(bytes(max(0, offset + len(data) - len(model))))
    model[offset : offset + len(data)] = data


async def scatter(stack: Stack, ino: int, model: bytearray, dice: random.Random, count: int, size: int) -> None:
    for _ in range(count):
        await write(stack, ino, model, dice.randrange(size), dice.randbytes(dice.randrange(1, 5000)))


async def compact(stack: Stack) -> Outcome:
    return await stack.compactor.compact(lambda done, total: None)


def slices(stack: Stack, ino: int) -> int:
    return len({piece.source.row for piece in stack.ledger.extents(ino)})


async def check(stack: Stack, ino: int, model: bytearray) -> None:
    """The same bytes, cold; the ledger's sums are right."""
    await stack.files.drop()
    assert stack.files.inode(ino).size == len(model)
    assert await stack.files.read(ino, 0, len(model) + 10) == model
    mapped, live = stack.db.row(
        "SELECT (SELECT sum(mapped) FROM slices), (SELECT sum(stored_length) FROM slices)"
    ) or (0, 0)
    assert mapped == stack.db.value("SELECT sum(stop - start) FROM mappings")
    assert live == stack.db.value("SELECT sum(live) FROM segments")
    assert stack.files.inode(ino).allocated == stack.ledger.extents(ino).covered


async def end(stack: Stack) -> None:
    """An orderly one."""
    assert await stack.flusher.finish(5)
    with trio.fail_after(5):
        while stack.db.value("SELECT count(*) FROM orphans"):
            await stack.warmer.release_orphans()
            await trio.sleep(0.01)


def fsck(paths: VolumePaths) -> list[str]:
    lines: list[str] = []
    check_store(Checkup(paths, never, lines.append))
    return lines


def keeps_bound(stack: Stack, ino: int) -> bool:
    return slices(stack, ino) <= stack.ledger.extents(ino).covered // PER_SLICE + MORE


@pytest.mark.parametrize("seed", range(2))
async def test_random_overwrites_are_merged(volume: VolumePaths, seed: int) -> None:
    dice, model = random.Random(seed), bytearray()
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"file").ino
        await scatter(now, ino, model, dice, 150, 1_000_000)
        before = now.files.inode(ino)
        assert not keeps_bound(now, ino)
        outcome = await compact(now)
        assert (outcome.files, outcome.damaged) == (1, [])
        assert slices(now, ino) == outcome.slices_after < 4
        assert now.files.inode(ino) == before
        await check(now, ino, model)
        assert await compact(now) == Outcome()
    async with run_depot(volume.depot), run_stack(volume) as now:
        assert now.recovered == 0
        await check(now, ino, model)


async def test_runs_without_holes_are_one_mapping_again(sealed: VolumePaths) -> None:
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino, model = now.create(b"log").ino, bytearray()
        for number in range(40):
            await write(now, ino, model, len(model), b"%d\n" % number * 100)
        await compact(now)
        assert len(now.ledger.extents(ino)) == 1
        await check(now, ino, model)


async def test_progress_ends_with_all_of_it(sealed: VolumePaths) -> None:
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        for name in (b"one", b"two"):
            await scatter(now, now.create(name).ino, bytearray(), random.Random(1), 20, 10**6)
        told: list[tuple[int, int]] = []
        await now.compactor.compact(lambda done, total: told.append((done, total)))
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[0][0] > 0
        assert told[-1][0] == told[-1][1] >= 30


async def test_hard_links_are_one_file(sealed: VolumePaths) -> None:
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino, model = now.create(b"one").ino, bytearray()
        now.names.link(ino, 1, b"two")
        await scatter(now, ino, model, random.Random(1), 60, 100_000)
        assert (await compact(now)).files == 1
        await check(now, ino, model)
        now.files.unlinked(now.names.unlink(1, b"one"))
        await check(now, ino, model)


async def test_a_huge_sparse_file_costs_as_much_as_its_extents(sealed: VolumePaths) -> None:
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino = now.create(b"huge").ino
        for number in range(60):
            await now.files.write(ino, number * 10**13, b"island %d" % number)
            await now.files.store(ino)
        now.files.change(ino, AttributeChange(size=999_999_999_999_999))
        before = now.files.inode(ino)
        assert (await compact(now)).written == before.allocated
        assert slices(now, ino) == 1
        assert len(now.ledger.extents(ino)) == 60  # holes are holes
        assert now.files.inode(ino) == before
        await now.files.drop()
        for number in range(60):
            assert (await now.files.read(ino, number * 10**13 - 3, 20)).strip(b"\0") == b"island %d" % number
        assert await now.files.read(ino, 999_999_999_999_990, 20) == bytes(9)
        await now.files.write(ino, MAX_SIZE - 1, b"x")
        await now.files.flush()
        assert (await compact(now)).files == 0


async def test_writers_go_on_while_their_file_is_compacted(volume: VolumePaths) -> None:
    dice, model = random.Random(3), bytearray()
    async with run_depot(volume.depot), run_stack(volume) as now, trio.open_nursery() as nursery:
        ino = now.create(b"busy").ino
        await scatter(now, ino, model, dice, 60, 500_000)

        async def keep_writing() -> None:
            for round_ in range(10):
                if round_ % 3 == 2:
                    size = dice.randrange(len(model))
                    now.files.change(ino, AttributeChange(size=size))
                    del model[size:]
                await scatter(now, ino, model, dice, 10, 500_000)

        nursery.start_soon(keep_writing)
        merged = 0
        while len(nursery.child_tasks) > 0:
            merged += (await compact(now)).files
            await trio.sleep(0.001)
        assert merged > 1
        await compact(now)
        assert keeps_bound(now, ino)
        await check(now, ino, model)


async def test_readers_go_on_while_old_segments_are_released(
    sealed: VolumePaths, caplog: pytest.LogCaptureFixture
) -> None:
    model = bytearray()
    async with run_depot(sealed.depot), run_stack(sealed) as now, trio.open_nursery() as nursery:
        ino = now.create(b"read").ino
        await scatter(now, ino, model, random.Random(11), 40, 200_000)
        await now.transfer.close_old(every=True)

        async def keep_reading() -> None:
            while True:
                await now.files.drop()  # so that all of it comes from the depot
                assert await now.files.read(ino, 0, 600_000) == model

        nursery.start_soon(keep_reading)
        for _ in range(2):
            assert (await compact(now)).files == 1
            await now.warmer.pack_all(lambda done, total: None)
            for at in range(0, 30_000, 1000):  # the same bytes again, in slices of their own
                await now.files.write(ino, at, bytes(model[at : at + 500]))
                await now.files.store(ino)
        nursery.cancel_scope.cancel()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_file_of_many_windows_keeps_the_bound(sealed: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compactor, merging):
        monkeypatch.setattr(module, "WINDOW", 50)
    model = bytearray()
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino = now.create(b"file").ino
        await scatter(now, ino, model, random.Random(12), 200, 500_000)
        outcome = await compact(now)
        assert outcome.slices_after <= 200 // 50 + 3
        assert keeps_bound(now, ino)
        await check(now, ino, model)


async def test_what_was_written_meanwhile_keeps_its_place(sealed: VolumePaths) -> None:
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino, model = now.create(b"file").ino, bytearray()
        await scatter(now, ino, model, random.Random(4), 60, 100_000)
        store = now.transfer.append

        async def late(*arguments: Any) -> Any:
            """While the merged bytes travel, somebody writes into the middle and cuts the end."""
            now.transfer.append = store  # type: ignore[method-assign]
            stored = await store(*arguments)
            await write(now, ino, model, 50_000, b"younger" * 100)
            now.files.change(ino, AttributeChange(size=90_000))
            del model[90_000:]
            return stored

        now.transfer.append = late  # type: ignore[method-assign]
        await compact(now)
        assert keeps_bound(now, ino)
        await check(now, ino, model)


async def test_a_kill_between_store_and_commit_loses_nothing(volume: VolumePaths, tmp_path: Path) -> None:
    """The volume's directory as it is at that instant is what a kill leaves."""
    killed = tmp_path / "killed"
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino, model = now.create(b"file").ino, bytearray()
        await scatter(now, ino, model, random.Random(5), 80, 200_000)
        commit = now.transfer.committing

        def committing(*arguments: Any) -> Any:
            shutil.copytree(volume.root, killed, ignore=shutil.ignore_patterns("*.sock"))
            return commit(*arguments)

        await now.transfer.close_old(every=True)  # so that the merged bytes have a segment of their own
        now.transfer.committing = committing  # type: ignore[method-assign]
        await compact(now)
    paths = VolumePaths(killed)
    async with run_depot(paths.depot), run_stack(paths) as now:
        assert not keeps_bound(now, ino)
        assert now.ledger.orphans_waiting
        await check(now, ino, model)
        await compact(now)
        assert keeps_bound(now, ino)
        await check(now, ino, model)
        await end(now)
    assert fsck(paths) == []


@pytest.mark.parametrize("seed", range(2))
async def test_compaction_ended_anywhere_loses_nothing(sealed: VolumePaths, seed: int) -> None:
    dice, model = random.Random(seed), bytearray()
    async with run_depot(sealed.depot):
        async with run_stack(sealed) as now:
            ino = now.create(b"file").ino
        for _ in range(5):
            async with run_stack(sealed) as now:
                await scatter(now, ino, model, dice, 20, 200_000)
                await now.files.write(ino, 1000, b"only in the spool" * dice.randrange(100))
                overwritten = (await now.files.read(ino, 0, 200_000))[1000:3000]
                model[1000:3000] = overwritten
                with trio.move_on_after(dice.random() * 0.05):
                    await compact(now)
            async with run_stack(sealed) as now:
                await check(now, ino, model)
                await end(now)
    assert fsck(sealed) == []


async def test_the_dead_part_of_a_long_slice_is_given_back(sealed: VolumePaths) -> None:
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino = now.create(b"cut").ino
        await now.files.write(ino, 0, os.urandom(3_000_000))
        await now.files.flush()
        now.files.change(ino, AttributeChange(size=10))
        outcome = await compact(now)
        assert (outcome.files, outcome.written, outcome.slices_after) == (1, 10, 1)
        assert now.files.used_bytes < 1000


async def test_files_wait_while_a_copy_could_not_be_made(
    sealed: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compactor, "_DEPOTS_PATIENCE", 0.1)
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino, model = now.create(b"file").ino, bytearray()
        await scatter(now, ino, model, random.Random(6), 40, 100_000)
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET copies = 2, min_copies = 1")
        with pytest.raises(DepotUnreachable, match="2 copies are wanted and 1 depot answers"):
            await compact(now)
        assert slices(now, ino) > MORE
        await check(now, ino, model)


async def test_what_is_merged_has_all_its_copies(sealed: VolumePaths) -> None:
    second = sealed.root.with_name("second")
    async with two_depots(sealed) as now:
        ino, model = now.create(b"file").ino, bytearray()
        await scatter(now, ino, model, random.Random(13), 40, 100_000)  # the second depot has none of it
        async with run_depot(second):
            while now.transfer.answering() < 2:
                await trio.sleep(0.01)
            assert (await compact(now)).slices_after == 1
            assert now.ledger.under_replicated_bytes() == 0
            (piece, *_) = now.ledger.extents(ino)
            assert sorted(one.depot for one in now.ledger.replicas(piece.source.segment)) == [1, 2]
            await check(now, ino, model)


async def test_a_file_that_cannot_be_read_is_told_and_the_others_are_compacted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume, plain=True)
    async with run_depot(volume.depot), run_stack(volume) as now:
        inos = [now.create(name).ino for name in (b"bad", b"good")]
        models = [bytearray(), bytearray()]
        for number in range(40):
            for ino, model, word in zip(inos, models, (b"bad", b"good"), strict=True):
                await write(now, ino, model, len(model), word * 100 + b"%d" % number)
        await now.files.drop()
        for allocation in (volume.depot / "allocations").rglob("*"):
            if allocation.is_file():
                allocation.write_bytes(allocation.read_bytes().replace(b"badbadbad", b"damdamdam"))
        outcome = await compact(now)
        assert outcome.files == 1
        (told,) = outcome.damaged
        assert told.startswith(f"inode {inos[0]}: ")
        assert slices(now, inos[0]) == 40
        await check(now, inos[1], models[1])
    assert "differ from what was sealed" in caplog.text
    caplog.clear()


# By itself


async def until_merged(stack: Stack, ino: int, clock: trio.testing.MockClock) -> None:
    for _ in range(100):
        clock.jump(LOOK_EVERY)
        await trio.sleep(0.02)
        if keeps_bound(stack, ino):
            return
    pytest.fail("was not merged")


async def test_a_file_that_was_left_alone_is_merged(sealed: VolumePaths, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 1.0
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino, model = now.create(b"file").ino, bytearray()
        await scatter(now, ino, model, random.Random(7), 40, 100_000)
        mock_clock.jump(LOOK_EVERY)
        await trio.sleep(0.1)
        await scatter(now, ino, model, random.Random(8), 1, 100_000)
        mock_clock.jump(IDLE - 2 * LOOK_EVERY)
        await trio.sleep(0.1)
        assert not keeps_bound(now, ino)
        await until_merged(now, ino, mock_clock)
        await check(now, ino, model)


async def test_large_files_take_turns(
    sealed: VolumePaths, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (compactor, merging):
        monkeypatch.setattr(module, "WINDOW", 30)
    monkeypatch.setattr(compactor, "_TURN", 1)
    mock_clock.rate = 1.0
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        models = {now.create(name).ino: bytearray() for name in (b"one", b"two")}
        for ino, model in models.items():
            await scatter(now, ino, model, random.Random(ino), 60, 100_000)
        mock_clock.jump(LOOK_EVERY)
        await trio.sleep(0.1)
        mock_clock.jump(IDLE)
        for ino, model in models.items():
            await until_merged(now, ino, mock_clock)
            await check(now, ino, model)


async def test_the_next_mount_finds_what_is_due(sealed: VolumePaths, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 1.0
    async with run_depot(sealed.depot):
        async with run_stack(sealed) as now:
            ino, model = now.create(b"file").ino, bytearray()
            await scatter(now, ino, model, random.Random(9), 40, 100_000)
            with now.db.transaction() as db:
                db.execute("UPDATE inodes SET ctime_ns = ctime_ns - 2000 * 1000000000")
        async with run_stack(sealed) as now:
            assert not keeps_bound(now, ino)
            await until_merged(now, ino, mock_clock)
            await check(now, ino, model)


async def test_a_file_far_over_its_bound_does_not_wait(
    sealed: VolumePaths, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1.0
    async with run_depot(sealed.depot), run_stack(sealed) as now:
        ino, model = now.create(b"log").ino, bytearray()
        for _ in range(150):
            await write(now, ino, model, len(model), b"a line\n")
        await until_merged(now, ino, mock_clock)
        await check(now, ino, model)
