"""Files as the kernel's door sees them: committed bytes below, what only the spool knows on top.

Read order: spool, ledger, depots. Synchronous except where bytes come from a depot or somebody must wait.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from ibpfs.cache.access_times import AccessTimes
from ibpfs.cache.begun import begun_by
from ibpfs.cache.dirty import Begun, DirtyFile, RecordMemory
from ibpfs.cache.flusher import Flusher
from ibpfs.cache.frames import SliceReader
from ibpfs.cache.fsyncs import Fsyncs
from ibpfs.cache.local_sync import LocalSync
from ibpfs.cache.queue import DELAY
from ibpfs.cache.readahead import Readahead
from ibpfs.cache.reaper import Reaper
from ibpfs.cache.replay import Replay
from ibpfs.cache.room import Limits, Room
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import Record
from ibpfs.cache.trash_keeper import TrashKeeper
from ibpfs.errors import DataError, IbpfsError, InvalidArgument, IsADirectory
from ibpfs.exnode_store.attributes import MAX_SIZE, AttributeChange, Inode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.extents import ExtentMap, Piece
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.sealing import FRAME_SIZE, Buffer
from ibpfs.exnode_store.transfer import Transfer

#: A file up to this size is fetched with its first read anyway (a block of the cache).
_AT_ONCE = 1024 * 1024
#: Seconds after which bytes that the spool retains are not waited for from a depot.
_PATIENCE = 1.0
#: Dirty bytes from which on a turn of the event loop is little beside them.
_LONG = 256 * 1024
#: How far apart the writes of posix_fallocate are at most.
_FALLOCATE_STEP = 4096


@dataclass(frozen=True)
class Statfs:
    """File bytes the volume holds and can still take; number of files."""

    used: int
    free: int
    files: int


class FileCache:
    """The face of cache/ to the kernel's door. One per open volume."""

    def __init__(
        self, db: Database, names: Namespace, ledger: Ledger, transfer: Transfer, spool: Spool, memory: RecordMemory,
        reader: SliceReader, flusher: Flusher, limits: Limits,
    ) -> None:  # fmt: skip
        self._db = db
        self._names = names
        self._ledger = ledger
        self._transfer = transfer
        self._spool = spool
        self._memory = memory
        self._reader = reader
        self.prefetch = reader.prefetch
        self._flusher = flusher
        self._opened: Counter[int] = Counter()
        self._fsyncs = Fsyncs()
        self._local_sync = LocalSync(db, spool, self._fsyncs)
        transfer.meanwhile = self._local_sync.sync_now
        self._readaheads: dict[int, Readahead] = {}
        self._accessed = AccessTimes(db, names)
        self._reaper = Reaper(db, names, ledger, flusher, self._fsyncs)
        self._replay = Replay(names, ledger, spool, flusher)
        self.trash = TrashKeeper(
            names, transfer, lambda: self.used_bytes, lambda: flusher.stuck_bytes, self._out_of_trash,
            self._reaper.done,
        )  # fmt: skip
        self._room = Room(transfer, spool, flusher, self._reaper, limits, self.trash.make_room)
        self._used_at = -1
        self._used = 0

    # Starting and ending

    def recover(self) -> int:
        """Take up what an earlier owner left: unlinked inodes, truncations, the spool. Returns the dirty bytes."""
        self._replay.recover(self._reaper.recover())
        return self._flusher.dirty_bytes

    async def run(self) -> None:
        """Delete what nobody can reach any more, and save what no depot has any more, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reaper.run)
                nursery.start_soon(self._local_sync.run)
                nursery.start_soon(self.trash.run)
                while True:
                    await trio.sleep(DELAY)
                    self._room.look_again()
                    self._accessed.write()
                    self._replay.revive()
        finally:
            self._accessed.write()
            self._reaper.finish()

    # Attributes

    def inode(self, ino: int) -> Inode:
        """The inode as a program sees it. NotFound when there is none."""
        return self.overlay(self._names.inode(ino))

    def overlay(self, inode: Inode) -> Inode:
        """Put what only the spool and this process know on top of a row: size, times, allocated bytes."""
        accessed = self._accessed.get(inode.ino)
        if accessed is not None:
            inode.atime_ns = accessed
        file = self._flusher.files.get(inode.ino)
        if file is None:
            return inode
        inode.size = max(inode.size, file.extents.end)
        if file.mtime_ns is not None:
            inode.mtime_ns = file.mtime_ns
        if file.ctime_ns is not None:
            inode.ctime_ns = max(inode.ctime_ns, file.ctime_ns)
        inode.allocated += self._dirty_holes(file) if inode.allocated else file.dirty
        return inode

    def _dirty_holes(self, file: DirtyFile) -> int:
        """Dirty bytes that lie where nothing is mapped yet."""
        mapped = self._ledger.extents(file.ino)
        return sum(
            stop - start for piece in file.extents for start, stop in mapped.holes(piece.start, piece.stop)
        )

    def change(self, ino: int, change: AttributeChange) -> Inode:
        """setattr. A size is applied first; all of it is one transaction.

        What tar and cp ask for of a file that they just wrote is mostly so already: its ctime waits for the commit of
        its bytes then.
        """
        inode = self._names.inode(ino)
        file = self._flusher.files.get(ino)
        if file is not None and self._names.is_so(inode, change):
            file.ctime_ns = time.time_ns()
            return self.overlay(inode)
        if change.size is not None:
            self._check_size(inode, change.size)
        accessed = self._accessed.get(ino)
        if accessed is not None and change.atime_ns is None:
            change = replace(change, atime_ns=accessed)
        pending = (None, None) if file is None else (file.mtime_ns, file.ctime_ns)
        with self._db.transaction():
            if change.size is not None:
                self._truncate(inode, file, change.size)
            above = 0 if file is None else file.version
            changed = self._names.change(ino, change, pending_times=pending, above=above)
        self._accessed.forget(ino)
        if file is not None:
            file.mtime_ns = file.ctime_ns = None
            file.stored(changed.version)
            if change.size is not None:
                self._truncate_dirty(file, change.size)
        return self.overlay(changed)

    def accessed(self, ino: int, now_ns: int) -> None:
        """Note an access; it reaches the store within a second or with the next change."""
        self._accessed.note(ino, now_ns)

    def _check_size(self, inode: Inode, size: int) -> None:
        if inode.is_directory:
            raise IsADirectory("a directory has no size to set")
        if not inode.is_regular or not 0 <= size <= MAX_SIZE:
            raise InvalidArgument("not a size that this file can have")

    def _truncate(self, inode: Inode, file: DirtyFile | None, size: int) -> None:
        covers, spooled = inode.version + 1, False
        if file is not None:
            covers = file.version = max(file.version, inode.version) + 1
            spooled = bool(file.flights or file.extents.find(0, size))
        # What once lay beyond the size of today is void already.
        voids = file is not None and size < max(inode.size, file.extents.end)
        if self._ledger.truncate(inode.ino, size, covers, spooled=spooled, voids=voids):
            self._reaper.cut(inode.ino)

    def _truncate_dirty(self, file: DirtyFile, size: int) -> None:
        before = file.dirty
        self._flusher.added(file, before, file.truncate(size))
        if file.is_clean:
            self._flusher.forget(file.ino)

    # Bytes

    async def read(self, ino: int, offset: int, size: int) -> Buffer:
        """Return the bytes at `offset`, fewer at the end of the file. DataError when they cannot be had."""
        if size > FRAME_SIZE and self._reader.is_loading_ahead:
            await trio.lowlevel.checkpoint()  # or they would have a turn after sixteen requests, too late for a stream
        while True:
            inode = self.inode(ino)
            stop = min(offset + size, inode.size)
            if stop <= offset:
                return b""
            extents = self._ledger.extents(ino)
            self._read_ahead(inode, extents, offset, stop)
            try:
                return await self._read(ino, extents, offset, stop)
            except DataError:
                # A commit or a compaction may have moved the bytes while we asked for them.
                if self._ledger.extents(ino) is extents:
                    raise

    def read_now(self, ino: int, offset: int, size: int) -> Buffer | None:
        """As `read`, where that waits for nothing; else None. Of a random read from the cache, 57 us, 22 are saved.

        None as well to a stream while something is loaded ahead: `read` gives a turn to who does.
        """
        if ino in self._flusher.files or (size > FRAME_SIZE and self._reader.is_loading_ahead):
            return None
        inode = self.inode(ino)
        stop = min(offset + size, inode.size)
        extents = self._ledger.extents(ino)
        below = extents.find(offset, stop) if offset < stop else []
        if len(below) != 1 or below[0].stop - below[0].start != stop - offset:
            return None
        data = self._reader.read_now(below[0].source, below[0].offset, below[0].offset + stop - offset)
        if data is not None:
            self._read_ahead(inode, extents, offset, stop)
        return data

    def _read_ahead(self, inode: Inode, extents: ExtentMap[SliceRef], offset: int, stop: int) -> None:
        if inode.size <= _AT_ONCE or inode.ino not in self._opened:
            return
        readahead = self._readaheads.get(inode.ino)
        if readahead is None:
            readahead = self._readaheads[inode.ino] = Readahead()
        for start, end in readahead.note(offset, stop - offset):
            for piece in extents.find(start, min(end, inode.size)):
                self._reader.prefetch(piece.source, piece.offset, piece.offset + piece.stop - piece.start, stream=True)

    async def _read(self, ino: int, extents: ExtentMap[SliceRef], offset: int, stop: int) -> Buffer:
        file = self._flusher.files.get(ino)
        if file is None:
            below = extents.find(offset, stop)
            if len(below) == 1 and below[0].start == offset and below[0].stop == stop:
                piece = below[0]
                return await self.stored(piece.source, piece.offset, piece.offset + stop - offset)
            dirty: list[Piece[Record]] = []
        else:
            dirty = file.extents.find(offset, stop)
            below = [
                part
                for start, end in ExtentMap(dirty).holes(offset, stop)
                for part in extents.find(start, end)
            ]
        result = bytearray(stop - offset)
        # Dirty bytes are taken before the first await: afterwards their records may be gone.
        for own in dirty:
            result[own.start - offset : own.stop - offset] = self._memory.read(own)
        for part in below[1:]:
            self._reader.prefetch(part.source, part.offset, part.offset + part.stop - part.start)
        for part in below:
            length = part.stop - part.start
            data = await self.stored(part.source, part.offset, part.offset + length)
            result[part.start - offset : part.stop - offset] = data
        return result

    async def stored(self, ref: SliceRef, start: int, stop: int) -> Buffer:
        """Bytes of a slice from its replicas; what these do not give, or not soon, from what the spool retains."""
        retention = self._flusher.retention
        if self._flusher.fresh.is_settling(ref.segment):
            await self._flusher.fresh.settle(ref.segment)
        if retention.holds(ref):
            with trio.move_on_after(_PATIENCE), suppress(DataError):
                return await self._reader.read(ref, start, stop)
            retained = retention.read(ref, start, stop)
            if retained is not None:
                return retained
        return await self._reader.read(ref, start, stop)

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        """Put bytes into the spool and on top of the file (I7). NoSpace when depots or local disk have no room."""
        if not data:
            return 0
        if offset + len(data) > MAX_SIZE:
            raise InvalidArgument("beyond the largest file size")
        asked = len(data)
        if not self._room.takes(asked):
            await self._room.wait(asked)
        if data == b"\0":  # with what is the end of the file now
            offset, data = self._joined(ino, offset, data)
        file = self._flusher.files.get(ino)
        if file is None:
            inode = self._names.inode(ino)
            if not inode.is_regular:
                raise InvalidArgument("not a regular file")
            file = self._replay.dirty_file(inode)
        now = time.time_ns()
        try:
            sealing = begun_by(self._flusher.sealer, file, offset, len(data)) if len(data) >= FRAME_SIZE else None
            record = self._spool.append(ino, file.generation, offset, file.version + 1, now, data, sealing)
        except IbpfsError:
            file.begun = None  # frames were sealed that are nowhere
            self._forget_if_clean(file)
            raise
        file.version += 1
        before = file.dirty
        freed = file.add(record, offset, offset + len(data))
        self._memory.keep(record, data)
        if sealing is not None and file.begun is not None:
            self._sealed(file.begun, record)
        file.mtime_ns = file.ctime_ns = now
        self._flusher.added(file, before, freed)
        return asked

    def _sealed(self, begun: Begun, record: Record) -> None:
        """Of a whole slice the clear bytes take memory for nothing: what flies is sealed, and the kernel has pages."""
        begun.records.append(record)
        if begun.sealing.is_whole:
            for one in begun.records:
                self._memory.forget(one)

    def _joined(self, ino: int, offset: int, data: bytes) -> tuple[int, bytes]:
        """A zero byte just behind the end of the file, joined to it with zeros.

        posix_fallocate on FUSE becomes such writes, a block apart: joined they are a run, not a slice each.
        """
        gap = offset - self.inode(ino).size
        return (offset - gap, bytes(gap) + data) if 0 < gap <= _FALLOCATE_STEP else (offset, data)

    def _forget_if_clean(self, file: DirtyFile) -> None:
        if file.is_clean:
            self._flusher.forget(file.ino)

    # Opening, closing, unlinking

    def opened(self, ino: int) -> None:
        self._opened[ino] += 1

    def closed(self, ino: int) -> None:
        """One handle less; the last one of an unlinked inode lets it be reaped."""
        self._opened[ino] -= 1
        if self._opened[ino] <= 0:
            del self._opened[ino]
            self._readaheads.pop(ino, None)
            self._out_of_trash(ino)

    def unlinked(self, inode: Inode) -> None:
        """A name of this inode went away: reap it when it was the last, nobody has it open and no trash holds it."""
        if inode.nlink == 0 and inode.ino not in self._opened and not self._names.trash.holds(inode.ino):
            self._reaper.doom(inode.ino)

    def _out_of_trash(self, ino: int) -> None:
        inode = self._names.find(ino)
        if inode is not None:
            self.unlinked(inode)

    def replaced(self, old: Inode, ino: int) -> None:
        """`ino` was renamed over `old`: upload it at once, and let go of the old bytes only when that is committed."""
        file = self._flusher.files.get(ino)
        if file is None or file.is_clean:
            self.unlinked(old)
            return
        file.when_clean.append(lambda: self.unlinked(old))
        self._flusher.hurry(ino)

    # Making sure

    async def fsync(self, ino: int) -> None:
        """Return when what was written is on min_copies depots, and synced here: the exNode, or the spool (I6)."""
        with self._fsyncs:
            file = self._flusher.files.get(ino)
            local = self._local_sync.begin() if file is not None else None
            if file is not None and local is not None:
                changes = file.changes
                if file.dirty > _LONG:
                    await trio.lowlevel.checkpoint()  # the disk begins before the sealing does, not behind it
                await self._flusher.wait_stored(ino)
                # What was overwritten meanwhile has left the spool, and what took its place may not be synced there.
                if await local.succeeded() and file.changes == changes:
                    return
            await self._store(ino)

    async def store(self, ino: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Return when what was written is on min_copies depots and the exNode that says so is synced."""
        with self._fsyncs:
            await self._store(ino, progress)

    async def _store(self, ino: int, progress: Callable[[int, int], None] | None = None) -> None:
        await self._flusher.wait_clean(ino, progress)
        await self._db.sync(alone=self._fsyncs.are_one)

    def commit_stored(self) -> None:
        """Have the exNodes say what depots have acknowledged: for whoever looks at them."""
        self._flusher.commit_stored()

    async def fsync_directory(self) -> None:
        await self._db.sync()

    async def flush(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Return when everything that was written is on the depots and the store is synced."""
        await self._flusher.wait_all(progress)
        await self._db.sync()

    async def drop(self) -> None:
        """Flush, then forget every clean byte held in memory and on the local disk."""
        await self.flush()
        self._reader.drop()
        await self._flusher.drop_clean()

    @property
    def dirty_bytes(self) -> int:
        return self._flusher.dirty_bytes

    @property
    def spool_bytes(self) -> int:
        """Of the spool's files, while somebody needs what is in them."""
        return self._spool.size if self._spool.records else 0

    @property
    def retained_bytes(self) -> int:
        """File bytes that the spool keeps although they are on min_copies depots."""
        return self._flusher.retention.bytes

    @property
    def used_bytes(self) -> int:
        """Stored bytes of live slices, one copy, and what waits in the spool; counted once per transaction at most."""
        if self._used_at != self._db.seq:
            self._used = self._ledger.live_bytes()
            self._used_at = self._db.seq
        return self._used + self._flusher.dirty_bytes

    def statfs(self) -> Statfs:
        free = self._transfer.free_bytes(self._transfer.policies.usual.copies) or 0
        return Statfs(self.used_bytes, max(0, free - self._flusher.dirty_bytes), self._db.files)
