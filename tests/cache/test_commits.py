"""Commits that wait: what an fsync has promised is there after any end, and whoever looks at exNodes finds it."""

import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from ibpfs.cache import commits, spool_file
from ibpfs.cache.spool_file import Sync
from ibpfs.config import VolumePaths
from ibpfs.errors import NoSpace
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database

from .stack import Stack, run_depot, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


@pytest.fixture
def for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits wait until somebody wants them, however slow the test is."""
    monkeypatch.setattr(commits, "_GATHER", 3600.0)


async def open_a_segment(stack: Stack) -> None:
    """The first commit into a segment makes its row, and waits for nobody."""
    ino = stack.create(b"the first one").ino
    await stack.files.write(ino, 0, b"x")
    await stack.files.fsync(ino)
    assert mapped(stack, ino) == 1


async def synced(stack: Stack, name: bytes, data: bytes) -> int:
    """A file whose bytes are on the depot, and in no exNode yet."""
    ino = stack.create(name).ino
    await stack.files.write(ino, 0, data)
    await stack.files.fsync(ino)
    assert mapped(stack, ino) == 0
    assert ino in stack.flusher.files
    return ino


def mapped(stack: Stack, ino: int) -> int:
    return sum(piece.stop - piece.start for piece in stack.ledger.extents(ino))


async def test_a_commit_waits_a_moment_for_others(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x" * 100)
        await now.files.fsync(ino)
        with trio.fail_after(5):
            while now.flusher.files:
                await trio.sleep(0.01)
        assert mapped(now, ino) == 100


async def test_what_waits_is_committed_together(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        inos = [await synced(now, b"%d" % number, b"%d" % number * 100) for number in range(3)]
        assert await now.files.read(inos[2], 0, 1000) == b"2" * 100
        before = now.db.seq
        now.files.commit_stored()
        assert [mapped(now, ino) for ino in inos] == [100] * 3
        assert not now.flusher.files
        assert now.db.seq == before + 1


async def test_only_so_many_wait(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        for number in range(70):
            ino = now.create(b"%d" % number).ino
            await now.files.write(ino, 0, b"x")
            await now.files.fsync(ino)
        assert len(now.flusher.files) < 10


async def test_it_is_there_after_a_kill(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            await open_a_segment(now)
            ino = await synced(now, b"file", b"x" * 5000)
        async with run_stack(volume) as now:
            assert now.recovered == 5000
            await now.files.drop()
            assert await now.files.read(ino, 0, 10_000) == b"x" * 5000


async def test_spool_and_names_are_synced_before_the_answer(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        for number in range(3):
            ino = await synced(now, b"%d" % number, b"x" * 5000)
            assert not now.files._spool.unsynced()
            assert not now.db.unsynced
            await now.files.write(ino, 0, b"y")
            assert now.files._spool.unsynced()


async def store(stack: Stack, ino: int) -> None:
    await stack.files.store(ino)


async def flush(stack: Stack, _: int) -> None:
    await stack.files.flush()


async def look(stack: Stack, _: int) -> None:
    stack.files.commit_stored()


async def close_segments(stack: Stack, _: int) -> None:
    await stack.transfer.close_old(every=True)


async def leave_a_depot(stack: Stack, _: int) -> None:
    for depot in stack.depots:
        await stack.transfer.close_on(depot.id)


async def end(stack: Stack, _: int) -> None:
    assert await stack.flusher.finish(0.0)


@pytest.mark.parametrize("caller", [store, flush, look, close_segments, leave_a_depot, end])
async def test_who_needs_exnodes_finds_them(
    volume: VolumePaths, for_long: None, caller: Callable[[Stack, int], Awaitable[None]]
) -> None:
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            await open_a_segment(now)
            ino = await synced(now, b"file", b"x" * 5000)
            await caller(now, ino)
            assert mapped(now, ino) == 5000
            assert ino not in now.flusher.files
            await now.files.drop()
            assert await now.files.read(ino, 0, 10_000) == b"x" * 5000
        async with run_stack(volume) as now:
            assert await now.files.read(ino, 0, 10_000) == b"x" * 5000


async def test_the_same_bytes_again_and_again(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        ino = await synced(now, b"file", b"0" * 5000)
        for number in range(1, 20):
            await now.files.write(ino, number * 100, b"%d" % (number % 10) * 5000)
            with trio.fail_after(5):
                await now.files.fsync(ino)
            assert not now.files._spool.unsynced()
        await now.files.drop()
        expected = b"".join(b"%d" % (number % 10) * 100 for number in range(19)) + b"9" * 5000
        assert await now.files.read(ino, 0, 10_000) == expected


async def test_what_is_cut_away_or_overwritten_before_the_commit(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        cut, over, gone = [await synced(now, name, b"x" * 5000) for name in (b"cut", b"over", b"gone")]
        now.files.change(cut, AttributeChange(size=100))
        now.files.change(cut, AttributeChange(size=200))
        await now.files.write(over, 50, b"y" * 100)
        now.files.unlinked(now.names.unlink(1, b"gone"))
        now.files.commit_stored()
        assert mapped(now, cut) == 100
        assert mapped(now, over) == 5000
        assert now.flusher.dirty_bytes == 100
        for drop in (False, True):
            if drop:
                await now.files.drop()
            assert await now.files.read(cut, 0, 10_000) == b"x" * 100 + bytes(100)
            assert await now.files.read(over, 0, 10_000) == b"x" * 50 + b"y" * 100 + b"x" * 4850
        with trio.fail_after(5):
            while now.db.value("SELECT count(*) FROM inodes WHERE ino = ?", (gone,)):
                await trio.sleep(0.01)
        assert now.db.value("SELECT count(*) FROM slices WHERE mapped = 0") == 0


async def test_a_rename_over_a_file_lets_go_of_the_old_one_after_the_commit(
    volume: VolumePaths, for_long: None
) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        old = await synced(now, b"file", b"old")
        now.files.commit_stored()
        new = await synced(now, b"file.new", b"new")
        replaced = now.names.rename(1, b"file.new", 1, b"file")
        assert replaced is not None
        now.files.replaced(replaced, new)
        assert mapped(now, old) == 3
        now.files.commit_stored()
        with trio.fail_after(5):
            while now.db.value("SELECT count(*) FROM inodes WHERE ino = ?", (old,)):
                await trio.sleep(0.01)
        assert mapped(now, new) == 3


def fill(db: Database) -> None:
    db.execute(f"PRAGMA max_page_count = {db.value('PRAGMA page_count')}")


def make_room(db: Database) -> None:
    db.execute("PRAGMA max_page_count = 1000000")


async def test_a_full_disk_makes_it_dirty_again(
    volume: VolumePaths, for_long: None, caplog: pytest.LogCaptureFixture
) -> None:
    data = b"x" * 5000
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        inos = [now.create(b"%d" % number).ino for number in range(60)]
        for ino in inos:
            await now.files.write(ino, 0, data)
            await now.files.fsync(ino)
            if ino == inos[0]:
                fill(now.db)
        now.files.commit_stored()
        assert isinstance(now.flusher.trouble, NoSpace)
        assert now.flusher.dirty_bytes >= 5000
        stuck = [ino for ino in inos if ino in now.flusher.files]
        assert stuck
        assert not any(flight.is_stored for ino in stuck for flight in now.flusher.files[ino].flights)
        make_room(now.db)
        with trio.fail_after(10):
            await now.files.fsync(stuck[0])
            await now.files.flush()
        await now.files.drop()
        for ino in inos:
            assert await now.files.read(ino, 0, 10_000) == data
    assert any("wait in the spool" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("promised", [False, True])
async def test_a_commit_that_failed_keeps_what_was_promised_alone(
    volume: VolumePaths, for_long: None, promised: bool, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object) -> None:
        raise NoSpace("no room for the exNode store on the local disk")

    mib = 1 << 20
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        await open_a_segment(now)
        ino = now.create(b"stream").ino
        for at in range(4):
            await now.files.write(ino, at * mib, os.urandom(mib))
        while not now.flusher._commits.is_waiting:
            await now.flusher.wait_landing(0.1)
        if promised:
            await now.files.fsync(ino)
        with monkeypatch.context() as patch:
            patch.setattr(now.ledger, "commit", refuse)
            now.files.commit_stored()
        assert isinstance(now.flusher.trouble, NoSpace)
        with trio.fail_after(10):
            await now.files.flush()
        assert bool(now.files._spool.records) == promised
    assert any("wait in the spool" in record.getMessage() for record in caplog.records)


async def test_where_the_spool_does_not_sync_the_exnode_is(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Sync) -> None:
        raise OSError(errno.EIO, "no such luck")

    async with run_depot(volume.depot), run_stack(volume) as now:
        with monkeypatch.context() as patched:
            patched.setattr(Sync, "run", refuse)
            await open_a_segment(now)
            first, second = now.create(b"1").ino, now.create(b"2").ino
            await now.files.write(first, 0, b"x" * 5000)
            await now.files.fsync(first)
            assert mapped(now, first) == 5000
            assert not now.db.unsynced
        await now.files.write(second, 0, b"y")
        await now.files.fsync(second)  # in another spool file
        assert not now.files._spool.unsynced()
    assert "does not sync" in caplog.text


async def test_much_that_is_written_by_others_is_not_waited_for(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        large, small = now.create(b"large").ino, now.create(b"small").ino
        for number in range(9):
            await now.files.write(large, number << 20, bytes(1 << 20))
        await now.files.write(small, 0, b"x")
        await now.files.fsync(small)
        assert mapped(now, small) == 1


async def test_what_overwrites_it_does_not_take_its_spool_file_away(
    volume: VolumePaths, for_long: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "FILE_SIZE", 64)  # so that each record has a file of its own
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            await open_a_segment(now)
            ino = await synced(now, b"file", b"A" * 5000)
            kept = set(volume.spool.glob("*.spool"))
            await now.files.write(ino, 0, b"B" * 5000)
            await now.flusher.delete_spent()
        for path in set(volume.spool.glob("*.spool")) - kept:  # as after a power cut: it was never synced
            path.unlink()
        async with run_stack(volume) as now:
            assert await now.files.read(ino, 0, 10000) == b"A" * 5000


async def test_a_store_that_is_locked_makes_it_dirty_again(
    volume: VolumePaths, for_long: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        ino = await synced(now, b"file", b"x" * 100)

        def refuse(*_: object) -> None:
            raise sqlite3.OperationalError("database is locked")

        with monkeypatch.context() as patch:
            patch.setattr(now.ledger, "commit", refuse)
            now.files.commit_stored()
            assert "the exNode store cannot be written: database is locked" in str(now.flusher.trouble)
        await now.files.store(ino)
        assert mapped(now, ino) == 100
        assert now.files._spool.records  # what an fsync was answered for is held on
        assert await now.flusher.finish(1.0)
        assert not now.files._spool.records


async def test_an_fsync_does_not_wait_for_what_is_appended_later(volume: VolumePaths, for_long: None) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await open_a_segment(now)
        ino = await synced(now, b"file", b"x" * 100)
        file = now.flusher.files[ino]
        seq = file.version
        await now.files.write(ino, 100, b"y" * 100)
        assert file.is_stored_up_to(seq)
        assert not file.is_stored_up_to(file.version)
        await now.files.write(ino, 50, b"z" * 10)  # over what flies: that has to land first
        file.stored_seq = -1
        assert not file.is_stored_up_to(seq)
