"""Digests kept on disk: a file beside the allocation's, one digest after another. Knows no connection.

Zeros in place of a digest mean a block that was never written, so holes cost nothing here either. Which digests may
be stale is in the allocation's header before its data change; after a crash only those are made anew.
"""

import errno
import os
from collections.abc import Callable

from ibpfs.depot.server.allocation import HEADER_BYTES
from ibpfs.depot.wire.digests import Checksum

SUFFIX = ".digests"
_PIECE = 1 << 20

Check = Callable[[], None]


def _nothing() -> None:
    pass


def open_digests(path: str) -> int:
    return os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def touched(checksum: Checksum, size: int, ranges: list[tuple[int, int]]) -> tuple[int, int]:
    """Blocks (first, end) whose digests change when `ranges` are written to `size` bytes."""
    first = min(offset for offset, _ in ranges) // checksum.block_size
    end = max(offset + length for offset, length in ranges)
    if end > size and size % checksum.block_size:  # the shorter last block becomes longer
        first = min(first, size // checksum.block_size)
    return first, checksum.blocks(end)


def last_block(checksum: Checksum, size: int) -> tuple[int, int]:
    """The block (first, end) that becomes shorter when data are cut to `size`."""
    return size // checksum.block_size, checksum.blocks(size)


def widened(stale: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
    if stale[0] >= stale[1]:
        return more
    return (min(stale[0], more[0]), max(stale[1], more[1])) if more[0] < more[1] else stale


def digest_of_block(fd: int, checksum: Checksum, block: int, size: int, check: Check = _nothing) -> bytes:
    begin = block * checksum.block_size
    end = min(begin + checksum.block_size, size)
    digest = checksum.new()
    while begin < end:
        check()
        piece = os.pread(fd, min(_PIECE, end - begin), HEADER_BYTES + begin)
        if not piece:
            raise OSError(errno.EIO, "the file is shorter than its header says")
        digest.update(piece)
        begin += len(piece)
    return digest.digest()


def refresh(
    fd: int, digests: int, checksum: Checksum, stale: tuple[int, int], size: int, check: Check = _nothing
) -> None:
    """Makes the digests of these blocks anew and forgets those behind `size`."""
    end = min(stale[1], checksum.blocks(size))
    block = stale[0]
    while block < end:
        if (next_block := _behind_hole(fd, HEADER_BYTES, checksum.block_size, block, size)) > block:
            block = next_block  # the digests of what was never written are zeros already
            continue
        digest = digest_of_block(fd, checksum, block, size, check)
        os.pwrite(digests, digest, block * checksum.digest_size)
        block += 1
    os.ftruncate(digests, checksum.blocks(size) * checksum.digest_size)


def _behind_hole(fd: int, start: int, width: int, item: int, size: int) -> int:
    """The first of the items of `width` bytes, from `item` on, that is not whole and a hole."""
    whole = size // width
    try:
        data = os.lseek(fd, start + item * width, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end of the file
            return max(item, whole)
        raise
    return max(item, min(whole, (data - start) // width))


def read_digests(digests: int, checksum: Checksum, first: int, end: int, zero: bytes) -> bytes:
    """Of these blocks; `zero` is the digest of a whole block of zeros."""
    width = checksum.digest_size
    raw = os.pread(digests, (end - first) * width, first * width).ljust((end - first) * width, b"\0")
    empty = bytes(width)
    return b"".join(zero if raw[at : at + width] == empty else raw[at : at + width] for at in range(0, len(raw), width))


def zero_digest(checksum: Checksum) -> bytes:
    digest = checksum.new()
    zeros, left = bytes(min(_PIECE, checksum.block_size)), checksum.block_size
    while left:
        piece = memoryview(zeros)[:left]
        digest.update(piece)
        left -= len(piece)
    return digest.digest()


def count_bad(fd: int, digests: int, checksum: Checksum, size: int, *, correct: bool, check: Check) -> int:
    """Reads everything again; returns how many blocks do not fit their digests."""
    bad, zero, width = 0, zero_digest(checksum), checksum.digest_size
    block, blocks = 0, checksum.blocks(size)
    while block < blocks:
        check()
        behind = min(
            _behind_hole(fd, HEADER_BYTES, checksum.block_size, block, size),
            _behind_hole(digests, 0, width, block, blocks * width),
        )
        if behind > block:
            block = behind
            continue
        digest = digest_of_block(fd, checksum, block, size, check)
        if digest != read_digests(digests, checksum, block, block + 1, zero):
            bad += 1
            if correct:
                os.pwrite(digests, digest, block * width)
        block += 1
    return bad
