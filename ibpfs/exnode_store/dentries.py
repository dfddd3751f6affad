"""The rows of table dentries: found, entered, moved, removed, remembered. Knows of inodes but their rows."""

from contextlib import suppress

from ibpfs.errors import NameExists
from ibpfs.exnode_store.attributes import JOINED_COLUMNS
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.remembered import Dentry, Row

#: Readdir cookies of `.` and `..`; the dentries' own ids begin behind them.
DOT, DOT_DOT = 1, 2
#: A directory's inode number and a name in it.
Place = tuple[int, bytes]

_JOINED = f"{JOINED_COLUMNS} FROM dentries d JOIN inodes i ON i.ino = d.ino"
_FIND = f"SELECT d.id, {_JOINED} WHERE d.parent = ? AND d.name = ?"
_LIST = f"SELECT d.id, d.name, {_JOINED} WHERE d.parent = ? AND d.id > ? ORDER BY d.id LIMIT ?"
_ENTER = "INSERT OR IGNORE INTO dentries (parent, name, ino, seq) VALUES (?, ?, ?, ?)"
#: A directory with no more names is listed from memory, where it is known.
_FEW = 64
_NONE: dict[bytes, Dentry] = {}


class DentryTable:
    """Every write happens inside the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._names = db.remembered.names
        self._rows = db.remembered.rows

    def find(self, place: Place) -> Dentry | None:
        """Its id and inode; None when there is none. `.` and `..` are none. What it reads of the inode is kept."""
        parent, name = place
        known = self._names.of.get(parent, _NONE).get(name)
        if known is not None or self._names.lacks(parent, name):
            return known
        row = self._db.row(_FIND, place)
        if row is None:
            return None
        self._db.remembered.keep(row[1], row[1:])
        self._names.keep(parent, name, row[:2])
        return row[0], row[1]

    def listed(self, parent: int, after: int, limit: int) -> list[tuple[int, bytes, Row]]:
        """Up to `limit` (id, name, row of the inode) with ids above `after`, by id."""
        here = self._names.of.get(parent)
        if here is not None and len(here) <= _FEW and parent in self._names.whole:
            known = sorted((id_, name, ino) for name, (id_, ino) in here.items() if id_ > after)[:limit]
            with suppress(KeyError):  # where rows are forgotten, one statement finds all
                return [(id_, name, self._rows[ino]) for id_, name, ino in known]
        found = [(row[0], row[1], row[2:]) for row in self._db.rows(_LIST, (parent, after, limit))]
        if after <= DOT_DOT and len(found) < limit:
            for _, _, row in found:
                self._db.remembered.keep(row[0], row)
            self._names.keep_whole(parent, {name: (id_, row[0]) for id_, name, row in found})
        return found

    def is_empty(self, parent: int) -> bool:
        """By the table: what is removed must be, even of entries whose inodes damage took, which are not remembered."""
        if self._names.of.get(parent):
            return False
        return self._db.row("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (parent,)) is None

    def new_directory(self, ino: int) -> None:
        """It has just been made and is empty."""
        self._names.keep_whole(ino, {})

    def enter(self, place: Place, ino: int) -> None:
        """Raises NameExists."""
        added = self._db.execute_remembered(_ENTER, (*place, ino, self._db.seq))
        if not added.rowcount:
            raise NameExists("the name exists")
        assert added.lastrowid is not None
        self._names.keep(*place, (added.lastrowid, ino))

    def leave(self, place: Place, id_: int) -> None:
        self._db.execute_remembered("DELETE FROM dentries WHERE id = ?", (id_,))
        self._names.forget(*place)

    def move(self, old: Place, new: Place, dentry: Dentry) -> None:
        """To a name that is free."""
        changed = "UPDATE dentries SET parent = ?, name = ?, seq = ? WHERE id = ?"
        self._db.execute_remembered(changed, (*new, self._db.seq, dentry[0]))
        self._names.forget(*old)
        self._names.keep(*new, dentry)

    def point(self, place: Place, id_: int, ino: int) -> None:
        """The entry changes hands."""
        self._db.execute_remembered("UPDATE dentries SET ino = ?, seq = ? WHERE id = ?", (ino, self._db.seq, id_))
        self._names.keep(*place, (id_, ino))
