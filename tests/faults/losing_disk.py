"""A file system in memory that forgets, on command, whatever was not synced: what a power cut does to a disk.

Strict: a file's bytes are kept by fsync of the file, its name by fsync of the directory, and by nothing else. A process
of its own: `losing_disk.py MOUNTPOINT`; each line on standard input is answered by a line on standard output:

  cut                 the power is gone: nothing that is written or synced from now on counts, and each of it fails
  revert SEED SHARE   the power is back: what was not synced is gone, but for a random SHARE of the pages
  refuse ERRNO        every write fails with this error number (0: no more)
"""

import errno
import os
import random
import stat
import sys
import time
from dataclasses import dataclass, field

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

PAGE = 4096
_EMPTY = bytes(PAGE)


@dataclass
class State:
    """Of an inode: in memory, or on the disk's platter."""

    mode: int
    size: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)
    entries: dict[bytes, int] = field(default_factory=dict)
    target: bytes = b""


@dataclass
class Node:
    number: int
    live: State
    kept: State
    dirty: set[int] = field(default_factory=set)
    resized: bool = False
    changed_ns: int = 0


class LosingDisk(pyfuse3.Operations):
    """Handles are inode numbers."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._is_cut = False
        self._refusal = 0
        self._node(stat.S_IFDIR | 0o755, pyfuse3.ROOT_INODE)

    def _node(self, mode: int, number: int | None = None) -> Node:
        number = number or max(self._nodes) + 1
        self._nodes[number] = node = Node(number, State(mode), State(mode), changed_ns=time.time_ns())
        return node

    # The disk

    def cut(self) -> None:
        self._is_cut = True

    def refuse(self, code: int) -> None:
        self._refusal = code

    def revert(self, seed: int, share: float) -> int:
        """Return how many pages were lost."""
        dice = random.Random(seed)
        lost = 0
        for node in self._nodes.values():
            surviving = {number for number in sorted(node.dirty) if dice.random() < share}
            lost += len(node.dirty - surviving)
            for number in surviving & node.live.pages.keys():
                node.kept.pages[number] = node.live.pages[number]
            if node.resized and dice.random() < share:
                node.kept.size = node.live.size
            node.live = State(
                node.kept.mode, node.kept.size, dict(node.kept.pages), dict(node.kept.entries), node.kept.target
            )
            node.dirty.clear()
            node.resized = False
        self._is_cut = False
        return lost

    def _changing(self) -> None:
        if self._is_cut:
            raise FUSEError(errno.EIO)

    def _sync(self, node: Node) -> None:
        self._changing()
        live, kept = node.live, node.kept
        for number in node.dirty:
            if number in live.pages:
                kept.pages[number] = live.pages[number]
            else:
                kept.pages.pop(number, None)
        kept.mode, kept.size, kept.entries, kept.target = live.mode, live.size, dict(live.entries), live.target
        node.dirty.clear()
        node.resized = False

    # Names

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_size = node.number, node.live.mode, node.live.size
        entry.st_nlink = 1
        entry.st_blksize, entry.st_blocks = PAGE, len(node.live.pages) * PAGE // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.changed_ns
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _child(self, parent: int, name: bytes) -> Node:
        try:
            return self._nodes[self._nodes[parent].live.entries[name]]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def _add(self, parent: int, name: bytes, mode: int) -> Node:
        self._changing()
        entries = self._nodes[parent].live.entries
        if name in entries:
            raise FUSEError(errno.EEXIST)
        node = self._node(mode)
        entries[name] = node.number
        return node

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._child(parent_inode, name))

    async def forget(self, inode_list: object) -> None:
        """Nothing is forgotten but by a cut."""

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._nodes[inode])

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        self._changing()
        node = self._nodes[inode]
        if fields.update_mode:
            node.live.mode = stat.S_IFMT(node.live.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_size:
            self._resize(node, attr.st_size)
        return self._attributes(node)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._attributes(self._add(parent_inode, name, mode))

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._add(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode)))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._add(parent_inode, name, stat.S_IFLNK | 0o777)
        node.live.target = node.kept.target = target
        return self._attributes(node)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._nodes[inode].live.target

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        self._changing()
        self._nodes[new_parent_inode].live.entries[new_name] = inode
        return self._attributes(self._nodes[inode])

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._changing()
        self._child(parent_inode, name)
        del self._nodes[parent_inode].live.entries[name]

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if self._child(parent_inode, name).live.entries:
            raise FUSEError(errno.ENOTEMPTY)
        await self.unlink(parent_inode, name, ctx)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int,
        ctx: RequestContext,
    ) -> None:  # fmt: skip
        self._changing()
        node = self._child(parent_inode_old, name_old)
        if flags:
            raise FUSEError(errno.EINVAL)
        del self._nodes[parent_inode_old].live.entries[name_old]
        self._nodes[parent_inode_new].live.entries[name_new] = node.number

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        entries = sorted(self._nodes[fh].live.entries.items(), key=lambda item: item[1])
        for name, number in entries:
            if number > start_id and not pyfuse3.readdir_reply(
                token, name, self._attributes(self._nodes[number]), number
            ):
                return

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._sync(self._nodes[fh])

    # Bytes

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self._add(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode))
        return FileInfo(fh=node.number), self._attributes(node)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            self._changing()
            self._resize(self._nodes[inode], 0)
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        live = self._nodes[fh].live
        stop = min(off + size, live.size)
        if off >= stop:
            return b""
        first, last = off // PAGE, (stop - 1) // PAGE
        whole = b"".join(live.pages.get(number, _EMPTY) for number in range(first, last + 1))
        return whole[off - first * PAGE : stop - first * PAGE]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self._changing()
        if self._refusal:
            raise FUSEError(self._refusal)
        node = self._nodes[fh]
        at = 0
        while at < len(buf):
            number, within = divmod(off + at, PAGE)
            piece = buf[at : at + PAGE - within]
            if len(piece) < PAGE:
                page = bytearray(node.live.pages.get(number, _EMPTY))
                page[within : within + len(piece)] = piece
                piece, taken = bytes(page), len(piece)
            else:
                taken = PAGE
            node.live.pages[number] = bytes(piece)
            node.dirty.add(number)
            at += taken
        if off + len(buf) > node.live.size:
            node.live.size = off + len(buf)
            node.resized = True
        node.changed_ns = time.time_ns()
        return len(buf)

    @staticmethod
    def _resize(node: Node, size: int) -> None:
        live = node.live
        for number in [number for number in live.pages if number * PAGE >= size]:
            del live.pages[number]
            node.dirty.add(number)
        number, within = divmod(size, PAGE)
        if within and number in live.pages:
            live.pages[number] = live.pages[number][:within] + bytes(PAGE - within)
            node.dirty.add(number)
        live.size, node.resized = size, True
        node.changed_ns = time.time_ns()

    async def flush(self, fh: int) -> None:
        """Closing keeps nothing."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._sync(self._nodes[fh])

    async def release(self, fh: int) -> None:
        """Nothing to do."""

    async def releasedir(self, fh: int) -> None:
        """Nothing to do."""

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        figures = StatvfsData()
        figures.f_bsize = figures.f_frsize = PAGE
        figures.f_blocks = figures.f_bfree = figures.f_bavail = 8 << 30 >> 12
        figures.f_files = figures.f_ffree = figures.f_favail = 1 << 20
        figures.f_namemax = 255
        return figures


async def obey(disk: LosingDisk) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as commands:
        rest = b""
        async for chunk in commands:
            rest += chunk
            *lines, rest = rest.split(b"\n")
            for line in lines:
                word, *values = line.decode().split()
                said: object = "done"
                if word == "cut":
                    disk.cut()
                elif word == "revert":
                    said = disk.revert(int(values[0]), float(values[1]))
                else:
                    disk.refuse(int(values[0]))
                print(said, flush=True)
    pyfuse3.terminate()


async def main(mountpoint: str) -> None:
    disk = LosingDisk()
    options = {*pyfuse3.default_options, "fsname=losing-disk", "allow_other"} - {"default_permissions"}
    pyfuse3.init(disk, mountpoint, options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, disk)
        print("ready", flush=True)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    pyfuse3.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
