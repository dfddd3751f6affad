"""Names in directories and what they stand for: every change of them is one synchronous transaction.

Knows no bytes of files, no depot and no kernel; what a file's mappings need on deletion is a callable it is given.
"""

import stat
from collections.abc import Callable

from ibpfs.errors import (
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from ibpfs.exnode_store import acl
from ibpfs.exnode_store.attributes import (
    MAX_LINKS,
    MAX_NAME,
    MAX_TARGET,
    AttributeChange,
    Inode,
    NewInode,
)
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.dentries import DOT, DOT_DOT, DentryTable
from ibpfs.exnode_store.inodes import InodeTable
from ibpfs.exnode_store.renaming import Renaming
from ibpfs.exnode_store.schema import ROOT_INO
from ibpfs.exnode_store.trash import Trash
from ibpfs.exnode_store.xattrs import XattrTable


class Namespace:
    """Lookups are plain reads; changes are transactions, or join the caller's.

    `now` returns nanoseconds since the epoch. `unmap(ino, limit)` deletes up to `limit` mappings of an inode inside
    the transaction in progress and returns how many it deleted.
    """

    def __init__(self, db: Database, now: Callable[[], int], unmap: Callable[[int, int], int]) -> None:
        self._db = db
        self._unmap = unmap
        self._inodes = InodeTable(db, now)
        self._xattrs = XattrTable(db, self._inodes)
        self._dentries = DentryTable(db)
        self._renaming = Renaming(db, self._inodes, self._dentries)
        self.trash = Trash(db, self._inodes)

    def inode(self, ino: int) -> Inode:
        """The inode, with or without a name. Raises NotFound."""
        return self._inodes.get(ino)

    def find(self, ino: int) -> Inode | None:
        """The inode, None when there is none."""
        return self._inodes.find(ino)

    def lookup(self, parent: int, name: bytes) -> Inode:
        """What the name stands for; `.` and `..` too."""
        found = self._dentries.find((parent, name))
        if found is not None:
            return self._inodes.get(found[1])
        if name == b".":
            return self._inodes.get(parent)
        if name == b"..":
            return self._inodes.get(self._parent_of(parent))
        if len(name) > MAX_NAME:
            raise NameTooLong("a name is at most 255 bytes long")
        raise NotFound("no such name")

    def readdir(self, parent: int, after: int, limit: int) -> list[tuple[int, bytes, Inode]]:
        """Up to `limit` (cookie, name, inode) behind cookie `after`, 0 to begin with.

        A name that stands throughout is returned exactly once, whatever happens to others meanwhile.
        """
        entries: list[tuple[int, bytes, Inode]] = []
        if after < DOT:
            entries.append((DOT, b".", self._inodes.get(parent)))
        if after < DOT_DOT:
            entries.append((DOT_DOT, b"..", self._inodes.get(self._parent_of(parent))))
        found = self._dentries.listed(parent, max(after, DOT_DOT), max(0, limit - len(entries)))
        entries += [(cookie, name, Inode(*row)) for cookie, name, row in found]
        return entries[:limit]

    def readlink(self, ino: int) -> bytes:
        target: bytes | None = self._db.value("SELECT target FROM symlinks WHERE ino = ?", (ino,))
        if target is None:
            raise InvalidArgument(f"inode {ino} is not a symbolic link")
        return target

    def create(self, parent: int, name: bytes, new: NewInode) -> Inode:
        """Make an inode of any type under a new name: setgid directories, default lists and umask are applied."""
        check_name(name)
        _check_target(new)
        with self._db.transaction():
            directory = self._inodes.directory(parent)
            self._dentries.enter((parent, name), self._db.next_ino)
            inode = self._insert(directory, new)
            if inode.is_directory:
                self._dentries.new_directory(inode.ino)
            self._inodes.touch_directory(parent, links=inode.is_directory)
            return inode

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Give a file one more name."""
        check_name(name)
        with self._db.transaction():
            inode = self._inodes.get(ino)
            if inode.is_directory:
                raise NotPermitted("a directory has one name only")
            if not inode.nlink:
                raise NotFound(f"inode {ino} was unlinked")
            if inode.nlink >= MAX_LINKS:
                raise TooManyLinks(f"inode {ino} has {MAX_LINKS} names already")
            self._inodes.directory(parent)
            self._dentries.enter((parent, name), ino)
            self._inodes.touch_directory(parent)
            inode.nlink += 1
            return self._inodes.save(inode)

    def unlink(self, parent: int, name: bytes) -> Inode:
        """Remove a name of anything but a directory. With nlink 0 the inode is to be reaped once nobody has it open."""
        with self._db.transaction():
            id_, inode = self._named(parent, name)
            if inode.is_directory:
                raise IsADirectory("a directory is not unlinked but removed")
            self._dentries.leave((parent, name), id_)
            self.trash.put(parent, name, inode)
            self._inodes.touch_directory(parent)
            return self._inodes.drop_link(inode)

    def rmdir(self, parent: int, name: bytes) -> Inode:
        """Remove an empty directory."""
        with self._db.transaction():
            id_, inode = self._named(parent, name)
            if not inode.is_directory:
                raise NotADirectory("not a directory")
            if not self._dentries.is_empty(inode.ino):
                raise NotEmpty("the directory has entries")
            self._dentries.leave((parent, name), id_)
            self.trash.put(parent, name, inode)
            self._inodes.touch_directory(parent, links=-1)
            return self._inodes.drop_link(inode)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> Inode | None:
        """Move a name as rename(2) does; `flags` are renaming.NOREPLACE and EXCHANGE.

        Returns the inode that lost its name to the moved one, with its new nlink.
        """
        check_name(name)
        check_name(new_name)
        with self._db.transaction():
            return self._renaming.rename((parent, name), (new_parent, new_name), flags)

    def change(
        self, ino: int, change: AttributeChange, *, pending_times: tuple[int | None, int | None] = (None, None),
        above: int = 0,
    ) -> Inode:  # fmt: skip
        """Change mode, owner and times; the size is the ledger's affair.

        `pending_times` are (mtime, ctime) that so far only the spool knows; what `change` does not set takes them.
        The new version is above `above`: spool records up to that tell nothing of the times any more.
        A new owner takes the set-id bits and the capabilities of a file, as POSIX has it.
        """
        with self._db.transaction():
            inode = self._inodes.get(ino)
            inode.version = max(inode.version, above)
            pending_mtime, pending_ctime = pending_times
            if change.uid is not None or change.gid is not None:
                self._change_owner(inode, change)
            if change.mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
                self._xattrs.change_mode(inode)
            inode.atime_ns = _first(change.atime_ns, inode.atime_ns)
            inode.mtime_ns = _first(change.mtime_ns, _first(pending_mtime, inode.mtime_ns))
            ctime = max(self._inodes.now(), pending_ctime or 0) if change.ctime_ns is None else change.ctime_ns
            return self._inodes.save(inode, ctime)

    def is_so(self, inode: Inode, change: AttributeChange) -> bool:
        """Whether all that is asked for is so already, and the change would set ctime alone."""
        if not (change.atime_ns is change.mtime_ns is change.ctime_ns is change.size is None):
            return False
        if change.mode is not None and change.mode != stat.S_IMODE(inode.mode):
            return False
        if change.uid is None and change.gid is None:
            return True
        same = change.uid in (None, inode.uid) and change.gid in (None, inode.gid)
        return same and inode.mode == without_privileges(inode.mode) and self._xattrs.is_plain(inode.ino)

    def accessed(self, ino: int, atime_ns: int) -> None:
        """Note an access, which is no version of the inode. Nothing happens when it is gone."""
        with self._db.transaction() as db:
            db.update_inode("atime_ns = ?, seq = ?", (atime_ns, db.seq, ino))

    def drop_privileges(self, ino: int) -> Inode:
        """A file was written or cut: it loses set-id bits and capabilities. The kernel leaves that to us."""
        with self._db.transaction():
            inode = self._inodes.get(ino)
            mode = without_privileges(inode.mode)
            if not self._xattrs.drop_capabilities(ino) and mode == inode.mode:
                return inode
            inode.mode = mode
            return self._inodes.save(inode)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Raises NoAttribute."""
        return self._xattrs.get(ino, name)

    def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int = 0, *, keep_set_gid: bool = True
    ) -> Inode:
        """Set an attribute; `flags` are xattrs.CREATE and REPLACE. An access list moves the mode's bits.

        `keep_set_gid` is false for a list from a caller who could not chmod to set-gid either.
        """
        with self._db.transaction():
            inode = self._xattrs.set(ino, name, value, flags)
            if keep_set_gid:
                return inode
            inode.mode &= ~stat.S_ISGID
            return self._inodes.save(inode)

    def listxattr(self, ino: int) -> list[bytes]:
        """The names that are set, trusted ones too."""
        return self._xattrs.names(ino)

    def removexattr(self, ino: int, name: bytes) -> Inode:
        """Raises NoAttribute."""
        return self._xattrs.remove(ino, name)

    def places(self, ino: int, *, files_only: bool = False) -> list[tuple[int, bytes]]:
        """The (directory, name) entries that stand for an inode; with `files_only`, none of a directory."""
        if files_only and self._inodes.get(ino).is_directory:
            return []
        return self._db.rows("SELECT parent, name FROM dentries WHERE ino = ?", (ino,))

    def unlinked(self) -> list[int]:
        """Inodes without a name, in the trash neither, which nobody can have open when a volume was just taken over."""
        return [ino for (ino,) in self._db.rows("SELECT ino FROM inodes WHERE nlink = 0 EXCEPT SELECT ino FROM trash")]

    def reap(self, ino: int, limit: int = 100) -> bool:
        """One step of deleting an inode without names: up to `limit` mappings, attributes and voids. True when it is
        gone."""
        with self._db.transaction():
            try:
                inode = self._inodes.get(ino)
            except NotFound:
                return True
            if inode.nlink:
                raise InvalidArgument(f"inode {ino} has a name")
            left = limit - self._unmap(ino, limit)
            if left > 0:
                left -= self._xattrs.reap(ino, left)
            if left > 0:
                left -= self._reap_voids(ino, left)
            if left <= 0:
                return False
            if inode.is_symlink:
                self._db.execute("DELETE FROM symlinks WHERE ino = ?", (ino,))
            self._inodes.delete(ino)
            return True

    def _reap_voids(self, ino: int, limit: int) -> int:
        return self._db.execute(
            "DELETE FROM voids WHERE ino = ? AND covers IN (SELECT covers FROM voids WHERE ino = ? LIMIT ?)",
            (ino, ino, limit),
        ).rowcount

    def _named(self, parent: int, name: bytes) -> tuple[int, Inode]:
        """An entry's id and what it stands for; `.` and `..` are no entries."""
        check_name(name)
        found = self._dentries.find((parent, name))
        if found is None:
            raise NotFound("no such name")
        return found[0], self._inodes.get(found[1])

    def _parent_of(self, directory: int) -> int:
        if directory == ROOT_INO:
            return ROOT_INO
        found: int | None = self._db.value("SELECT parent FROM dentries WHERE ino = ?", (directory,))
        # A removed directory that somebody still has open has no parent but itself.
        return directory if found is None else found

    def _insert(self, directory: Inode, new: NewInode) -> Inode:
        is_directory, is_symlink = stat.S_ISDIR(new.mode), stat.S_ISLNK(new.mode)
        mode, gid = new.mode, new.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID * is_directory
        default = None if is_symlink else self._xattrs.default_acl(directory.ino)
        access: acl.Acl = ()
        if default is not None:
            access, mode = acl.inherit(acl.parse(default), mode)
        elif not is_symlink:
            mode &= ~new.umask
        has_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        inode = self._inodes.insert(
            policy=directory.policy,
            mode=mode,
            nlink=1 + is_directory,
            uid=new.uid,
            gid=gid,
            rdev=new.rdev * has_device,
            size=len(new.target or b""),
        )
        if default is not None:
            self._xattrs.set_inherited(inode.ino, access, default if is_directory else None)
        if new.target is not None:
            row = inode.ino, new.target, self._db.seq
            self._db.execute("INSERT INTO symlinks (ino, target, seq) VALUES (?, ?, ?)", row)
        return inode

    def _change_owner(self, inode: Inode, change: AttributeChange) -> None:
        inode.uid = _first(change.uid, inode.uid)
        inode.gid = _first(change.gid, inode.gid)
        if not inode.is_directory:
            inode.mode = without_privileges(inode.mode)
            self._xattrs.drop_capabilities(inode.ino)


def check_name(name: bytes) -> None:
    """Raise when no entry of a directory may be called that."""
    if len(name) > MAX_NAME:
        raise NameTooLong("a name is at most 255 bytes long")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidArgument("not a name")


def without_privileges(mode: int) -> int:
    """The mode after a change of owner or content: setgid without group execution once meant locking and stays."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def _check_target(new: NewInode) -> None:
    if stat.S_ISLNK(new.mode) != (new.target is not None):
        raise InvalidArgument("a symbolic link, and nothing else, has a target")
    if new.target is not None and not 0 < len(new.target) <= MAX_TARGET:
        raise NameTooLong("a symbolic link's target is 1 to 4095 bytes long")


def _first(wanted: int | None, otherwise: int) -> int:
    return otherwise if wanted is None else wanted
