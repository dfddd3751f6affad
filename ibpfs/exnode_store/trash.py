"""The trash: names that were deleted, kept for a time with what they stood for.

An inode that lost its last name stays, with nlink 0, while a row of table trash names it. A directory's own rows name
their directory by its inode, so what was a tree is one still. What was replaced or truncated is not in here.
"""

from ibpfs.errors import InvalidArgument
from ibpfs.exnode_store.attributes import Inode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.inodes import InodeTable
from ibpfs.exnode_store.schema import TRASH

#: Seconds for which deleted names are kept, unless the volume says otherwise.
KEEP = 7 * 86400.0
#: Seconds that something must have lived to be kept: compilers and editors leave nothing here.
LIVED = 600.0
_KEEP_FACT, _LIVED_FACT = "trash_keep", "trash_lived"
_MOST = 1e9


class Trash:
    """The table's rows. What changes them joins the caller's transaction, or is one."""

    def __init__(self, db: Database, inodes: InodeTable) -> None:
        self._db = db
        self._inodes = inodes
        self.is_empty = db.value("SELECT 1 FROM trash LIMIT 1") is None
        self._keep = float(db.facts.get(_KEEP_FACT, KEEP))
        self._lived_ns = int(float(db.facts.get(_LIVED_FACT, LIVED)) * 1e9)

    @property
    def keep(self) -> float:
        """Seconds; 0: nothing is kept."""
        return self._keep

    @property
    def lived(self) -> float:
        """Seconds that something must have lived."""
        return self._lived_ns / 1e9

    def set_keep(self, seconds: float, lived: float | None = None) -> None:
        """What is in there already goes at the new time. `lived` None: as before."""
        lived = self.lived if lived is None else lived
        if not (0 <= seconds <= _MOST and 0 <= lived <= _MOST):
            raise InvalidArgument("not a time for which deleted files could be kept")
        with self._db.transaction() as db:
            db.set_fact(_KEEP_FACT, repr(seconds))
            db.set_fact(_LIVED_FACT, repr(lived))
        self._keep, self._lived_ns = seconds, int(lived * 1e9)

    def put(self, parent: int, name: bytes, inode: Inode) -> None:
        """A name is being deleted: keep it, if it is to be kept."""
        if self._keep <= 0:
            return
        now = self._inodes.now()
        if now - inode.birth_ns < self._lived_ns and not (inode.is_directory and self.has_below(inode.ino)):
            return
        self._note_feature()
        self._db.execute(
            "INSERT INTO trash (parent, name, ino, deleted_at, seq) VALUES (?, ?, ?, ?, ?)",
            (parent, name, inode.ino, now / 1e9, self._db.seq),
        )
        self.is_empty = False

    def has_below(self, directory: int) -> bool:
        """Whether something that was in this directory is in there."""
        return not self.is_empty and self._db.value("SELECT 1 FROM trash WHERE parent = ?", (directory,)) is not None

    def holds(self, ino: int) -> bool:
        """Whether a name of this inode is in there."""
        return not self.is_empty and self._db.value("SELECT 1 FROM trash WHERE ino = ?", (ino,)) is not None

    def let_go(self, limit: int, until: float | None = None) -> list[int]:
        """Delete the oldest rows, at most `limit`, and of those deleted by `until` only; return their inodes.

        Whoever has nlink 0 then, and is held no more, is to be reaped.
        """
        if self.is_empty:
            return []
        rows = self._db.rows("SELECT id, ino, deleted_at FROM trash ORDER BY id LIMIT ?", (limit,))
        self.is_empty = not rows
        some = [row for row in rows if until is None or row[2] <= until]
        if not some:
            return []
        with self._db.transaction() as db:
            db.executemany("DELETE FROM trash WHERE id = ?", [row[:1] for row in some])
        return [ino for _, ino, _ in some]

    def expired(self, limit: int) -> list[int]:
        """The same for what has been kept for long enough."""
        return self.let_go(limit, self._inodes.now() / 1e9 - self._keep)

    def bytes(self) -> int:
        """File bytes on the depots that only names in here keep; grows with the trash."""
        kept: int = self._db.value(
            "SELECT coalesce(sum(allocated), 0) FROM inodes i WHERE nlink = 0 AND EXISTS"
            " (SELECT 1 FROM trash t WHERE t.ino = i.ino)"
        )
        return 0 if self.is_empty else kept

    def _note_feature(self) -> None:
        known = self._db.facts.get("features", "").split()
        if TRASH not in known:
            self._db.set_fact("features", " ".join([*known, TRASH]))
