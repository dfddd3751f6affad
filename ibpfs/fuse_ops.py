"""The kernel's requests, answered: names by the exNode store, bytes by the cache.

Knows file handles, lookup counts and what the kernel remembers; not where a byte is stored.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from ibpfs.cache.files import FileCache
from ibpfs.errors import NoAttribute, NotFound
from ibpfs.exnode_store import acl
from ibpfs.exnode_store.attributes import MAX_NAME, AttributeChange, Inode, NewInode
from ibpfs.exnode_store.dentries import DOT_DOT
from ibpfs.exnode_store.namespace import Namespace, without_privileges
from ibpfs.exnode_store.schema import MAX_INO, ROOT_INO
from ibpfs.exnode_store.xattrs import CAPABILITY
from ibpfs.fuse_errors import Deadlines, answered, swallowed
from ibpfs.fuse_handles import Handles, Lookups, OpenDirectory, OpenFile
from ibpfs.mount_options import MountOptions
from ibpfs.set_id import is_nothing, takes_set_id

#: How long the kernel may believe names and attributes: this process is the only way to change them.
REMEMBERED = 300.0
#: With the write-back cache the kernel counts a file's bytes itself, but not its blocks.
REMEMBERED_BLOCKS = 1.0
#: Programs read and write through stdio in pieces of this size.
PREFERRED_SIZE = 128 * 1024
BLOCK_SIZE = 4096
#: Entries taken from the store at a time; a reply holds 20 to 30.
_DIRECTORY_STEP = 32
_LATEST_NS, _DAY_NS = (1 << 63) - 1, 24 * 3600 * 1_000_000_000

INFO_ATTRIBUTE = b"user.ibpfs.info"


class Operations(pyfuse3.Operations):
    """One mounted volume. `describe(ino)` returns the text of the virtual attribute user.ibpfs.info."""

    supports_dot_lookup = True
    enable_acl = True

    def __init__(
        self, names: Namespace, files: FileCache, options: MountOptions, describe: Callable[[int], bytes]
    ) -> None:
        self.deadlines = Deadlines.of(options)
        self.enable_writeback_cache = options.writeback
        self.read_only = options.read_only
        self.noatime = options.noatime
        self.sync = options.sync
        self.initialized = trio.Event()
        self._names = names
        self._files = files
        self._describe = describe
        self._lookups = Lookups()
        self._nameless: set[int] = set()  # without a name, kept because the kernel still knows them
        self._without_capability: set[int] = set()  # asked for with every write
        self._open: Handles[OpenFile] = Handles()
        self._open_directories: Handles[OpenDirectory] = Handles()
        self.stale: Callable[[], str] = str  # why nothing may be changed any more; '' as long as it may
        self.blame: Callable[[str, Sequence[Any], bool], tuple[str, str]] | None = None

    def init(self) -> None:
        self.initialized.set()

    def known(self) -> list[int]:
        """The inodes of which the kernel may remember something."""
        return self._lookups.known()

    def left(self) -> None:
        """The kernel is gone, without a word of what it still held."""
        for opened in self._open.drain():
            self._files.closed(opened.ino)
        for ino in self._nameless:
            self._files.closed(ino)
        self._nameless.clear()

    # Names

    @answered()
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            inode = self._names.lookup(parent_inode, name)
        except NotFound:
            if name in (b".", b".."):
                raise
            return _nothing()
        if name == b"." and not inode.nlink:
            raise FUSEError(errno.ENOENT)  # a file handle of what was removed: stale, though the forget is under way
        return self._handed_out(inode)

    @swallowed
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, times in inode_list:
            if self._lookups.forget(ino, times):
                self._without_capability.discard(ino)
                if ino in self._nameless:
                    self._nameless.discard(ino)
                    self._files.closed(ino)

    @answered()
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._handed_out(self._create(parent_inode, name, mode, ctx, rdev=rdev))

    @answered()
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._handed_out(self._create(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx))

    @answered()
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._handed_out(self._create(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target))

    @answered()
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        inode = self._create(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        self._without_capability.add(inode.ino)
        return self._opened(inode.ino, flags), self._handed_out(inode)

    def _create(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        return self._names.create(parent, name, NewInode(mode, ctx.uid, ctx.gid, ctx.umask, rdev, target))

    @answered()
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._handed_out(self._names.link(inode, new_parent_inode, new_name))

    @answered()
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        inode = self._names.unlink(parent_inode, name)
        self._lost_name(inode)
        self._files.unlinked(inode)

    @answered()
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        inode = self._names.rmdir(parent_inode, name)
        self._lost_name(inode)
        self._files.unlinked(inode)

    @answered()
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        replaced = self._names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
        if replaced is not None:
            self._lost_name(replaced)
            self._files.replaced(replaced, self._names.lookup(parent_inode_new, name_new).ino)

    def _lost_name(self, inode: Inode) -> None:
        """Keep what has no name any more while the kernel knows it: as a working directory, by an O_PATH descriptor."""
        if inode.nlink == 0 and inode.ino in self._lookups and inode.ino not in self._nameless:
            self._nameless.add(inode.ino)
            self._files.opened(inode.ino)

    @answered()
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        target = self._names.readlink(inode)
        self._touch(inode)
        return target

    # Attributes

    @answered()
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._files.inode(inode))

    @answered()
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        change = AttributeChange(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=_storable(attr.st_atime_ns) if fields.update_atime else None,
            mtime_ns=_new_mtime(attr, fields),
            size=attr.st_size if fields.update_size else None,
            ctime_ns=_storable(attr.st_ctime_ns) if fields.update_ctime else None,
        )
        if is_nothing(change):
            self._check_may_take_set_id(inode, ctx)
        changed = self._files.change(inode, change)
        had = not changed.is_directory and without_privileges(changed.mode) != changed.mode
        if had and takes_set_id(change, ctx):
            changed = self._files.overlay(self._names.drop_privileges(inode))
        return self._entry(changed)

    def _check_may_take_set_id(self, ino: int, ctx: RequestContext) -> None:
        """EPERM for who asks for no change, and neither writes nor owns the file: the kernel has not made sure of that,
        since it leaves the bits to us. Without, any stranger could take them from any program."""
        inode = self._names.inode(ino)
        if inode.is_directory or without_privileges(inode.mode) == inode.mode or ctx.uid in (0, inode.uid):
            return
        if not any(opened.ino == ino and opened.writes for opened in self._open):
            raise FUSEError(errno.EPERM)

    @answered()
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._without_capability.discard(inode)
        keep = name != acl.ACCESS or self._keeps_set_gid(inode, ctx)
        self._names.setxattr(inode, name, value, keep_set_gid=keep)

    def _keeps_set_gid(self, ino: int, ctx: RequestContext) -> bool:
        """Whether a caller who sets the mode by a list may leave the set-gid bit; chmod's the kernel takes itself."""
        inode = self._names.inode(ino)
        if not inode.mode & stat.S_ISGID or ctx.uid == 0 or ctx.gid == inode.gid:
            return True
        try:
            return inode.gid in pyfuse3.get_sup_groups(ctx.pid)
        except (OSError, RuntimeError):  # another process namespace, or gone
            return False

    @answered()
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == CAPABILITY:
            return self._capability(inode)
        if name == INFO_ATTRIBUTE:
            return self._describe(inode)
        return self._names.getxattr(inode, name)

    def _capability(self, ino: int) -> bytes:
        if ino in self._without_capability:
            raise FUSEError(errno.ENODATA)
        try:
            return self._names.getxattr(ino, CAPABILITY)
        except NoAttribute:
            if ino in self._lookups:
                self._without_capability.add(ino)
            raise

    @answered()
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        # As on other file systems, only a privileged caller sees that there are trusted attributes.
        return [name for name in self._names.listxattr(inode) if ctx.uid == 0 or not name.startswith(b"trusted.")]

    @answered()
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._names.removexattr(inode, name)

    @answered()
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        raise FUSEError(errno.ENOSYS)  # the kernel checks permissions itself (default_permissions)

    @answered()
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        room = self._files.statfs()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_bfree = data.f_bavail = room.free // BLOCK_SIZE
        data.f_blocks = (room.used + room.free) // BLOCK_SIZE
        data.f_ffree = data.f_favail = MAX_INO - room.files
        data.f_files = MAX_INO
        data.f_namemax = MAX_NAME
        return data

    # Open files

    @answered()
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            self._truncate(inode, ctx)
        return self._opened(inode, flags)

    def _truncate(self, ino: int, ctx: RequestContext) -> None:
        change = AttributeChange(size=0, mtime_ns=time.time_ns())
        mode = self._files.change(ino, change).mode
        if without_privileges(mode) != mode and takes_set_id(change, ctx):
            self._names.drop_privileges(ino)
            with suppress(OSError):  # else the kernel believes in them; for attributes alone it waits for nobody
                pyfuse3.invalidate_inode(ino, attr_only=True)

    def _opened(self, ino: int, flags: int) -> FileInfo:
        self._files.opened(ino)
        opened = OpenFile(ino, bool(flags & os.O_NOATIME), flags & os.O_ACCMODE != os.O_RDONLY)
        return FileInfo(fh=self._open.add(opened), keep_cache=True)

    def _read_now(self, fh: int, off: int, size: int) -> bytes | None:
        opened = self._open[fh]
        if not opened.touched:
            opened.touched = True
            self._touch(opened.ino)
        return self._files.read_now(opened.ino, off, size)  # type: ignore[return-value]  # any buffer will do

    @answered("read", at_once=_read_now)
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.read(self._open[fh].ino, off, size)  # type: ignore[return-value]  # any buffer will do

    @answered()
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        ino = self._open[fh].ino
        written = await self._files.write(ino, off, buf)
        if self.sync == "write":
            await self._make_sure(ino)
        return written

    @answered("fsync")
    async def flush(self, fh: int) -> None:
        if self.sync != "close":
            raise FUSEError(errno.ENOSYS)  # which the kernel takes as: never ask again
        await self._files.fsync(self._open[fh].ino)

    @answered("fsync")
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(self._open[fh].ino)

    async def _make_sure(self, ino: int) -> None:
        with trio.fail_after(self.deadlines.fsync):
            await self._files.fsync(ino)

    @answered()
    async def release(self, fh: int) -> None:
        self._files.closed(self._open.pop(fh).ino)

    @answered()
    async def poll(self, inode: int, fh: int, ph: Any, ctx: RequestContext) -> int:
        raise FUSEError(errno.ENOSYS)  # files are always ready

    # Open directories

    @answered()
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._open_directories.add(OpenDirectory(inode))

    @answered()
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        directory = self._open_directories[fh].ino
        if start_id == 0:
            self._touch(directory)
        entries = self._names.readdir(directory, start_id, _DIRECTORY_STEP)
        while entries:
            for cookie, name, inode in entries:
                if not pyfuse3.readdir_reply(token, name, self._entry(self._files.overlay(inode)), cookie):
                    return
                if cookie > DOT_DOT:
                    self._lookups.add(inode.ino)
            if len(entries) < _DIRECTORY_STEP:
                return
            entries = self._names.readdir(directory, entries[-1][0], _DIRECTORY_STEP)

    @answered()
    async def releasedir(self, fh: int) -> None:
        self._open_directories.pop(fh)

    @answered("fsync")
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._files.fsync_directory()

    # Parts

    def _handed_out(self, inode: Inode) -> EntryAttributes:
        self._lookups.add(inode.ino)
        return self._entry(self._files.overlay(inode))

    def _entry(self, inode: Inode) -> EntryAttributes:
        entry = entry_of(inode)
        if self.enable_writeback_cache:
            entry.attr_timeout = REMEMBERED_BLOCKS
        return entry

    def _touch(self, ino: int) -> None:
        """Note an access, as relatime has it, since the kernel does not."""
        if self.read_only or self.noatime or self.stale():
            return
        inode, now = self._files.inode(ino), time.time_ns()
        newest = max(inode.mtime_ns, inode.ctime_ns)
        if inode.atime_ns <= newest or inode.atime_ns + _DAY_NS < now:
            self._files.accessed(ino, now)


def entry_of(inode: Inode) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode.ino
    entry.generation = inode.generation
    entry.entry_timeout = entry.attr_timeout = REMEMBERED
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = PREFERRED_SIZE
    entry.st_blocks = -(-inode.allocated // 512)
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def _new_mtime(attr: EntryAttributes, fields: SetattrFields) -> int | None:
    if fields.update_mtime:
        return _storable(attr.st_mtime_ns)
    return time.time_ns() if fields.update_size else None  # which the kernel leaves to us


def _storable(time_ns: int) -> int:
    """The nearest time that 64 bits of nanoseconds hold: 1677 to 2262. Other file systems do the same at their ends."""
    return max(-_LATEST_NS, min(_LATEST_NS, time_ns))


def _nothing() -> EntryAttributes:
    """The answer that lets the kernel remember that a name does not exist."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = REMEMBERED
    return entry


assert ROOT_INO == pyfuse3.ROOT_INODE
