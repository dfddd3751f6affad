"""The rules of rename(2): what may replace what, and which link counts move along."""

from dataclasses import dataclass

from ibpfs.errors import InvalidArgument, IsADirectory, NameExists, NotADirectory, NotEmpty, NotFound
from ibpfs.exnode_store.attributes import JOINED_COLUMNS, Inode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.inodes import InodeTable

NOREPLACE, EXCHANGE = 1, 2

_ENTRY = (
    f"SELECT d.id, {JOINED_COLUMNS} FROM dentries d JOIN inodes i ON i.ino = d.ino WHERE d.parent = ? AND d.name = ?"
)

#: A directory's inode number and a name in it.
Place = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    dentry: int
    parent: int
    inode: Inode


class Renaming:
    """Works inside the caller's transaction."""

    def __init__(self, db: Database, inodes: InodeTable) -> None:
        self._db = db
        self._inodes = inodes

    def rename(self, old: Place, new: Place, flags: int) -> Inode | None:
        """Returns the replaced inode with its new nlink."""
        if flags not in (0, NOREPLACE, EXCHANGE):
            raise InvalidArgument("rename flags that exclude each other")
        source, target = self._entry(old), self._entry(new)
        if source is None:
            raise NotFound("no such name")
        self._inodes.directory(new[0])
        if target is not None and flags == NOREPLACE:
            raise NameExists("the name exists")
        self._check_loop(source, new[0])
        if target is not None and source.inode.ino == target.inode.ino:
            return None  # two names of one file: nothing happens, says POSIX
        if flags == EXCHANGE:
            self._exchange(source, target)
        elif target is not None:
            return self._replace(source, target)
        else:
            self._move(source, new)
        return None

    def _move(self, source: _Entry, new: Place) -> None:
        self._db.execute(
            "UPDATE dentries SET parent = ?, name = ?, seq = ? WHERE id = ?", (*new, self._db.seq, source.dentry)
        )
        self._inodes.save(source.inode)
        self._touch(source.parent, new[0], -source.inode.is_directory, source.inode.is_directory)

    def _replace(self, source: _Entry, target: _Entry) -> Inode:
        self._check_replaceable(source.inode, target.inode)
        # The target's entry stays and changes hands, so that a reader of the directory sees the name exactly once.
        self._db.execute("DELETE FROM dentries WHERE id = ?", (source.dentry,))
        self._point(target.dentry, source.inode.ino)
        self._inodes.save(source.inode)
        moved, lost = source.inode.is_directory, target.inode.is_directory
        self._touch(source.parent, target.parent, -moved, moved - lost)
        return self._inodes.drop_link(target.inode)

    def _exchange(self, source: _Entry, target: _Entry | None) -> None:
        if target is None:
            raise NotFound("nothing to exchange with")
        self._check_loop(target, source.parent)
        self._point(source.dentry, target.inode.ino)
        self._point(target.dentry, source.inode.ino)
        self._inodes.save(source.inode)
        self._inodes.save(target.inode)
        gained = target.inode.is_directory - source.inode.is_directory
        self._touch(source.parent, target.parent, gained, -gained)

    def _touch(self, old_parent: int, new_parent: int, old_links: int, new_links: int) -> None:
        if old_parent == new_parent:
            self._inodes.touch_directory(old_parent, old_links + new_links)
        else:
            self._inodes.touch_directory(old_parent, old_links)
            self._inodes.touch_directory(new_parent, new_links)

    def _check_replaceable(self, moved: Inode, lost: Inode) -> None:
        if moved.is_directory and not lost.is_directory:
            raise NotADirectory("a directory cannot replace a file")
        if lost.is_directory and not moved.is_directory:
            raise IsADirectory("a file cannot replace a directory")
        if lost.is_directory and self._db.row("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (lost.ino,)):
            raise NotEmpty("the directory to be replaced has entries")

    def _check_loop(self, moved: _Entry, new_parent: int) -> None:
        if not moved.inode.is_directory or moved.parent == new_parent:
            return
        above: int | None = new_parent
        while above is not None:
            if above == moved.inode.ino:
                raise InvalidArgument("a directory cannot move into itself")
            above = self._db.value("SELECT parent FROM dentries WHERE ino = ?", (above,))

    def _entry(self, place: Place) -> _Entry | None:
        row = self._db.row(_ENTRY, place)
        return None if row is None else _Entry(row[0], place[0], Inode(*row[1:]))

    def _point(self, dentry: int, ino: int) -> None:
        self._db.execute("UPDATE dentries SET ino = ?, seq = ? WHERE id = ?", (ino, self._db.seq, dentry))
