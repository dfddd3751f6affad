"""A file system of pyfuse3 that keeps everything in dictionaries: what no file system on this stack can surpass.

`python -m ibpfs_tools.benchmarks.ceiling MOUNTPOINT`. SIGUSR1: the kernel is to forget all it knows.
"""

import errno
import os
import signal
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pyfuse3
import trio

_FOREVER = 300.0


@dataclass(slots=True)
class _Node:
    attributes: pyfuse3.EntryAttributes
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    target: bytes = b""


class Ceiling(pyfuse3.Operations):
    """Nothing is ever given back but by unlink; times are what they were at creation."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[int, _Node] = {}
        self._next = pyfuse3.ROOT_INODE
        self._new(stat.S_IFDIR | 0o755)

    def _new(self, mode: int) -> _Node:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino, attributes.st_mode, attributes.st_nlink = pyfuse3.InodeT(self._next), pyfuse3.ModeT(mode), 1
        attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
        now = time.time_ns()
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now
        attributes.entry_timeout = attributes.attr_timeout = _FOREVER
        attributes.st_blksize = 4096
        node = self._nodes[self._next] = _Node(attributes)
        self._next += 1
        return node

    def _add(self, parent: int, name: bytes, mode: int) -> _Node:
        node = self._new(mode)
        self._nodes[parent].names[name] = node.attributes.st_ino
        return node

    def _find(self, parent: int, name: bytes) -> int:
        try:
            return self._nodes[parent].names[name]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    # --- names ---

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if (number := self._nodes[parent_inode].names.get(name)) is None:
            absent = pyfuse3.EntryAttributes()
            absent.st_ino, absent.entry_timeout = pyfuse3.InodeT(0), _FOREVER
            return absent
        return self._nodes[number].attributes

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._nodes[inode].attributes

    async def setattr(
        self, inode: pyfuse3.InodeT, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None, ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        node = self._nodes[inode]
        if fields.update_size:
            del node.data[attr.st_size :]
            node.data.extend(bytes(attr.st_size - len(node.data)))
            node.attributes.st_size = attr.st_size
        if fields.update_mode:
            node.attributes.st_mode = attr.st_mode
        if fields.update_mtime:
            node.attributes.st_mtime_ns = attr.st_mtime_ns
        return node.attributes

    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode)).attributes

    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        node = self._add(parent_inode, name, stat.S_IFLNK | 0o777)
        node.target = target
        return node.attributes

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        return self._nodes[inode].target

    async def link(
        self, inode: pyfuse3.InodeT, new_parent_inode: pyfuse3.InodeT, new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        self._nodes[new_parent_inode].names[new_name] = inode
        self._nodes[inode].attributes.st_nlink += 1
        return self._nodes[inode].attributes

    async def unlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        self._find(parent_inode, name)
        del self._nodes[parent_inode].names[name]

    rmdir = unlink

    async def rename(
        self, parent_inode_old: pyfuse3.InodeT, name_old: pyfuse3.FileNameT, parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext,
    ) -> None:  # fmt: skip
        number = self._find(parent_inode_old, name_old)
        del self._nodes[parent_inode_old].names[name_old]
        self._nodes[parent_inode_new].names[name_new] = number

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return inode

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        entries = list(self._nodes[fh].names.items())
        for position, (name, number) in enumerate(entries[start_id:], start_id + 1):
            node = self._nodes[number]
            if not pyfuse3.readdir_reply(token, name, node.attributes, position):
                return

    # --- bytes ---

    async def create(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:  # fmt: skip
        node = self._add(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode))
        return _handle(node.attributes.st_ino), node.attributes

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return _handle(inode)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return bytes(memoryview(self._nodes[fh].data)[off : off + size])

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        if off > len(node.data):
            node.data.extend(bytes(off - len(node.data)))
        node.data[off : off + len(buf)] = buf
        node.attributes.st_size = len(node.data)
        return len(buf)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        return

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        return

    # --- the kernel's caches ---

    def forget_all(self) -> None:
        """In a thread: the kernel may wait for an answer of ours meanwhile."""
        for number, node in list(self._nodes.items()):
            for name in list(node.names):
                with suppress(OSError):  # the kernel does not know it
                    pyfuse3.invalidate_entry(pyfuse3.InodeT(number), name)
            if stat.S_ISREG(node.attributes.st_mode):
                with suppress(OSError):
                    pyfuse3.invalidate_inode(pyfuse3.InodeT(number))


def _handle(inode: int) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=inode, keep_cache=True)


async def _serve(ceiling: Ceiling) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_forget_when_told, ceiling)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _forget_when_told(ceiling: Ceiling) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        print("ready", flush=True)
        async for _ in signals:
            await trio.to_thread.run_sync(ceiling.forget_all)
            print("forgotten", flush=True)


def main(mountpoint: str) -> None:
    ceiling = Ceiling()
    pyfuse3.init(ceiling, mountpoint, {"fsname=ceiling", "default_permissions"})
    try:
        trio.run(_serve, ceiling)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(sys.argv[1])
