"""The exNode store's database: one connection, synchronous transactions, grouped syncs.

Every metadata operation is one synchronous function of a transaction; no await inside. A commit writes the WAL and
survives a kill of the process (I7); `sync` makes what was committed survive a power cut, one fdatasync for all.
"""

import errno
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from ibpfs.errors import NoSpace, VolumeError
from ibpfs.exnode_store import frozen
from ibpfs.exnode_store.remembered import Remembered, Row
from ibpfs.exnode_store.schema import ADDED_TABLES, FEATURES, FORMAT, TABLES
from ibpfs.exnode_store.wal_index import WalIndex
from ibpfs.exnode_store.wal_sync import WalSync

_log = logging.getLogger(__name__)

#: WAL bytes after which a passive checkpoint is due; 16 MiB keeps reads of the WAL index quick.
CHECKPOINT_BYTES = 16 * 1024 * 1024
#: Beyond this the WAL is made to begin anew, at the price of a pause.
WAL_LIMIT = 32 * 1024 * 1024
#: Of new stores; those of older ones stay as they were made. A commit writes about nine pages, each whole: a create
#: costs 60 us of CPU time with pages of 4 KiB, 46 with 2 KiB, 39 with 1 KiB, and less of the WAL has to be synced.
PAGE_SIZE = 1024
#: To sync more transactions than this, some 10 KiB each, takes milliseconds: that is left to a thread.
_FEW = 64
#: Each time that so many more are unsynced, the disk begins with them, before somebody waits for all of them.
_MUCH = 256
#: Milliseconds that a connection waits for another's lock.
BUSY_TIMEOUT = 5000


