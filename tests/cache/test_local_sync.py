"""Rounds of local syncs: who does them, and that what a disk has refused once is never called good."""

import errno
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from ibpfs.cache.spool_file import Sync
from ibpfs.config import VolumePaths
from ibpfs.depot.disk_pace import DiskPace
from ibpfs.exnode_store.allocator import OpenSegment
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.wal_sync import WalSync

from .stack import run_depot, run_stack


async def test_a_round_behind_one_that_failed_is_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells an error once: the next sync of the same bytes succeeds, and proves nothing."""
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    go_on, begun = threading.Event(), threading.Event()
    real = Sync.run

    def run(self: Sync) -> None:
        if not begun.is_set():
            begun.set()
            go_on.wait(10)
            raise OSError(errno.EIO, "lost")
        real(self)

    monkeypatch.setattr(Sync, "run", run)
    async with run_depot(volume.depot), run_stack(volume) as now:
        one, other = now.create(b"one").ino, now.create(b"other").ino
        await now.files.write(one, 0, b"a" * 100)
        append, is_answered = now.transfer.append, trio.Event()

        async def later(policy: int, pieces: list[bytes | memoryview], length: int) -> tuple[OpenSegment, int]:
            if length > 1000:
                await is_answered.wait()
            return await append(policy, pieces, length)

        async def first() -> None:
            await now.files.fsync(one)
            is_answered.set()

        monkeypatch.setattr(now.transfer, "append", later)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.to_thread.run_sync(begun.wait)
            await now.flusher.wait_stored(one)  # its bytes are there: only the disk is waited for
            await now.files.write(other, 0, b"b" * 2000)  # into the same spool file
            nursery.start_soon(now.files.fsync, other)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        for ino, length in ((one, 100), (other, 2000)):
            assert sum(piece.stop - piece.start for piece in now.ledger.extents(ino)) == length


async def test_who_sends_the_bytes_of_a_lone_fsync_syncs_here_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    monkeypatch.setattr(DiskPace, "is_quick", True)
    said: list[tuple[bool, bool, int]] = []
    async with run_depot(volume.depot), run_stack(volume) as now:
        local, spool = now.transfer.meanwhile, now.files._spool

        def meanwhile() -> bool:
            done = local()
            said.append((done, now.db.unsynced, len(spool.unsynced())))
            return done

        monkeypatch.setattr(now.transfer, "meanwhile", meanwhile)
        inodes = [now.create(name).ino for name in (b"one", b"two", b"three")]
        for ino in inodes[:2]:
            await now.files.write(ino, 0, b"a" * 100)
            await now.files.fsync(ino)
        assert [done for done, _, _ in said] == [False, True]  # the names of both files had to be synced first
        assert said[-1] == (True, False, 0)
        with now.files._fsyncs:  # somebody else waits for one
            await now.files.write(inodes[2], 0, b"b" * 100)
            await now.files.fsync(inodes[2])
        assert [done for done, _, _ in said] == [False, True, False]
        assert (now.db.unsynced, spool.unsynced()) == (False, [])


async def test_a_disk_that_refuses_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    monkeypatch.setattr(DiskPace, "is_quick", True)

    def refuse(_self: WalSync) -> None:
        raise OSError(errno.EIO, "lost")

    async with run_depot(volume.depot), run_stack(volume) as now:
        one, other = now.create(b"one").ino, now.create(b"other").ino
        for ino in (one, other):
            await now.files.write(ino, 0, b"a" * 100)
        await now.files.fsync(one)
        monkeypatch.setattr(WalSync, "sync_now", refuse)
        with trio.fail_after(20), pytest.raises(OSError, match="an earlier sync"):
            await now.files.fsync(other)


async def test_nobody_syncs_here_beside_a_thread_that_may_be_told_of_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    go_on, begun, real = threading.Event(), threading.Event(), Sync.run

    def run(self: Sync) -> None:
        real(self)
        begun.set()
        go_on.wait(20)

    async with run_depot(volume.depot), run_stack(volume) as now:
        one = now.create(b"one").ino
        await now.files.write(one, 0, b"a" * 100)
        await now.files.fsync(one)  # all names are there
        monkeypatch.setattr(DiskPace, "is_quick", False)
        monkeypatch.setattr(Sync, "run", run)
        await now.files.write(one, 0, b"b" * 100)
        with trio.CancelScope() as gone:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(now.files.fsync, one)
                await trio.to_thread.run_sync(begun.wait)
                gone.cancel()
        monkeypatch.setattr(DiskPace, "is_quick", True)
        local = now.files._local_sync
        with now.files._fsyncs:
            wanted = local.begin()
            assert wanted is not None
            assert not local.sync_now()
            go_on.set()
            with trio.fail_after(20):
                assert await wanted.succeeded()


@pytest.mark.parametrize("length", [100_000, 1_000_000])
async def test_of_much_the_disk_begins_before_it_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    begun: list[str] = []
    async with run_depot(volume.depot), run_stack(volume) as now:
        await trio.testing.wait_all_tasks_blocked()
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, bytes(length))
        store, sync = now.flusher._store, now.db.begin_sync
        monkeypatch.setattr(now.flusher, "_store", lambda batch: (begun.append("store"), store(batch))[1])
        monkeypatch.setattr(now.db, "begin_sync", lambda: (begun.append("sync"), sync())[1])
        await now.files.fsync(ino)
    assert begun[0] == ("sync" if length > 256 * 1024 else "store")


async def test_an_fsync_of_much_does_not_wait_for_the_clean_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    async with run_depot(volume.depot), run_stack(volume) as now:
        await trio.testing.wait_all_tasks_blocked()
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, bytes(1_000_000))
        is_cached = trio.Event()
        monkeypatch.setattr(now.flusher.fresh, "add", lambda *_: is_cached.wait())
        with trio.fail_after(10):
            await now.files.fsync(ino)
        is_cached.set()
