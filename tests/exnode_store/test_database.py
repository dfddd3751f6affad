"""Transactions: whole or not at all, durable when told, across kills of the process."""

import errno
import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import trio

from ibpfs.depot import disk_pace
from ibpfs.errors import NoSpace, VolumeError
from ibpfs.exnode_store import database as database_module
from ibpfs.exnode_store import wal_sync
from ibpfs.exnode_store.database import Database, create_database

FACTS = {"format": "1", "features": "", "uuid": "00" * 16}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "exnode_store.sqlite"
    create_database(path, FACTS)
    return path


@pytest.fixture
def store(path: Path) -> Iterator[Database]:
    with Database(path) as database:
        yield database


def add_pin(store: Database, name: str) -> None:
    store.execute("INSERT INTO pins (kind, name, pinned, seq) VALUES ('test', ?, 0, ?)", (name, store.seq))


def pins(store: Database) -> list[tuple[str, int]]:
    return [(name, seq) for name, seq in store.rows("SELECT name, seq FROM pins ORDER BY id")]


def test_a_new_store(path: Path, store: Database) -> None:
    assert (store.seq, store.next_ino, store.files) == (0, 1, 0)
    assert store.facts == FACTS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_database(path, FACTS)


def test_commits_are_numbered_and_last(path: Path) -> None:
    with Database(path) as store:
        with store.transaction():
            add_pin(store, "one")
            store.next_ino, store.files = 7, 3
        with store.transaction():
            add_pin(store, "two")
            store.set_fact("more", "x")
    with Database(path) as store:
        assert (store.seq, store.next_ino, store.files) == (2, 7, 3)
        assert pins(store) == [("one", 1), ("two", 2)]
        assert store.facts["more"] == "x"


def change_and_raise(store: Database, error: type[BaseException]) -> None:
    with store.transaction():
        add_pin(store, "lost")
        store.next_ino, store.files = 9, 9
        store.set_fact("uuid", "changed")
        raise error


