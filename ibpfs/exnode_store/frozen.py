"""The database file as it is at one commit, while later commits go on beside it in the WAL; a small one is copied."""

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from ibpfs.errors import DataError

#: Who reads for a moment may keep the file at an older commit: so often, and after so many seconds, it is tried again.
_TRIES, _PAUSE = 30, 0.05
_LEAF = 0x0D
#: Bytes up to which it is copied into memory, 1 ms: to move the WAL into the file takes the disk 2 to 10.
_SMALL = 1024 * 1024
#: Bytes of an integer by its serial type; 8 and 9 are the constants 0 and 1.
_WIDTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}


@dataclass(frozen=True)
class Image:
    """`pages` pages of the open file `descriptor` are the state after commit `seq`, as long as nobody moves the WAL."""

    descriptor: int
    page_size: int
    pages: int
    seq: int
    files: int


def pin(reader: sqlite3.Connection, descriptor: int) -> Image:
    """Begin a read transaction: what is committed later stays in the WAL from now on."""
    reader.execute("BEGIN")
    seq, files = reader.execute("SELECT seq, files FROM state").fetchone()
    (size,) = reader.execute("PRAGMA page_size").fetchone()
    (pages,) = reader.execute("PRAGMA page_count").fetchone()
    return Image(descriptor, size, pages, seq, files)


@asynccontextmanager
async def held(path: Path, reader: sqlite3.Connection, descriptor: int) -> AsyncIterator[Image]:
    """The commit that is the last one now. DataError as `freeze`."""
    image = pin(reader, descriptor)
    data = b""
    if image.pages * image.page_size <= _SMALL:
        data = await trio.to_thread.run_sync(_copy, reader, image)
    reader.execute("ROLLBACK")
    if not data:
        yield await freeze(path, reader, descriptor)
        return
    memory = os.memfd_create("exnode-store")
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(memory, left) :]
        yield replace(image, descriptor=memory)
    finally:
        os.close(memory)


def _copy(reader: sqlite3.Connection, image: Image) -> bytes:
    """The pinned state; b"" where that is not certain: SQLite takes zeros for a page that it cannot read."""
    data, size = reader.serialize(), image.page_size
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    return data if len(pages) == image.pages and all(map(any, pages)) else b""


async def freeze(path: Path, reader: sqlite3.Connection, descriptor: int) -> Image:
    """The file at the commit that is the last one now. DataError when somebody's older read does not end in time."""
    for tries_left in reversed(range(_TRIES)):
        image = pin(reader, descriptor)
        try:
            await trio.to_thread.run_sync(settle, path, reader, image)
        except DataError:
            reader.execute("ROLLBACK")
            if not tries_left:
                raise
            await trio.sleep(_PAUSE)
        else:
            return image
    raise AssertionError("unreachable")


def settle(path: Path, reader: sqlite3.Connection, image: Image) -> None:
    """Move into the file what the WAL has up to the pinned commit. DataError when the file is not at that one then.

    A passive checkpoint goes exactly as far as the oldest reader lets it, and the pinned one is to be the only one.
    """
    mover = sqlite3.connect(path, isolation_level=None)
    try:
        mover.execute("PRAGMA synchronous = NORMAL")
        mover.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    finally:
        mover.close()
    (root,) = reader.execute("SELECT rootpage FROM sqlite_master WHERE name = 'state'").fetchone()
    page = os.pread(image.descriptor, image.page_size, (root - 1) * image.page_size)
    if _second_integer(page) != image.seq:
        raise DataError("the database file is not at the commit that was asked for")


def _second_integer(page: bytes) -> int:
    """Of the only row of a table in one page whose first column is the row's number: its second column."""
    if not page or page[0] != _LEAF:
        raise DataError("the table `state` is not where it should be")
    at = int.from_bytes(page[8:10], "big")
    _, at = _varint(page, at)  # length
    _, at = _varint(page, at)  # row id
    size, types = _varint(page, at)
    _, types = _varint(page, types)
    kind, _ = _varint(page, types)
    if kind not in _WIDTHS:
        raise DataError("the table `state` holds no number")
    if kind >= 8:
        return kind - 8
    return int.from_bytes(page[at + size : at + size + _WIDTHS[kind]], "big", signed=True)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1
