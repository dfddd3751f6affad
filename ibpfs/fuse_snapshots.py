"""Snapshots in the kernel's eyes: `.snapshots` in the root, found by name and never listed, and the trees below it.

A node id is the snapshot's number above the inode's; nothing below changes, so nothing here counts or waits but reads.
"""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields

from ibpfs.cache.files import FileCache
from ibpfs.cache.snapshot_files import SnapshotFile
from ibpfs.errors import NoAttribute, NotFound, VolumeError
from ibpfs.exnode_store.attributes import Inode
from ibpfs.exnode_store.dentries import DOT, DOT_DOT
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import MAX_INO, ROOT_INO
from ibpfs.exnode_store.snapshot_file import SnapshotTree
from ibpfs.exnode_store.snapshots import DIRECTORY, Snapshots, node
from ibpfs.exnode_store.whereabouts import Whereabouts
from ibpfs.fuse_blame import Blame
from ibpfs.fuse_errors import answered, errno_of
from ibpfs.fuse_handles import Handles
from ibpfs.fuse_ops import INFO_ATTRIBUTE, Operations, entry_of
from ibpfs.mount_options import MountOptions

NAME = b".snapshots"
_ALL = node(DIRECTORY, ROOT_INO)
#: Seconds for which a snapshot's name is believed: it may be deleted.
_NAME_REMEMBERED = 1.0
_STEP = 32
_FIRST_HANDLE = 1 << 48