def test_an_exception_takes_everything_back(store: Database) -> None:
    for error in (SystemExit, ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            change_and_raise(store, error)
        assert (store.seq, store.next_ino, store.files, store.facts) == (0, 1, 0, FACTS)
        assert pins(store) == []
    with store.transaction():
        add_pin(store, "kept")
    assert pins(store) == [("kept", 1)]


def add_twice(store: Database) -> None:
    with store.transaction():
        add_pin(store, "twice")
        add_pin(store, "twice")


def test_a_refused_statement_takes_everything_back(store: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        add_twice(store)
    assert pins(store) == []


def fail_outside(store: Database) -> None:
    with store.transaction():
        with store.transaction():
            add_pin(store, "inner again")
        raise ValueError("boom")


def fail_inside(store: Database) -> None:
    with store.transaction():
        add_pin(store, "outer again")
        with store.transaction():
            raise ValueError("boom")


def test_nested_transactions_are_one(store: Database) -> None:
    with store.transaction():
        add_pin(store, "outer")
        with store.transaction(), store.transaction():
            add_pin(store, "inner")
        assert store.seq == 1
    assert pins(store) == [("outer", 1), ("inner", 1)]
    for fail in (fail_outside, fail_inside):
        with pytest.raises(ValueError, match="boom"):
            fail(store)
    assert pins(store) == [("outer", 1), ("inner", 1)]


async def test_sync(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = record_syncs(monkeypatch)
    await store.sync()
    assert (syncs, store.unsynced) == ([], False)
    with store.transaction():
        add_pin(store, "one")
    assert store.unsynced
    await store.sync()
    assert (syncs, store.unsynced) == (["exnode_store.sqlite-wal", "."], False)
    await store.sync()
    with store.transaction():
        add_pin(store, "two")
    await store.sync()
    assert syncs == ["exnode_store.sqlite-wal", ".", "exnode_store.sqlite-wal"]


async def test_a_lone_sync_on_a_quick_disk_is_one_all_the_same(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        threads.append(threading.current_thread())
        if len(threads) == 4:
            raise OSError(errno.EIO, "bad disk")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(disk_pace, "QUICK", math.inf)
    monkeypatch.setattr(disk_pace, "STALL", math.inf)
    for number, alone in enumerate([True, False, True]):
        with store.transaction():
            add_pin(store, str(number))
        await store.sync(alone=alone)
        assert not store.unsynced
    # At first the WAL's name has to be synced, too.
    assert [thread is threading.main_thread() for thread in threads] == [False, False, True]
    with store.transaction():
        add_pin(store, "unsure")
    for alone in (True, True, False):
        with pytest.raises(OSError, match=r"bad disk|an earlier sync"):
            await store.sync(alone=alone)
        assert store.unsynced
    assert len(threads) == 4


async def test_much_is_synced_in_a_thread(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_pace, "QUICK", math.inf)
    said = []
    for number in range(1, 67):
        with store.transaction():
            add_pin(store, str(number))
        if number == 1:
            await store.sync()  # the WAL's name, too
        said.append(store.syncs_quickly)
    assert said == [True] * 65 + [False]  # 64 transactions are little


def test_the_disk_begins_with_much_before_it_is_waited_for(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: SimpleQueue[tuple[str, int]] = SimpleQueue()

    def begin(descriptor: int) -> None:
        begun.put((Path(f"/proc/self/fd/{descriptor}").readlink().name, store.seq))

    monkeypatch.setattr(wal_sync, "start_writeback", begin)
    first = store.seq
    for number in range(255):
        with store.transaction():
            add_pin(store, str(number))
    assert begun.empty()
    with store.transaction():
        add_pin(store, "one more")
    assert begun.get(timeout=20) == ("exnode_store.sqlite-wal", first + 256)
    assert store.unsynced


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the real calls through and note what they were for: a file's name, '.' for its directory."""
    seen: list[str] = []

    def watching(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            seen.append("." if target.is_dir() else target.name)
            real(descriptor)

        return sync

    monkeypatch.setattr(os, "fdatasync", watching(os.fdatasync))
    monkeypatch.setattr(os, "fsync", watching(os.fsync))
    return seen


async def test_those_who_wait_share_a_sync(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = record_syncs(monkeypatch)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            with store.transaction():
                add_pin(store, str(number))
            nursery.start_soon(store.sync)
    assert not store.unsynced
    assert len(syncs) <= 3


async def test_a_sync_does_not_cover_what_was_committed_after_it_began(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, real, token = trio.Event(), os.fdatasync, trio.lowlevel.current_trio_token()

    def commit_meanwhile() -> None:
        with store.transaction():
            add_pin(store, "late")
        begun.set()

    def slow(descriptor: int) -> None:
        real(descriptor)
        if not begun.is_set():
            trio.from_thread.run_sync(commit_meanwhile, trio_token=token)

    monkeypatch.setattr(os, "fdatasync", slow)
    with store.transaction():
        add_pin(store, "early")
    await store.sync()
    assert store.unsynced
    await store.sync()
    assert not store.unsynced


def wal_file(store: Database) -> Path:
    return Path(f"{store.path}-wal")


async def test_checkpoints_keep_the_wal_small(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    monkeypatch.setattr(database_module, "CHECKPOINT_BYTES", limit)
    for number in range(600):
        with store.transaction():
            add_pin(store, f"{number}")
            store.set_fact("bulk", f"{number}" * 2000)
        await store.checkpoint()
    assert store._wal_index.sizes()[0] < 2 * limit
    assert wal_file(store).stat().st_size < 3 * limit
    assert len(pins(store)) == 600


async def test_after_a_checkpoint_the_wal_no_longer_looks_due(store: Database) -> None:
    with store.transaction():
        store.set_fact("bulk", "x" * database_module.CHECKPOINT_BYTES)
    assert store._wal_index.sizes()[0] >= database_module.CHECKPOINT_BYTES
    await store.checkpoint()
    assert store._wal_index.sizes()[1] == 0
    for number in range(2):
        with store.transaction():
            add_pin(store, str(number))
    assert store._wal_index.sizes()[0] == store._wal_index.sizes()[1] < 100_000


async def test_after_a_sync_that_failed_nothing_is_moved_out_of_the_wal(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "bad disk")

    with store.transaction():
        store.set_fact("bulk", "x" * database_module.CHECKPOINT_BYTES)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="bad disk"):
        await store.sync()
    before = store._wal_index.sizes()
    with pytest.raises(OSError, match="an earlier sync"):
        await store.checkpoint()
    assert store._wal_index.sizes() == before


async def test_a_wal_that_begins_anew_keeps_its_blocks(store: Database) -> None:
    with store.transaction():
        store.set_fact("bulk", "x" * 2 * database_module.WAL_LIMIT)
    full = wal_file(store).stat().st_size
    await store.checkpoint()
    with store.transaction():
        add_pin(store, "one")
    assert full > wal_file(store).stat().st_size == 2 * database_module.WAL_LIMIT


async def test_a_reader_in_another_process_holds_up_nobody(store: Database) -> None:
    other = sqlite3.connect(store.path)
    try:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM volume").fetchall()
        with store.transaction():
            store.set_fact("bulk", "x" * 2 * database_module.WAL_LIMIT)
        said: list[str] = []
        store._connection.set_trace_callback(said.append)
        await store.checkpoint()
        store._connection.set_trace_callback(None)
        at = said.index("PRAGMA wal_checkpoint(RESTART)")
        assert said[at - 1 : at + 2 : 2] == ["PRAGMA busy_timeout = 0", "PRAGMA busy_timeout = 5000"]
        with store.transaction():
            add_pin(store, "one")
    finally:
        other.close()
    await store.checkpoint()
    with store.transaction():
        add_pin(store, "two")
    assert store._wal_index.sizes()[0] < 100_000


def test_closing_folds_the_wal_in(path: Path) -> None:
    with Database(path) as store, store.transaction():
        add_pin(store, "one")
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name]


def test_reading_only(path: Path, store: Database) -> None:
    with store.transaction():
        add_pin(store, "one")
    with Database(path, read_only=True) as reader:
        assert pins(reader) == [("one", 1)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"), reader.transaction():
            add_pin(reader, "two")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": "2", "features": ""}, "format 2 is not known"),
        ({"format": "1", "features": "snapshots later"}, "uses later, snapshots, unknown"),
        ({"features": ""}, "damaged"),
    ],
)
def test_what_this_version_does_not_know_is_refused(tmp_path: Path, facts: dict[str, str], message: str) -> None:
    create_database(tmp_path / "store", facts)
    with pytest.raises(VolumeError, match=message):
        Database(tmp_path / "store")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no exNode store there"):
        Database(tmp_path / "missing")
    (tmp_path / "text").write_text("not a database, not even an empty one\n" * 100)
    with pytest.raises(VolumeError, match="damaged"):
        Database(tmp_path / "text")
    (tmp_path / "empty").touch()
    with pytest.raises(VolumeError, match="damaged"):
        Database(tmp_path / "empty")


WRITER = """
import sys
from pathlib import Path
from ibpfs.exnode_store.database import Database

store = Database(Path(sys.argv[1]))
for number in range(100000):
    with store.transaction():
        store.execute("INSERT INTO pins (kind, name, pinned, seq) VALUES ('a', ?, 0, ?)", (str(number), store.seq))
        store.execute("INSERT INTO pins (kind, name, pinned, seq) VALUES ('b', ?, 0, ?)", (str(number), store.seq))
    print(number, flush=True)
"""


@pytest.mark.parametrize("answers", [1, 25, 200])
def test_a_killed_process_loses_nothing_it_had_committed(path: Path, answers: int) -> None:
    last = -1
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(answers):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in writer.stdout.read().split())])
    with Database(path) as store:
        numbers = {kind: [int(name) for name in names_of(store, kind)] for kind in ("a", "b")}
        assert numbers["a"] == numbers["b"] == list(range(len(numbers["a"])))
        assert last < len(numbers["a"]) <= last + 2
        assert store.seq == len(numbers["a"])


def names_of(store: Database, kind: str) -> list[str]:
    return [name for (name,) in store.rows("SELECT name FROM pins WHERE kind = ? ORDER BY id", (kind,))]


@pytest.mark.root
def test_a_full_disk_is_told_and_takes_nothing_away(small_disk: Path) -> None:
    path = small_disk / "store"
    create_database(path, FACTS)
    with Database(path) as store:
        with store.transaction():
            add_pin(store, "first")
        with pytest.raises(NoSpace), store.transaction():
            store.set_fact("bulk", "x" * (8 << 20))
        assert (store.seq, pins(store)) == (1, [("first", 1)])
        assert "bulk" not in store.facts
        with store.transaction():
            add_pin(store, "second")
        assert pins(store) == [("first", 1), ("second", 2)]


async def test_a_full_disk_refuses_checkpoints_and_nothing_else(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "CHECKPOINT_BYTES", 1 << 20)
    path = small_disk / "exnode_store.sqlite"
    create_database(path, FACTS)
    with Database(path) as store:
        with store.transaction():
            store.set_fact("bulk", "x" * (1 << 20))
        with (small_disk / "other").open("wb", buffering=0) as other, pytest.raises(OSError, match="No space"):
            while True:
                other.write(bytes(4096))
        with pytest.raises(OSError, match="full"):
            await store.checkpoint()
        assert len(store.value("SELECT value FROM volume WHERE key = 'bulk'")) == 1 << 20
    (small_disk / "other").unlink()
    with Database(path) as store:
        assert len(store.facts["bulk"]) == 1 << 20
