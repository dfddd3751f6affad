"""Bytes of files in snapshots: like those of any file, but that nothing of them is ever dirty."""

from collections.abc import Callable

from ibpfs.cache.files import FileCache
from ibpfs.cache.readahead import Readahead
from ibpfs.errors import DataError
from ibpfs.exnode_store.extents import ExtentMap
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.snapshot_file import SnapshotTree


class SnapshotFile:
    """An open file of a snapshot."""

    def __init__(self, tree: Callable[[], SnapshotTree], ino: int, files: FileCache) -> None:
        """`tree` gives it as it is open now, or raises NotFound when the snapshot was deleted."""
        self._tree = tree
        self._ino = ino
        self._files = files
        self._readahead = Readahead()

    @property
    def ino(self) -> int:
        return self._ino

    async def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at `offset`, fewer at the end of the file. DataError when they cannot be had, NotFound."""
        length = self._tree().names.inode(self._ino).size
        stop = min(offset + size, length)
        if stop <= offset:
            return b""
        while True:
            extents = self._tree().extents(self._ino)
            for start, end in self._readahead.note(offset, stop - offset):
                self._prefetch(extents, start, min(end, length))
            try:
                return await self._read(extents, offset, stop)
            except DataError:
                # Compaction may have moved the bytes while we asked for them.
                if self._tree().extents(self._ino) is extents:
                    raise

    def _prefetch(self, extents: ExtentMap[SliceRef], start: int, stop: int) -> None:
        for piece in extents.find(start, stop):
            self._files.prefetch(piece.source, piece.offset, piece.offset + piece.stop - piece.start)

    async def _read(self, extents: ExtentMap[SliceRef], offset: int, stop: int) -> bytes:
        result = bytearray(stop - offset)
        parts = extents.find(offset, stop)
        for part in parts[1:]:
            self._files.prefetch(part.source, part.offset, part.offset + part.stop - part.start)
        for part in parts:
            data = await self._files.stored(part.source, part.offset, part.offset + part.stop - part.start)
            result[part.start - offset : part.stop - offset] = data
        return bytes(result)