class Database:
    """The open exNode store. `seq` is the number of the transaction in progress, else of the last one."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._connection = _connect(path, read_only)
        self._read_only = read_only
        self.seq, self.next_ino, self.files = self._load_state()
        _add_tables(self._connection, read_only)
        self.readers = 0  # transactions of others that read for long: a WAL cannot begin anew beside them
        self.remembered = Remembered()
        self._transaction = _Transaction(self)
        self._synced_seq = self._begun_seq = self.seq
        self._sync_trouble = 0  # errno of the first sync that failed
        self._wal = WalSync(path)
        self._wal_index = WalIndex(path)
        self._sync_lock = trio.Lock()
        self._checkpoint_lock = trio.Lock()
        # Kept as long as the connection: closing one of the main file takes SQLite's locks away.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _load_state(self) -> tuple[int, int, int]:
        try:
            row = self._connection.execute("SELECT seq, next_ino, files FROM state").fetchone()
            facts = dict(self._connection.execute("SELECT key, value FROM volume"))
        except sqlite3.DatabaseError as error:
            raise VolumeError(f"{self.path}: damaged database ({error}); run fsck.ibpfs") from error
        if row is None or facts.get("format") is None:
            raise VolumeError(f"{self.path}: damaged database (no state); run fsck.ibpfs")
        check_format(facts, self.path)
        self.facts = facts
        seq, next_ino, files = row
        return seq, next_ino, files

    def transaction(self) -> "_Transaction":
        """One atomic change. Nested use joins the outer one; what leaves that as an exception rolls all back."""
        return self._transaction

    def _begin(self) -> None:
        self._before = self.seq, self.next_ino, self.files, self.facts
        self._changed_before = self.changed_rows
        self.seq += 1
        self._connection.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        self._connection.execute(
            "UPDATE state SET seq = ?, next_ino = ?, files = ?", (self.seq, self.next_ino, self.files)
        )
        self._connection.execute("COMMIT")
        if self.seq - max(self._synced_seq, self._begun_seq) >= _MUCH:
            self._begun_seq = self.seq
            self._wal.begin_in_thread()

    def _roll_back(self, error: BaseException) -> None:
        """Raises what the caller is to see instead of `error`, if anything."""
        self.seq, self.next_ino, self.files, self.facts = self._before
        if self.changed_rows != self._changed_before:  # a refusal, as of an rmdir, mostly comes before the first change
            self.remembered.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            raise NoSpace("no room for the exNode store on the local disk") from error
        if isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in ("I/O", "locked")):
            raise _refusal(error) from error

    def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        self.remembered.heed(sql)
        return self._connection.execute(sql, parameters)

    def execute_remembered(self, sql: str, parameters: tuple[Any, ...]) -> sqlite3.Cursor:
        """A change of inodes, their attributes or names that the caller makes in `remembered`, too."""
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        self.remembered.heed(sql)
        self._connection.executemany(sql, rows)

    def update_inode(self, changes: str, parameters: tuple[Any, ...]) -> None:
        """SET `changes` in the row of an inode, whose number is the last parameter."""
        self.execute_remembered(f"UPDATE inodes SET {changes} WHERE ino = ?", parameters)
        self.remembered.forget(parameters[-1])

    def row(self, sql: str, parameters: tuple[Any, ...] = ()) -> Row | None:
        """The first row, or None."""
        found: Row | None = self._connection.execute(sql, parameters).fetchone()
        return found

    def rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def value(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        """The first column of the first row, or None."""
        found = self._connection.execute(sql, parameters).fetchone()
        return None if found is None else found[0]

    def set_fact(self, key: str, value: str) -> None:
        """Write a row of table `volume`; inside a transaction."""
        self.execute("INSERT OR REPLACE INTO volume (key, value) VALUES (?, ?)", (key, value))
        self.facts = {**self.facts, key: value}

    @property
    def changed_rows(self) -> int:
        """How many rows were written or deleted since the store was opened."""
        return self._connection.total_changes

    @property
    def unsynced(self) -> bool:
        """Whether a committed transaction may not survive a power cut yet."""
        return self._synced_seq < self.seq

    async def sync(self, *, alone: bool = False) -> None:
        """Return when every transaction committed before the call is on stable storage.

        `alone`: nobody else wants anything, so that the event loop may wait for a quick disk (100 us less of an fsync).
        OSError when the disk refuses, from then on for good.
        """
        wanted = self.seq
        if self._synced_seq >= wanted:
            return
        if alone and self.syncs_quickly:
            self.sync_now()
            return
        async with self._sync_lock:
            if self._synced_seq >= wanted:  # somebody else's sync, begun after our commit, covered it
                return
            self.check_syncs()
            covered = self.seq
            try:
                await self._wal.sync()
            except OSError as error:
                self._sync_failed(error)
                raise
            self._synced_seq = max(self._synced_seq, covered)

    @property
    def syncs_quickly(self) -> bool:
        """Whether the event loop may wait for `sync_now`, where nobody else wants anything."""
        return self._is_little and self._wal.is_quick and not self._sync_lock.locked()

    @property
    def _is_little(self) -> bool:
        """Whether little is to be synced."""
        return self.seq - self._synced_seq <= _FEW

    def begin_sync(self) -> None:
        """Something else is synced first: let a quick disk write this meanwhile; of another even that may take long."""
        if self.unsynced and self.syncs_quickly:
            self._wal.begin()

    def sync_now(self) -> None:
        """As `sync`, where `syncs_quickly`."""
        self.check_syncs()
        try:
            self._wal.sync_now()
        except OSError as error:
            self._sync_failed(error)
            raise
        self._synced_seq = self.seq

    def _sync_failed(self, error: OSError) -> None:
        self._sync_trouble = error.errno or errno.EIO

    def check_syncs(self) -> None:
        """OSError when an earlier sync failed."""
        if self._sync_trouble:
            # After a failed fdatasync the kernel may have dropped the pages: a later success proves nothing.
            raise OSError(self._sync_trouble, "an earlier sync of the exNode store failed; mount it again")

    async def checkpoint(self) -> None:
        """Move the WAL into the database file when it has grown, from a connection and thread of its own.

        OSError when the disk refuses, or is full, or has refused a sync: what is in the WAL stays there.
        """
        size, to_move = self._wal_index.sizes()
        if self._checkpoint_lock.locked() or size < CHECKPOINT_BYTES or not to_move:
            return
        self.check_syncs()  # pages of the WAL may read as they were long ago: only recovery looks at checksums
        try:
            async with self._checkpoint_lock:
                await trio.to_thread.run_sync(_passive_checkpoint, self.path)
            if size > WAL_LIMIT and not self.readers:
                # Under unbroken load a passive checkpoint never finds a moment in which the WAL may begin anew. Little
                # is left to copy now: 2 to 11 ms, where it took 55 to 118 with 1 s of creates, and to cut the file off.
                self._connection.execute("PRAGMA busy_timeout = 0")  # a reader in another process is not waited for
                try:
                    self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
                finally:
                    self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
        except sqlite3.OperationalError as error:
            raise _refusal(error) from error

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[frozen.Image]:
        """The state as it is now, as the bytes of the database file; later commits do not touch them.

        OSError when the disk refuses, DataError when the file cannot be had at that commit.
        """
        async with self._checkpoint_lock:
            while self.readers:  # noqa: ASYNC110 (they hold the file at an older commit; a number, not an event)
                await trio.sleep(0.05)
            reader = _connect(self.path, False)
            try:
                async with frozen.held(self.path, reader, self._descriptor) as image:
                    yield image
            except sqlite3.OperationalError as error:
                raise _refusal(error) from error
            finally:
                reader.close()

    def close(self) -> None:
        """Fold the WAL into the database, if the disk lets us, and close."""
        try:
            if not self._read_only:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            _log.info("%s: the WAL stays beside it: %s", self.path, error)
        finally:
            self._connection.close()
            self._wal.close()
            self._wal_index.close()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> "Database":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Transaction:
    """The `with` of a transaction: an object for all of them, since a generator each costs 3 us of 50."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._depth = 0

    def __enter__(self) -> Database:
        if not self._depth:
            try:
                self._db._begin()
            except BaseException as error:
                self._db._roll_back(error)
                raise
        self._depth += 1
        return self._db

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        if error is None:
            try:
                self._db._commit()
            except BaseException as refusal:
                self._db._roll_back(refusal)
                raise
        else:
            self._db._roll_back(error)


