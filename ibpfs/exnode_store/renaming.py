"""The rules of rename(2): what may replace what, and which link counts move along."""

from dataclasses import dataclass

from ibpfs.errors import InvalidArgument, IsADirectory, NameExists, NotADirectory, NotEmpty, NotFound
from ibpfs.exnode_store.attributes import Inode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.dentries import DentryTable, Place
from ibpfs.exnode_store.inodes import InodeTable

NOREPLACE, EXCHANGE = 1, 2


@dataclass(slots=True)
class _Entry:
    id: int
    place: Place
    inode: Inode

    @property
    def parent(self) -> int:
        return self.place[0]


class Renaming:
    """Works inside the caller's transaction."""

    def __init__(self, db: Database, inodes: InodeTable, dentries: DentryTable) -> None:
        self._db = db
        self._inodes = inodes
        self._dentries = dentries

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
        self._dentries.move(source.place, new, (source.id, source.inode.ino))
        self._inodes.save(source.inode)
        self._touch(source.parent, new[0], -source.inode.is_directory, source.inode.is_directory)

    def _replace(self, source: _Entry, target: _Entry) -> Inode:
        self._check_replaceable(source.inode, target.inode)
        # The target's entry stays and changes hands, so that a reader of the directory sees the name exactly once.
        self._dentries.leave(source.place, source.id)
        self._dentries.point(target.place, target.id, source.inode.ino)
        self._inodes.save(source.inode)
        moved, lost = source.inode.is_directory, target.inode.is_directory
        self._touch(source.parent, target.parent, -moved, moved - lost)
        return self._inodes.drop_link(target.inode)

    def _exchange(self, source: _Entry, target: _Entry | None) -> None:
        if target is None:
            raise NotFound("nothing to exchange with")
        self._check_loop(target, source.parent)
        self._dentries.point(source.place, source.id, target.inode.ino)
        self._dentries.point(target.place, target.id, source.inode.ino)
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
        if lost.is_directory and not self._dentries.is_empty(lost.ino):
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
        found = self._dentries.find(place)
        return None if found is None else _Entry(found[0], place, self._inodes.get(found[1]))
