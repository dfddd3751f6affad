"""The flusher: who waits wakes up, nothing starves, nothing that failed is forgotten or kept for ever."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ibpfs.cache.clean import CleanCache
from ibpfs.cache.flusher import Flusher
from ibpfs.cache.room import Limits
from ibpfs.config import VolumePaths
from ibpfs.errors import DataError, DeadlineExceeded
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.ledger_rows import NewSlice
from ibpfs.exnode_store.sealing import SliceForm

from .stack import Stack, run_depot, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


async def nothing_flies(flusher: Flusher) -> None:
    while any(file.flights for file in flusher.files.values()):
        await trio.sleep(0.01)


async def wait_until_gone(stack: Stack, ino: int) -> None:
    with trio.fail_after(5):
        while stack.db.value("SELECT count(*) FROM inodes WHERE ino = ?", (ino,)):
            await trio.sleep(0.01)


async def test_who_waits_for_bytes_that_are_cut_away_wakes_up(volume: VolumePaths) -> None:
    async with run_stack(volume) as now, trio.open_nursery() as nursery:
        ino = now.create(b"cut").ino
        await now.files.write(ino, 0, b"x")
        with trio.fail_after(5):
            nursery.start_soon(now.files.fsync, ino)
            nursery.start_soon(now.files.flush)
            await trio.sleep(0.3)
            await nothing_flies(now.flusher)
            now.files.change(ino, AttributeChange(size=0))
            while nursery.child_tasks:
                await trio.sleep(0.01)


async def test_who_waits_for_a_file_that_goes_wakes_up(volume: VolumePaths) -> None:
    async with run_stack(volume) as now, trio.open_nursery() as nursery:
        ino = now.create(b"gone").ino
        await now.files.write(ino, 0, b"x")
        with trio.fail_after(5):
            nursery.start_soon(now.files.flush)
            await trio.sleep(0.3)
            await nothing_flies(now.flusher)
            now.files.unlinked(now.names.unlink(1, b"gone"))
            while nursery.child_tasks:
                await trio.sleep(0.01)


@pytest.mark.parametrize("committed", [False, True])
async def test_who_waits_for_bytes_that_are_overwritten_waits_for_what_took_their_place(
    volume: VolumePaths, committed: bool
) -> None:
    async with run_stack(volume) as now, trio.open_nursery() as nursery:
        ino = now.create(b"over").ino
        await now.files.write(ino, 0, b"old")
        nursery.start_soon(now.files.store if committed else now.files.fsync, ino)
        await trio.testing.wait_all_tasks_blocked()
        await now.files.write(ino, 0, b"new")
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        async with run_depot(volume.depot):
            with trio.fail_after(5):
                while nursery.child_tasks:
                    await trio.sleep(0.01)
            assert [piece[:2] for piece in now.ledger.extents(ino)] == [(0, 3)]
            assert not now.db.unsynced


async def test_nothing_is_remembered_of_a_file_once_it_is_clean(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x")
        await now.files.fsync(ino)
        assert not now.flusher.files
        assert not now.flusher._queue.urgent


async def test_a_file_that_was_emptied_in_a_failed_flight_is_forgotten(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x")
        batch = now.flusher._queue.next_batch() or now.flusher.hurry(ino) or now.flusher._queue.next_batch()
        assert batch is not None
        now.files.change(ino, AttributeChange(size=0))
        now.flusher._ground(batch)
        assert not now.flusher.files


async def test_a_replaced_file_goes_when_the_new_one_is_emptied(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        old, new = now.create(b"old"), now.create(b"new")
        await now.files.write(new.ino, 0, b"x")
        replaced = now.names.rename(1, b"new", 1, b"old")
        assert replaced is not None
        now.files.replaced(replaced, new.ino)
        await nothing_flies(now.flusher)
        now.files.change(new.ino, AttributeChange(size=0))
        await wait_until_gone(now, old.ino)


async def test_a_replaced_file_goes_when_the_new_one_is_unlinked(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        old, new = now.create(b"old"), now.create(b"new")
        await now.files.write(new.ino, 0, b"x")
        replaced = now.names.rename(1, b"new", 1, b"old")
        assert replaced is not None
        now.files.replaced(replaced, new.ino)
        now.files.unlinked(now.names.unlink(1, b"old"))
        await wait_until_gone(now, old.ino)


async def test_a_file_that_flies_and_is_waited_for_keeps_no_other_on_the_ground(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        first, second = now.create(b"1").ino, now.create(b"2").ino
        await now.files.write(first, 0, b"x")
        await now.files.write(second, 0, b"y")
        await nothing_flies(now.flusher)
        files = now.flusher.files
        files[first].take_off(files[first].ready(10, 10)[0])
        now.flusher._queue.urgent.add(first)
        now.flusher._queue.make_old(files[second])
        batch = now.flusher._queue.next_batch()
        assert batch is not None
        assert [file.ino for file, _ in batch.flights] == [second]


async def test_fsync_fails_when_bytes_were_lost(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x" * 100)
    (file,) = volume.spool.iterdir()
    with file.open("r+b") as opened:  # the record's header stays: a replay takes it for one, then the disk rots
        size = os.fstat(opened.fileno()).st_size
    async with run_stack(volume) as now:
        with file.open("r+b") as opened:
            opened.seek(size - 50)
            opened.write(b"rot")
        async with run_depot(volume.depot):
            with pytest.raises(DataError), trio.fail_after(10):
                await now.files.fsync(ino)


async def test_times_that_were_set_survive_a_kill(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"file").ino
        for number in range(10):
            await now.files.write(ino, number, b"x")
        now.files.change(ino, AttributeChange(mtime_ns=12345))
    async with run_stack(volume) as now:
        assert now.files.inode(ino).size == 10
        assert now.files.inode(ino).mtime_ns == 12345
        await now.files.write(ino, 0, b"y")
        written = now.files.inode(ino).mtime_ns
        assert written > 12345
    async with run_stack(volume) as now:
        assert now.files.inode(ino).mtime_ns == written


async def test_the_time_of_a_write_survives_a_rename_and_a_kill(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"0").ino
        await now.files.write(ino, 0, b"x")
        written = now.files.inode(ino).mtime_ns
        for number in range(5):
            now.names.rename(1, b"%d" % number, 1, b"%d" % (number + 1))
    async with run_stack(volume) as now:
        assert now.files.inode(ino).mtime_ns == written


async def test_a_spool_of_a_lost_inode_does_not_meet_its_successor(volume: VolumePaths) -> None:
    store = volume.store.read_bytes()
    async with run_stack(volume) as now:
        old = now.create(b"old").ino
        await now.files.write(old, 0, b"of another file")
        other = now.create(b"other").ino
        await now.files.write(other, 0, b"x")
    # A power cut: the store's WAL was not synced, the spool's bytes happened to be.
    Path(f"{volume.store}-wal").unlink(missing_ok=True)
    volume.store.write_bytes(store)
    async with run_stack(volume) as now:
        assert now.create(b"new").ino == old
    async with run_stack(volume) as now:
        assert now.files.inode(old).size == 0


async def test_a_file_that_is_made_longer_again_and_again_costs_no_rows(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x" * 100)
        now.files.change(ino, AttributeChange(size=50))
        for size in range(51, 200):
            now.files.change(ino, AttributeChange(size=size))
        assert len(now.ledger.voids(ino)) == 1
        await now.files.write(ino, 150, b"y" * 10)
    async with run_stack(volume) as now:
        assert await now.files.read(ino, 0, 300) == b"x" * 50 + bytes(100) + b"y" * 10 + bytes(39)


async def test_tiny_writes_wait_when_there_are_too_many(volume: VolumePaths) -> None:
    async with run_stack(volume, Limits(records=100, deadline=0.3)) as now:
        ino = now.create(b"file").ino
        for number in range(100):
            await now.files.write(ino, number, b"x")
        with pytest.raises(DeadlineExceeded):
            await now.files.write(ino, 100, b"x")


async def test_a_spool_full_of_overwritten_bytes_is_full(volume: VolumePaths) -> None:
    async with run_stack(volume, Limits(spool=1_000_000, deadline=0.3)) as now:
        ino = now.create(b"file").ino
        with pytest.raises(DeadlineExceeded):
            for _ in range(20):
                await now.files.write(ino, 0, bytes(100_000))


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_what_is_just_being_cached_is_dropped_too(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    append, clear, cleared = CleanCache.append, CleanCache.clear, threading.Event()

    def late(*arguments: Any) -> bool:
        cleared.wait(0.3)
        return append(*arguments)

    def clear_and_tell(cache: CleanCache) -> None:
        clear(cache)
        cleared.set()

    monkeypatch.setattr(CleanCache, "append", late)
    monkeypatch.setattr(CleanCache, "clear", clear_and_tell)
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.files.write(now.create(b"file").ino, 0, b"x" * size)
        await now.files.drop()
        while now.flusher._carrying:
            await trio.sleep(0.01)
        assert not now.flusher.fresh._clean.covers(1, 0, 100)


async def test_a_file_that_goes_while_a_truncation_is_finished_is_not_forgotten(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        cut, gone = now.create(b"cut").ino, now.create(b"gone").ino
        segment = now.ledger.add_segment(1, [])
        forms = [SliceForm(number.to_bytes(16, "big"), bytes(16), 1, 1, 65536, 1) for number in range(3500)]
        slices = [NewSlice(cut, 2 * at, 2 * at + 1, 1, form, bytes(16), 100 * at) for at, form in enumerate(forms)]
        now.ledger.commit(segment, 100 * len(slices), slices, dict)
        now.files.change(cut, AttributeChange(size=0))
        while now.db.value("SELECT count(*) FROM mappings") >= 2500:
            await trio.lowlevel.checkpoint()
        assert now.db.value("SELECT count(*) FROM mappings")
        now.files.unlinked(now.names.unlink(1, b"gone"))
        await wait_until_gone(now, gone)


async def test_a_stream_to_the_depot_on_the_same_disk_is_not_copied_into_the_cache(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(4 * 1024 * 1024)
    async with run_depot(volume.depot), run_stack(volume) as now:
        monkeypatch.setattr(now.flusher.fresh, "_is_beside", now.transfer.is_own)
        large, small = now.create(b"large").ino, now.create(b"small").ino
        await now.files.write(large, 0, data)
        await now.files.flush()
        assert now.transfer.is_own(1)
        assert now.flusher.fresh._clean.used == 0
        await now.files.write(small, 0, b"small")
        await now.files.flush()
        assert await now.files.read(large, 0, len(data)) == data
        assert await now.files.read(small, 0, 10) == b"small"
        (own,) = now.ledger.replicas(1)
        assert now.transfer.is_own(1, own.id)
        assert not now.transfer.is_own(1, own.id + 1), "another replica gave the bytes"
        now.ledger.suspect(own)
        assert not now.transfer.is_own(1)