def create_database(path: Path, facts: dict[str, str]) -> None:
    """Make an empty exNode store (no root directory yet), mode 0600, on stable storage."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.close(descriptor)
    connection = _connect(path, False, page_size=PAGE_SIZE)
    connection.executescript(f"BEGIN; {TABLES} {ADDED_TABLES} COMMIT;")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO state (id, seq, next_ino, files, clean) VALUES (1, 0, 1, 0, 1)")
    connection.executemany("INSERT INTO volume (key, value) VALUES (?, ?)", list(facts.items()))
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def find_damage(path: Path) -> str:
    """What a quick look finds wrong with a store, which may be in use; '' when that is nothing."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.execute("SELECT seq FROM state").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        said = str(error)
    return "" if said == "ok" else " ".join(str(said).split())[:120]


def _add_tables(connection: sqlite3.Connection, read_only: bool) -> None:
    """What an older release did not have; where nothing may be written, empty and for this connection alone."""
    have = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    tables = re.findall(r"^CREATE TABLE IF NOT EXISTS (\w+) (\(.*?^\));", ADDED_TABLES, re.M | re.S)
    missing = [(name, columns) for name, columns in tables if name not in have]
    if missing and not read_only:
        connection.executescript(f"BEGIN IMMEDIATE; {ADDED_TABLES} COMMIT;")
        return
    for name, columns in missing:
        connection.execute(f"CREATE TEMP TABLE {name} {columns}")


def check_format(facts: dict[str, str], path: Path) -> None:
    """Raise VolumeError when the store is of a format, or uses a feature, that this program does not know."""
    if facts["format"] != str(FORMAT):
        raise VolumeError(f"{path}: format {facts['format']} is not known to this version of ibpfs (it knows {FORMAT})")
    unknown = set(facts.get("features", "").split()) - FEATURES
    if unknown:
        raise VolumeError(f"{path}: uses {', '.join(sorted(unknown))}, unknown to this version of ibpfs")


def _connect(path: Path, read_only: bool, *, page_size: int | None = None) -> sqlite3.Connection:
    if not path.exists():
        raise VolumeError(f"{path}: no exNode store there; put it back, or: ibpfs recover NEWVOLUME")
    mode = "ro" if read_only else "rw"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    # check_same_thread: the connection is used by one task at a time, but fsck may run it in a worker thread.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        if page_size is not None:
            connection.execute(f"PRAGMA page_size = {page_size}")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # A WAL that begins anew keeps its blocks, as many as a second of creates fills: to sync what lies in them takes
        # no commit of the file system's journal, and half the time (98 us, not 190, for a create and an fsync on ext4).
        connection.execute(f"PRAGMA journal_size_limit = {2 * WAL_LIMIT}")
        connection.execute("PRAGMA cache_size = -32768")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise VolumeError(f"{path}: damaged database ({error}); run fsck.ibpfs") from error
    return connection


def _refusal(error: sqlite3.OperationalError) -> OSError:
    code = errno.ENOSPC if "full" in str(error) else errno.EIO
    return OSError(code, f"the exNode store cannot be written: {error}")


def _passive_checkpoint(path: Path) -> None:
    connection = _connect(path, False)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # what was committed meanwhile
    finally:
        connection.close()
