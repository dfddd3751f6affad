"""Bytes that an old spool, or what was retained in this one, puts back on top of the files."""

from itertools import groupby

from ibpfs.cache.dirty import LEAP, DirtyFile
from ibpfs.cache.flusher import Flusher
from ibpfs.cache.retention import RetainedSlice
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import Record
from ibpfs.errors import NotFound
from ibpfs.exnode_store.attributes import Inode
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace

#: While more than this waits for upload, what was retained waits for its turn.
_ENOUGH = 64 * 1024 * 1024


class Replay:
    """Makes records dirty that no write has just brought."""

    def __init__(self, names: Namespace, ledger: Ledger, spool: Spool, flusher: Flusher) -> None:
        self._names = names
        self._ledger = ledger
        self._spool = spool
        self._flusher = flusher
        self._retention = flusher.retention

    def recover(self, doomed: set[int]) -> None:
        """Take up the spool of an earlier owner: records are dirty again, retained, or needed no more."""
        records = sorted(self._spool.replay(), key=lambda one: (one.ino, one.seq))
        for ino, group in groupby(records, key=lambda one: one.ino):
            theirs = list(group)
            clean = [one for one in theirs if ino in doomed or not self._replay(one)]
            if clean and ino not in doomed:
                self._retention.adopt(ino, theirs)
            self._flusher.release(clean)

    def _replay(self, record: Record) -> bool:
        """Put the parts of a record that are neither void nor covered on top of its file; False when there are none."""
        try:
            inode = self._names.inode(record.ino)
        except NotFound:
            return False
        if not inode.is_regular or inode.generation != record.generation or record.seq <= inode.spooled:
            return False
        stop = record.offset + record.length
        stop = min([stop, *(start for covers, start in self._ledger.voids(record.ino) if record.seq <= covers)])
        holes = self._ledger.covered(record.ino, record.offset, stop, record.seq).holes(record.offset, stop)
        if not holes:
            return False
        file = self.dirty_file(inode)
        file.version = max(file.version, record.seq)
        before, freed = file.dirty, []
        for start, end in holes:
            freed += file.add(record, start, end, start - record.offset)
        self._flusher.added(file, before, freed)
        if record.seq > inode.version:
            file.mtime_ns, file.ctime_ns = record.mtime_ns, max(record.mtime_ns, inode.ctime_ns)
        return True

    def dirty_file(self, inode: Inode) -> DirtyFile:
        file = self._flusher.files.get(inode.ino)
        if file is None:
            file = DirtyFile(inode.ino, inode.generation, inode.policy, inode.version + LEAP)
            self._flusher.files[inode.ino] = file
        return file

    def revive(self) -> None:
        """Make retained bytes dirty again where no replica of them is left."""
        for one in self._retention.lost():
            if self._flusher.dirty_bytes > _ENOUGH:
                return
            if self._retention.is_sound(one):
                self._revive(one)
                self._retention.let_go(one)

    def _revive(self, one: RetainedSlice) -> None:
        """Where the file still refers to the slice, and nothing younger is dirty."""
        try:
            inode = self._names.inode(one.ino)
        except NotFound:
            return
        mapped = [
            piece
            for piece in self._ledger.extents(one.ino).find(one.start, one.start + one.form.length)
            if piece.source.form.slice_id == one.form.slice_id and piece.start - piece.offset == one.start
        ]
        if not mapped:
            return
        file = self.dirty_file(inode)
        before = file.dirty
        for piece in mapped:
            for start, stop in file.extents.holes(piece.start, piece.stop):
                for part in one.parts(start, stop):
                    if part.source not in file.held:
                        self._spool.hold(part.source)
                    file.add(part.source, part.start, part.stop, part.offset)
        self._flusher.added(file, before, [])
        if file.is_clean:
            self._flusher.forget(file.ino)
