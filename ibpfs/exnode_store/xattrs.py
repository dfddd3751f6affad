"""Extended attributes of inodes, and the access control lists among them, which move the mode's bits."""

from ibpfs.errors import (
    AttributeNameTooLong,
    AttributeTooBig,
    InvalidArgument,
    NameExists,
    NoAttribute,
    NoSpace,
    NotPermitted,
    NotSupported,
)
from ibpfs.exnode_store import acl
from ibpfs.exnode_store.attributes import Inode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.inodes import InodeTable

CREATE, REPLACE = 1, 2

MAX_ATTRIBUTE_NAME = 255
MAX_VALUE = 65536
#: listxattr(2) cannot return more names than this.
MAX_LIST = 65536

CAPABILITY = b"security.capability"
_NAMESPACES = (b"user.", b"trusted.", b"security.")
#: Answered by the mount, not stored.
_VIRTUAL = b"user.ibpfs."
_PUT = "INSERT OR REPLACE INTO xattrs (ino, name, value, seq) VALUES (?, ?, ?, ?)"


class XattrTable:
    """Reads stand alone; every change is a transaction of its own or joins the caller's."""

    def __init__(self, db: Database, inodes: InodeTable) -> None:
        self._db = db
        self._inodes = inodes

    def get(self, ino: int, name: bytes) -> bytes:
        """Raises NoAttribute; NotSupported or InvalidArgument for a name that no attribute can have."""
        _check_name(name)
        value = self._find(ino, name)
        if value is None:
            raise NoAttribute(f"inode {ino} has no such attribute")
        return value

    def names(self, ino: int) -> list[bytes]:
        """The names that are set, in order; trusted ones too."""
        if self.is_plain(ino):
            return []
        return [name for (name,) in self._db.rows("SELECT name FROM xattrs WHERE ino = ? ORDER BY name", (ino,))]

    def set(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> Inode:
        """Set an attribute. `flags`: 0, CREATE (NameExists when it is there), REPLACE (NoAttribute when it is not)."""
        _check(name, value, flags)
        with self._db.transaction():
            inode = self._inodes.get(ino)
            old = self._find(ino, name)
            if flags == CREATE and old is not None:
                raise NameExists(f"inode {ino} has that attribute")
            if flags == REPLACE and old is None:
                raise NoAttribute(f"inode {ino} has no such attribute")
            if name in (acl.ACCESS, acl.DEFAULT):
                self._set_acl(inode, name, acl.parse(value))
            else:
                if old is None:
                    self._check_room(ino, name)
                self._put(ino, name, value)
            return self._inodes.save(inode)

    def remove(self, ino: int, name: bytes) -> Inode:
        """Raises what `get` does, except for a list that is not there: its absence is what was asked for."""
        _check_name(name)
        with self._db.transaction():
            inode = self._inodes.get(ino)
            found = self._delete(ino, name)
            if not found and name not in (acl.ACCESS, acl.DEFAULT):
                raise NoAttribute(f"inode {ino} has no such attribute")
            return self._inodes.save(inode) if found else inode

    def change_mode(self, inode: Inode) -> None:
        """After a chmod: make the access list say what `inode.mode` says. Inside a transaction."""
        value = self._find(inode.ino, acl.ACCESS)
        if value is not None:
            self._put(inode.ino, acl.ACCESS, acl.pack(acl.change_mode(acl.parse(value), inode.mode)))

    def default_acl(self, directory: int) -> bytes | None:
        return self._find(directory, acl.DEFAULT)

    def set_inherited(self, ino: int, access: acl.Acl, default: bytes | None) -> None:
        """Give a new inode its lists. Inside a transaction."""
        if not acl.is_trivial(access):
            self._put(ino, acl.ACCESS, acl.pack(access))
        if default is not None:
            self._put(ino, acl.DEFAULT, default)

    def drop_capabilities(self, ino: int) -> bool:
        """Remove what execution as another user would gain. Inside a transaction."""
        return self._delete(ino, CAPABILITY)

    def reap(self, ino: int, limit: int) -> int:
        """Delete up to `limit` attributes, return how many. Inside a transaction."""
        if self.is_plain(ino):
            return 0
        return self._db.execute_remembered(
            "DELETE FROM xattrs WHERE ino = ? AND name IN (SELECT name FROM xattrs WHERE ino = ? LIMIT ?)",
            (ino, ino, limit),
        ).rowcount

    def _set_acl(self, inode: Inode, name: bytes, entries: acl.Acl) -> None:
        if inode.is_symlink:
            raise NotSupported("a symbolic link has no access control list")
        if name == acl.DEFAULT and entries and not inode.is_directory:
            raise NotPermitted("only a directory has a default access control list")
        if name == acl.ACCESS:
            inode.mode = acl.apply_to_mode(entries, inode.mode)
        if not entries or (name == acl.ACCESS and acl.is_trivial(entries)):
            self._delete(inode.ino, name)
        else:
            self._put(inode.ino, name, acl.pack(entries))

    def _check_room(self, ino: int, name: bytes) -> None:
        taken = self._db.value("SELECT total(length(name) + 1) FROM xattrs WHERE ino = ?", (ino,))
        if taken + len(name) + 1 > MAX_LIST:
            raise NoSpace(f"inode {ino} has no room for another attribute's name")

    def _find(self, ino: int, name: bytes) -> bytes | None:
        if self.is_plain(ino):
            return None
        value: bytes | None = self._db.value("SELECT value FROM xattrs WHERE ino = ? AND name = ?", (ino, name))
        return value

    def is_plain(self, ino: int) -> bool:
        """Whether it has none at all, as nearly every inode; asked for with every write and every new name."""
        if ino in self._db.remembered.plain:
            return True
        if self._db.row("SELECT 1 FROM xattrs WHERE ino = ? LIMIT 1", (ino,)) is not None:
            return False
        self._db.remembered.keep_plain(ino)
        return True

    def _put(self, ino: int, name: bytes, value: bytes) -> None:
        self._db.execute_remembered(_PUT, (ino, name, value, self._db.seq))
        self._db.remembered.plain.discard(ino)

    def _delete(self, ino: int, name: bytes) -> bool:
        if self.is_plain(ino):
            return False
        return self._db.execute_remembered("DELETE FROM xattrs WHERE ino = ? AND name = ?", (ino, name)).rowcount > 0


def _check(name: bytes, value: bytes, flags: int) -> None:
    if flags not in (0, CREATE, REPLACE):
        raise InvalidArgument("flags that exclude each other")
    if len(name) > MAX_ATTRIBUTE_NAME:
        raise AttributeNameTooLong("an attribute's name is at most 255 bytes long")
    if len(value) > MAX_VALUE:
        raise AttributeTooBig("an attribute's value is at most 64 KiB long")
    _check_name(name)
    if name.startswith(_VIRTUAL):
        raise NotPermitted("attributes in user.ibpfs are read-only")


def _check_name(name: bytes) -> None:
    if b"\0" in name or name in _NAMESPACES:
        raise InvalidArgument("not an attribute's name")
    if not name.startswith(_NAMESPACES) and name not in (acl.ACCESS, acl.DEFAULT):
        raise NotSupported("attributes are in user, trusted, security, or access control lists")