class SnapshotOperations(Operations):
    """Sends what is asked of a node in a snapshot its own way, everything else on."""

    def __init__(
        self, names: Namespace, files: FileCache, options: MountOptions, describe: Callable[[int], bytes],
        snapshots: Snapshots,
    ) -> None:  # fmt: skip
        super().__init__(names, files, options, describe)
        self._snapshots = snapshots
        self._open_frozen: Handles[SnapshotFile] = Handles(_FIRST_HANDLE)
        self._open_frozen_directories: Handles[int] = Handles(_FIRST_HANDLE)

    def tell_whereabouts(self, whereabouts: Whereabouts) -> None:
        """Let the log say which file, segment and depot a request was about that fails."""
        self.blame = Blame(whereabouts, (self._open, self._open_directories, self._open_frozen))

    def knows(self, ino: int) -> bool:
        """Whether the kernel may remember something of an inode."""
        return ino == ROOT_INO or ino in self._lookups

    # Names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode < MAX_INO and (name != NAME or parent_inode != ROOT_INO):
            return await super().lookup(parent_inode, name, ctx)
        return await self._lookup_frozen(parent_inode, name, ctx)

    @answered()
    async def _lookup_frozen(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent == ROOT_INO:
            if not self._is_virtual(parent, name):
                return await super().lookup(parent, name, ctx)
            return self._found(self._directory())
        if parent == _ALL:
            return self._in_directory(name)
        tree, ino = self._split(parent)
        if name == b".." and ino == ROOT_INO:
            return self._found(self._directory())
        return self._found(_moved(tree, tree.names.lookup(ino, name)))

    def _in_directory(self, name: bytes) -> EntryAttributes:
        if name == b"..":
            return self._found(self._names.inode(ROOT_INO))
        if name == b".":
            return self._found(self._directory())
        tree = self._snapshots.tree(self._snapshots.find(os.fsdecode(name)).id)
        found = self._found(_moved(tree, tree.names.inode(ROOT_INO)))
        found.entry_timeout = _NAME_REMEMBERED
        return found

    def _is_virtual(self, parent: int, name: bytes) -> bool:
        """Whether it is our `.snapshots`: a real one, of a volume that is older than this, comes first."""
        if name != NAME or parent != ROOT_INO:
            return False
        try:
            self._names.lookup(parent, name)
        except NotFound:
            return True
        return False

    def _found(self, inode: Inode) -> EntryAttributes:
        self._lookups.add(inode.ino)
        return entry_of(inode)

    def _directory(self) -> Inode:
        inode = self._names.inode(ROOT_INO)
        inode.ino, inode.mode, inode.nlink, inode.size, inode.allocated = _ALL, 0o40555, 2, 0, 0
        return inode

    def _split(self, inode: int) -> tuple[SnapshotTree, int]:
        try:
            return self._snapshots.tree(inode // MAX_INO), inode % MAX_INO
        except NotFound as error:
            raise FUSEError(errno.ESTALE) from error

    def _frozen(self, inode: int) -> Inode:
        if inode == _ALL:
            return self._directory()
        tree, ino = self._split(inode)
        return _moved(tree, tree.names.inode(ino))

    # Reading

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode < MAX_INO:
            return await super().getattr(inode, ctx)
        return await self._getattr_frozen(inode)

    @answered()
    async def _getattr_frozen(self, inode: int) -> EntryAttributes:
        return entry_of(self._frozen(inode))

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        if inode < MAX_INO:
            return await super().readlink(inode, ctx)
        return await self._readlink_frozen(inode)

    @answered()
    async def _readlink_frozen(self, inode: int) -> bytes:
        tree, ino = self._split(inode)
        return tree.names.readlink(ino)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if inode < MAX_INO:
            return await super().getxattr(inode, name, ctx)
        return await self._getxattr_frozen(inode, name)

    @answered()
    async def _getxattr_frozen(self, inode: int, name: bytes) -> bytes:
        if inode == _ALL or name == INFO_ATTRIBUTE:
            raise NoAttribute("snapshots have none such")
        tree, ino = self._split(inode)
        return tree.names.getxattr(ino, name)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if inode < MAX_INO:
            return await super().listxattr(inode, ctx)
        return await self._listxattr_frozen(inode, ctx)

    @answered()
    async def _listxattr_frozen(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if inode == _ALL:
            return []
        tree, ino = self._split(inode)
        return [name for name in tree.names.listxattr(ino) if ctx.uid == 0 or not name.startswith(b"trusted.")]

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if inode < MAX_INO:
            if _writes(flags):
                self._check_writable()
            return await super().open(inode, flags, ctx)
        return await self._open_frozen_file(inode, flags)

    @answered()
    async def _open_frozen_file(self, inode: int, flags: int) -> FileInfo:
        if _writes(flags):
            raise FUSEError(errno.EROFS)
        tree, ino = self._split(inode)
        opened = SnapshotFile(partial(self._snapshots.tree, tree.number), ino, self._files)
        return FileInfo(fh=self._open_frozen.add(opened), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if fh < _FIRST_HANDLE:
            return await super().read(fh, off, size)
        return await self._read_frozen(fh, off, size)

    @answered("read")
    async def _read_frozen(self, fh: int, off: int, size: int) -> bytes:
        try:
            return await self._open_frozen[fh].read(off, size)
        except NotFound as error:
            raise FUSEError(errno.ESTALE) from error

    async def flush(self, fh: int) -> None:
        if fh < _FIRST_HANDLE:
            await super().flush(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        if fh < _FIRST_HANDLE:
            await super().fsync(fh, datasync)

    async def release(self, fh: int) -> None:
        if fh < _FIRST_HANDLE:
            await super().release(fh)
        else:
            await self._release_frozen(self._open_frozen, fh)

    @answered()
    async def _release_frozen(self, handles: Handles[Any], fh: int) -> None:
        handles.pop(fh)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if inode < MAX_INO:
            return await super().opendir(inode, ctx)
        return self._open_frozen_directories.add(inode)

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        if fh < _FIRST_HANDLE:
            await super().readdir(fh, start_id, token)
        else:
            await self._readdir_frozen(fh, start_id, token)

    @answered()
    async def _readdir_frozen(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._open_frozen_directories[fh]
        entries = self._entries(directory, start_id)
        while entries:
            for cookie, name, inode in entries:
                entry = entry_of(inode)
                entry.entry_timeout = _NAME_REMEMBERED if directory == _ALL else entry.entry_timeout
                if not pyfuse3.readdir_reply(token, name, entry, cookie):
                    return
                if cookie > DOT_DOT:
                    self._lookups.add(inode.ino)
            entries = self._entries(directory, entries[-1][0])

    def _entries(self, directory: int, after: int) -> list[tuple[int, bytes, Inode]]:
        """Up to _STEP (cookie, name, inode) behind a cookie."""
        if directory != _ALL:
            tree, ino = self._split(directory)
            return [(cookie, name, _moved(tree, one)) for cookie, name, one in tree.names.readdir(ino, after, _STEP)]
        entries = [(DOT, b".", self._directory()), (DOT_DOT, b"..", self._names.inode(ROOT_INO))]
        for pin in sorted(self._snapshots.all(), key=lambda one: one.id):
            if DOT_DOT + pin.id > after and len(entries) < _STEP:
                with suppress(VolumeError):  # who asks for it by its name is told; the others are listed
                    entries.append((DOT_DOT + pin.id, os.fsencode(pin.name), self._frozen(node(pin.id, ROOT_INO))))
        return [one for one in entries if one[0] > after]

    async def releasedir(self, fh: int) -> None:
        if fh < _FIRST_HANDLE:
            await super().releasedir(fh)
        else:
            await self._release_frozen(self._open_frozen_directories, fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if fh < _FIRST_HANDLE:
            await super().fsyncdir(fh, datasync)

    # Changing: nothing below `.snapshots`, and nothing at all in a store that is found to be older than the depots

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if not self.enable_writeback_cache:  # with it, the kernel had said yes to this before
            self._check_writable()
        return await super().write(fh, off, buf)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._check_writable((parent_inode, name))
        return await super().mknod(parent_inode, name, mode, rdev, ctx)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        self._check_writable((parent_inode, name))
        return await super().mkdir(parent_inode, name, mode, ctx)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        self._check_writable((parent_inode, name))
        return await super().symlink(parent_inode, name, target, ctx)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self._check_writable((parent_inode, name))
        return await super().create(parent_inode, name, mode, flags, ctx)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._check_writable((inode, b""), (new_parent_inode, new_name))
        return await super().link(inode, new_parent_inode, new_name, ctx)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._check_writable((parent_inode, name))
        await super().unlink(parent_inode, name, ctx)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._check_writable((parent_inode, name))
        await super().rmdir(parent_inode, name, ctx)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        self._check_writable((parent_inode_old, name_old), (parent_inode_new, name_new))
        await super().rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        self._check_writable((inode, b""))
        return await super().setattr(inode, attr, fields, fh, ctx)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._check_writable((inode, b""))
        await super().setxattr(inode, name, value, ctx)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._check_writable((inode, b""))
        await super().removexattr(inode, name, ctx)

    def _check_writable(self, *places: tuple[int, Any]) -> None:
        if self.stale():
            raise FUSEError(errno.EROFS)
        for inode, name in places:
            if inode >= MAX_INO or (name == NAME and self._is_ours(inode, name)):
                raise FUSEError(errno.EROFS)

    def _is_ours(self, inode: int, name: bytes) -> bool:
        try:
            return self._is_virtual(inode, name)
        except Exception as error:
            raise FUSEError(errno_of(error, "lookup")) from error


def _writes(flags: int) -> bool:
    """Whether a file that is opened so may be changed."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def _moved(tree: SnapshotTree, inode: Inode) -> Inode:
    """The inode under its node id."""
    inode.ino = node(tree.number, inode.ino)
    return inode
