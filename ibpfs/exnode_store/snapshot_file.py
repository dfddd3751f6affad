"""A snapshot's file: a copy of names, attributes and mappings as of one commit, and the tree that it shows.

Slices are not copied: the file names their rows, and where their bytes lie now the live store says. A pin keeps them.
"""

import os
import sqlite3
import time
from collections import OrderedDict
from pathlib import Path

from ibpfs.config import sync_directory
from ibpfs.errors import IbpfsError, NoSpace, VolumeError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.extents import ExtentMap, Piece
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import TABLES
from ibpfs.exnode_store.sealing import SliceForm

#: What reading needs; of what has a name.
_COPIED = (
    "INSERT INTO volume SELECT key, value FROM live.volume WHERE key IN ('uuid', 'format')",
    "INSERT INTO state SELECT * FROM live.state",
    "INSERT INTO policies SELECT * FROM live.policies",
    "INSERT INTO inodes SELECT * FROM live.inodes WHERE nlink > 0",
    "INSERT INTO dentries SELECT * FROM live.dentries",
    *(f"INSERT INTO {table} SELECT * FROM live.{table} WHERE ino NOT IN (SELECT ino FROM live.inodes WHERE nlink = 0)"
      for table in ("symlinks", "xattrs", "mappings", "voids")),
)  # fmt: skip
_KEPT_PIECES = 100_000
_SLICES_AT_ONCE = 500
_PAGES = "PRAGMA cache_size = -4096"


class Copy:
    """What is committed when it is made, being copied to `path`, which is not there yet."""

    def __init__(self, path: Path, live: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._path = path
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            self._begin(live)
        except sqlite3.Error as error:
            self.give_up()
            raise _refusal(path, error) from error

    def _begin(self, live: Path) -> None:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = MEMORY"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(TABLES)
        self._connection.execute("ATTACH ? AS live", (f"{live.absolute().as_uri()}?mode=ro",))
        self._connection.execute("BEGIN")
        # The first read fixes what this transaction sees of the live store, whatever is committed there from now on.
        self.seq: int = self._connection.execute("SELECT seq FROM live.state").fetchone()[0]

    def finish(self, facts: dict[str, str]) -> None:
        """Copy, and put the file on stable storage; for a worker thread. NoSpace, VolumeError."""
        try:
            for statement in _COPIED:
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO volume VALUES (?, ?)", list(facts.items()))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _refusal(self._path, error) from error
        finally:
            self._connection.close()
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        self._connection.close()

    def give_up(self) -> None:
        self.stop()
        self._path.unlink(missing_ok=True)


def _refusal(path: Path, error: sqlite3.Error) -> IbpfsError:
    if "full" in str(error):
        return NoSpace("no room for the snapshot on the local disk")
    return VolumeError(f"{path}: the snapshot cannot be written ({error})")


def put_in_place(made: Path, path: Path) -> None:
    """Give a finished file its name, for good."""
    made.replace(path)
    sync_directory(path.parent)


class SnapshotTree:
    """The tree of one snapshot. `names` is to be read only."""

    def __init__(self, path: Path, number: int, name: str, live: Database, ledger: Ledger) -> None:
        self.number = number
        self.name = name
        self._live = live
        self._ledger = ledger
        self._db = Database(path, read_only=True)
        self._db.execute(_PAGES)
        self.names = Namespace(self._db, time.time_ns, lambda _, __: 0)
        self._maps: OrderedDict[int, ExtentMap[SliceRef]] = OrderedDict()
        self._pieces = 0
        self._moves = ledger.moves

    @property
    def created_at(self) -> float:
        return float(self._db.facts["snapshot_created_at"])

    @property
    def files(self) -> int:
        """How many inodes it has, as statfs counts them."""
        return self._db.files

    def extents(self, ino: int) -> ExtentMap[SliceRef]:
        """A file's bytes, where they lie now. The map is shared, and replaced when compaction has moved something."""
        if self._moves != self._ledger.moves:
            self._maps.clear()
            self._pieces, self._moves = 0, self._ledger.moves
        known = self._maps.get(ino)
        if known is None:
            known = self._maps[ino] = self._load(ino)
            self._pieces += len(known)
        self._maps.move_to_end(ino)
        while self._pieces > _KEPT_PIECES and len(self._maps) > 1:
            self._pieces -= len(self._maps.popitem(last=False)[1])
        return known

    def _load(self, ino: int) -> ExtentMap[SliceRef]:
        rows = self._db.rows(
            "SELECT start, stop, slice, slice_offset, covers FROM mappings WHERE ino = ? ORDER BY start", (ino,)
        )
        voids = self._db.rows("SELECT covers, start FROM voids WHERE ino = ?", (ino,)) if rows else []
        refs = self._refs(sorted({row[2] for row in rows}))
        pieces: list[Piece[SliceRef]] = []
        for start, stop, row, offset, covers in rows:
            stop = min([stop, *(at for seq, at in voids if covers <= seq)])
            if stop > start:
                if row not in refs:
                    raise VolumeError(f"snapshot {self.name}: slice {row} is gone; run fsck.ibpfs")
                pieces.append(Piece(start, stop, refs[row], offset))
        return ExtentMap(pieces)

    def _refs(self, rows: list[int]) -> dict[int, SliceRef]:
        found: dict[int, SliceRef] = {}
        for at in range(0, len(rows), _SLICES_AT_ONCE):
            some = tuple(rows[at : at + _SLICES_AT_ONCE])
            for row, *form, segment, offset in self._live.rows(
                "SELECT id, slice_id, origin, epoch, function, frame_size, length, segment, segment_offset FROM slices"
                f" WHERE id IN ({', '.join('?' * len(some))})",
                some,
            ):
                found[row] = SliceRef(row, SliceForm(*form), segment, offset)
        return found

    def close(self) -> None:
        self._db.close()
