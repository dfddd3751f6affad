"""A message while it is looked at: in a file without a name, because it may be larger than the memory."""

import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from ibpfs.mail.structure import Buffer

_LONE_DOT = re.compile(rb"^\.\r?\n?", re.MULTILINE)
_PIECE = 1 << 20


def open_spool() -> IO[bytes]:
    """Return a new file that ends with the process; on a disk, not in the memory that /tmp often is."""
    return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp")


@contextmanager
def mapped(file: IO[bytes]) -> Iterator[Buffer]:
    """Give the file's bytes without reading them all."""
    file.flush()
    if not os.fstat(file.fileno()).st_size:
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def cut_at_dot(file: IO[bytes]) -> None:
    """End the message before a line with nothing but a dot, as sendmail does unless it is told -i."""
    with mapped(file) as data:
        found = next((one for one in _LONE_DOT.finditer(data) if one.group() != b"." or one.end() == len(data)), None)
        place = found.start() if found else None
    if place is not None:
        file.truncate(place)


def pieces(data: Buffer) -> Iterator[bytes]:
    for place in range(0, len(data), _PIECE):
        yield data[place : place + _PIECE]
