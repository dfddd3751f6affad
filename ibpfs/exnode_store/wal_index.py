"""What SQLite notes about a WAL in the file beside it: how much there is, and how much of it is in the database yet.

The format is documented (https://www.sqlite.org/walformat.html). The size of the WAL does not say it: a WAL that begins
anew keeps its blocks.
"""

import os
import struct
from pathlib import Path

_HEADER_SIZE = 48  # of two copies
_COUNTS = struct.Struct("=14xHI")  # the size of a page, and the last valid frame
_BACKFILLED = struct.Struct("=I")
_FRAME_HEADER_SIZE = 24


class WalIndex:
    """Of a database that is open in this process.

    The file is kept open, and closed after the database: closing it takes the process's locks on it away.
    """

    def __init__(self, path: Path) -> None:
        """`path`: of the database."""
        self._path = path
        self._descriptor = -1

    def sizes(self) -> tuple[int, int]:
        """Bytes that the WAL holds, and how many of them have not been moved into the database."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(f"{self._path}-shm", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # nothing has been read or written
                return 0, 0
        head = os.pread(self._descriptor, 2 * _HEADER_SIZE + _BACKFILLED.size, 0)
        if len(head) < 2 * _HEADER_SIZE + _BACKFILLED.size:
            return 0, 0
        page, frames = _COUNTS.unpack_from(head)
        frame = (page if page > 1 else 65536) + _FRAME_HEADER_SIZE
        (moved,) = _BACKFILLED.unpack_from(head, 2 * _HEADER_SIZE)
        return frames * frame, (frames - moved) * frame

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
