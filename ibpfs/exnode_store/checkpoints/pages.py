"""The exNode store as pages of its database file: which have changed since the last checkpoint, packed and put back.

A batch is pages one behind the other, each after its number (4 bytes, from 1), compressed with zlib. Replayed in order
they give the file byte by byte, whatever tables it has.
"""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import xxhash

from ibpfs.errors import DataError
from ibpfs.exnode_store.frozen import Image

#: Bytes of pages in one record.
_BATCH = 1024 * 1024
_DIGEST = 16
_NUMBER = 4
_LEVEL = 1  # a tenth of the time of level 6, for a sixth more bytes
MOST_PAGES = 1 << 30


@dataclass
class PageDigests:
    """What each page was at the last checkpoint; xxh3-128, seeded with a secret so that nobody makes two alike."""

    seed: int
    page_size: int
    digests: bytes = b""

    @property
    def pages(self) -> int:
        return len(self.digests) // _DIGEST


def changed(image: Image, before: PageDigests, after: PageDigests) -> Iterator[bytes]:
    """Batches of the pages that differ from `before`; fills `after`. Reads the whole image, off the main thread."""
    batch: list[bytes] = []
    room = _BATCH // image.page_size
    found = bytearray()
    for number, page in _pages(image):
        digest = xxhash.xxh3_128_digest(page, before.seed)
        at = (number - 1) * _DIGEST
        found += digest
        if before.digests[at : at + _DIGEST] == digest:
            continue
        batch += number.to_bytes(_NUMBER, "big"), page
        if len(batch) >= 2 * room:
            yield zlib.compress(b"".join(batch), _LEVEL)
            batch = []
    if batch:
        yield zlib.compress(b"".join(batch), _LEVEL)
    after.digests = bytes(found)


def _pages(image: Image) -> Iterator[tuple[int, bytes]]:
    size = image.page_size
    step = max(1, _BATCH // size)
    for first in range(0, image.pages, step):
        count = min(step, image.pages - first)
        data = os.pread(image.descriptor, count * size, first * size)
        if len(data) != count * size:
            raise DataError("the database file is shorter than it says")
        for index in range(count):
            yield first + index + 1, data[index * size : (index + 1) * size]


def apply(batch: bytes, page_size: int, file: BinaryIO) -> None:
    """Put a batch's pages in their places. DataError when it is none."""
    unpack = zlib.decompressobj()
    width = _NUMBER + page_size
    try:
        data = unpack.decompress(batch, _BATCH // page_size * width)
    except zlib.error:
        raise DataError("a batch of pages is damaged") from None
    if len(data) % width or not unpack.eof:
        raise DataError("a batch of pages is cut off, or too long")
    for at in range(0, len(data), width):
        number = int.from_bytes(data[at : at + _NUMBER], "big")
        if not 0 < number <= MOST_PAGES:
            raise DataError("a page has an unreasonable number")
        file.seek((number - 1) * page_size)
        file.write(data[at + _NUMBER : at + width])
