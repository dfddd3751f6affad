"""Syncs of the WAL: what they promise, and that their thread ends."""

import os
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from ibpfs.exnode_store import wal_sync
from ibpfs.exnode_store.wal_sync import AHEAD, WalSync


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wal-sync"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "store-wal").write_bytes(b"frames")
    return tmp_path / "store"


async def test_the_thread_ends_with_its_object(path: Path) -> None:
    before = set(threads())
    syncs = WalSync(path)
    await syncs.sync()
    (thread,) = set(threads()) - before
    syncs.close()
    with trio.fail_after(20):
        await trio.to_thread.run_sync(thread.join)


async def test_a_refusal_reaches_who_waits_and_later_ones_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = WalSync(path)

    def refuse(_descriptor: int) -> None:
        raise OSError(5, "the disk refuses")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(OSError, match="the disk refuses"):
            await syncs.sync()
    await syncs.sync()
    syncs.close()


async def test_a_sync_that_runs_is_waited_for_even_by_who_was_cancelled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs, may_end, ended = WalSync(path), threading.Event(), threading.Event()

    def slow(_descriptor: int) -> None:
        may_end.wait(20)
        ended.set()

    monkeypatch.setattr(os, "fdatasync", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(syncs.sync)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        may_end.set()
    assert ended.is_set()
    syncs.close()


async def test_who_need_not_wait_for_a_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, synced, seconds = WalSync(path), [], iter([0.0, 0.0, 0.0, 0.01, 0.01, 0.02])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(descriptor))
    assert not syncs.is_quick  # nothing is known of the disk, nor has the WAL's name been synced
    await syncs.sync()
    assert syncs.is_quick
    syncs.sync_now()
    assert syncs.is_quick  # it took 10 ms, which may have been chance
    syncs.sync_now()
    assert len(synced) == 3
    assert not syncs.is_quick
    syncs.close()


async def test_small_syncs_find_blocks_that_the_wal_has_and_sqlite_takes_them_for_its_end(tmp_path: Path) -> None:
    path, wal = tmp_path / "store", tmp_path / "store-wal"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE numbers (number, filling)")
    syncs, sizes = WalSync(path), []
    for number in range(20):  # 400 KiB
        connection.execute("INSERT INTO numbers VALUES (?, zeroblob(16000))", (number,))
        sizes.append(wal.stat().st_size)
        await syncs.sync()
    assert len(set(sizes)) <= 3 + 400 * 1024 // AHEAD
    copy = tmp_path / "copy"
    for end in ("", "-wal"):  # as a kill leaves them
        shutil.copy(f"{path}{end}", f"{copy}{end}")
    connection.close()
    syncs.close()
    recovered = sqlite3.connect(copy)
    assert recovered.execute("SELECT number FROM numbers").fetchall() == [(number,) for number in range(20)]
    recovered.close()


def test_the_disk_may_begin_before_a_sync(path: Path) -> None:
    syncs = WalSync(path)
    syncs.begin()
    assert (path.parent / "store-wal").read_bytes() == b"frames" + bytes(AHEAD)
    syncs.sync_now()
    syncs.close()


async def test_much_that_was_written_at_once_gets_no_more(path: Path) -> None:
    (path.parent / "store-wal").write_bytes(bytes(AHEAD))
    syncs = WalSync(path)
    await syncs.sync()
    assert (path.parent / "store-wal").stat().st_size == AHEAD
    syncs.close()


async def test_all_syncs_are_of_one_open_file_which_is_told_of_all_errors(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs, seen = WalSync(path), []
    monkeypatch.setattr(os, "fdatasync", seen.append)
    await syncs.sync()
    syncs.sync_now()
    await syncs.sync()
    assert len(seen) == 3
    assert set(seen) == {syncs._descriptor}
    syncs.close()


def test_a_disk_that_is_stuck_is_given_one_more_beginning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, go_on, begun = WalSync(path), threading.Event(), threading.Semaphore(0)

    def stuck(_descriptor: int) -> None:
        begun.release()
        go_on.wait(20)

    monkeypatch.setattr(wal_sync, "start_writeback", stuck)
    syncs.begin_in_thread()
    assert begun.acquire(timeout=20)
    for _ in range(10):
        syncs.begin_in_thread()
    waiting = syncs._jobs.qsize()
    go_on.set()
    syncs.close()
    assert waiting == 1


def test_where_no_thread_starts_a_commit_is_one_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    syncs = WalSync(path)
    syncs.begin_in_thread()
    syncs.close()
