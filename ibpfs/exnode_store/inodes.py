"""The rows of table inodes: read, made, touched, remembered. Knows no names."""

import os
from collections.abc import Callable
from operator import attrgetter

from ibpfs.errors import NoSpace, NotADirectory, NotFound
from ibpfs.exnode_store.attributes import COLUMNS, Inode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.schema import MAX_INO, ROOT_INO

_GET = f"SELECT {COLUMNS} FROM inodes WHERE ino = ?"
_INSERT = f"INSERT INTO inodes ({COLUMNS}, seq) VALUES ({', '.join('?' * 17)})"
_row = attrgetter(*COLUMNS.split(", "))
_SAVE = (
    "UPDATE inodes SET version = ?, mode = ?, nlink = ?, uid = ?, gid = ?, atime_ns = ?, mtime_ns = ?, ctime_ns = ?, "
    "seq = ? WHERE ino = ?"
)


class InodeTable:
    """Every write happens inside the caller's transaction. `now` returns nanoseconds since the epoch."""

    def __init__(self, db: Database, now: Callable[[], int]) -> None:
        self._db = db
        self._known = db.remembered.rows
        self.now = now

    def get(self, ino: int) -> Inode:
        """The inode, with or without a name. Raises NotFound."""
        inode = self.find(ino)
        if inode is None:
            raise NotFound(f"no inode {ino}")
        return inode

    def find(self, ino: int) -> Inode | None:
        """The same, or None."""
        row = self._known.get(ino)
        if row is None:
            row = self._db.row(_GET, (ino,))
            if row is None:
                return None
            self._db.remembered.keep(ino, row)
        return Inode(*row)

    def directory(self, ino: int) -> Inode:
        """A directory that can take names. Raises NotFound for one that was removed."""
        inode = self.get(ino)
        if not inode.is_directory:
            raise NotADirectory(f"inode {ino} is not a directory")
        if not inode.nlink:
            raise NotFound(f"directory {ino} was removed")
        return inode

    def insert(self, *, policy: int, mode: int, nlink: int, uid: int, gid: int, rdev: int, size: int) -> Inode:
        """Make a row under a number that was never used."""
        ino, now = self._db.next_ino, self.now()
        if ino >= MAX_INO:
            raise NoSpace("the volume has used up its inode numbers")
        self._db.next_ino = ino + 1
        self._db.files += 1
        # A power cut may undo the row and let the number out again, while records of it survive in the spool.
        generation = int.from_bytes(os.urandom(4)) >> 1 or 1
        row = (ino, generation, 1, policy, mode, nlink, uid, gid, rdev, size, 0, now, now, now, now, 0)
        self._db.execute_remembered(_INSERT, (*row, self._db.seq))
        self._db.remembered.keep(ino, row)
        self._db.remembered.keep_plain(ino)
        return Inode(*row)

    def touch_directory(self, ino: int, links: int = 0) -> None:
        """An entry of the directory changed, and its number of subdirectories by `links`."""
        inode = self.get(ino)
        inode.nlink += links
        inode.mtime_ns = now = self.now()
        self.save(inode, now)

    def save(self, inode: Inode, ctime_ns: int | None = None) -> Inode:
        """Write mode, nlink, owner and times back as one more version. ctime is now unless given."""
        inode.version += 1
        inode.ctime_ns = self.now() if ctime_ns is None else ctime_ns
        self._db.execute_remembered(
            _SAVE,
            (
                inode.version, inode.mode, inode.nlink, inode.uid, inode.gid,
                inode.atime_ns, inode.mtime_ns, inode.ctime_ns, self._db.seq, inode.ino,
            ),
        )  # fmt: skip
        self._db.remembered.keep(inode.ino, _row(inode))
        return inode

    def delete(self, ino: int) -> None:
        self._db.execute_remembered("DELETE FROM inodes WHERE ino = ?", (ino,))
        self._db.remembered.forget(ino)
        self._db.remembered.plain.discard(ino)

    def drop_link(self, inode: Inode) -> Inode:
        """The inode lost a name; a directory has but one."""
        inode.nlink = 0 if inode.is_directory else inode.nlink - 1
        if not inode.nlink:
            self._db.files -= 1
        return self.save(inode)


def create_root(db: Database, now: Callable[[], int], uid: int, gid: int, mode: int = 0o755) -> Inode:
    """Make the root directory of a new store, under policy 1; inside a transaction."""
    assert db.next_ino == ROOT_INO
    # Readdir cookies 1 and 2 are `.` and `..`: the dentries' ids begin behind them.
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('dentries', 2)")
    return InodeTable(db, now).insert(policy=1, mode=0o040000 | mode, nlink=2, uid=uid, gid=gid, rdev=0, size=0)
