"""Memory that is about to be overwritten, and such as the kernel sends without a copy."""

import ctypes
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_new = ctypes.pythonapi.PyByteArray_FromStringAndSize
_new.restype = ctypes.py_object
_new.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)

#: A slice of 4 MiB, sealed, and room for what is added to it.
_SIZE: Final = (4 << 20) + (64 << 10)
#: What is shorter is copied about as soon.
_SHORTEST: Final = 256 << 10
#: Pieces that stay when nobody uses them: a new page of memory costs more than its copy.
_KEPT: Final = 4


def unfilled(length: int) -> bytearray:
    """So many bytes that hold anything. Whoever takes it fills all of it, or throws it away.

    A bytearray of zeros costs 30 us per MiB, to clear what a read then fills.
    """
    made: bytearray = _new(None, length)
    return made


@dataclass(slots=True)
class _Piece:
    """Memory that is a file, too, of which the mapping holds a descriptor of its own."""

    mapping: mmap.mmap
    descriptor: int
    reserved: int = 0  # bytes that have their pages

    @classmethod
    def make(cls) -> "_Piece":
        descriptor = os.memfd_create("ibpfs")
        try:
            os.ftruncate(descriptor, _SIZE)
            return cls(mmap.mmap(descriptor, _SIZE), descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def reserve(self, length: int) -> None:
        """OSError where the memory is not there; to write to pages that cannot be had would kill us (SIGBUS)."""
        if length > self.reserved:
            os.posix_fallocate(self.descriptor, self.reserved, length - self.reserved)
            self.reserved = length


class Sendable(ctypes.Array[ctypes.c_ubyte]):
    """Memory whose pages a socket of this machine can take instead of copying them: `sendfile` from `descriptor`.

    Whoever sends it counts in `under_way` until the receiver has said that it has read all: not before may these pages
    be written again, so they never are where it did not come to that. Goes back when nothing refers to it any more.
    """

    _type_ = ctypes.c_ubyte
    _length_ = _SIZE

    piece: _Piece
    under_way: int

    def __del__(self) -> None:
        piece = getattr(self, "piece", None)
        if piece is None:
            return
        if not self.under_way and len(_FREE) < _KEPT:
            _FREE.append(piece)
        else:
            os.close(piece.descriptor)  # the mapping goes with its last reference

    @property
    def descriptor(self) -> int:
        return self.piece.descriptor

    def offset(self, part: memoryview) -> int:
        """Where in it `part` of it begins."""
        return ctypes.addressof(ctypes.c_ubyte.from_buffer(part)) - ctypes.addressof(self)


_FREE: Final[list[_Piece]] = []


def sendable(length: int) -> memoryview:
    """As `unfilled`; a part of a `Sendable` where that is worth it and can be had."""
    if not _SHORTEST <= length <= _SIZE:
        return memoryview(unfilled(length))
    try:
        piece = _free() or _Piece.make()
    except OSError:  # no descriptor, no memfd
        return memoryview(unfilled(length))
    made = Sendable.from_buffer(piece.mapping)
    made.piece, made.under_way = piece, 0
    try:
        piece.reserve(length)
    except OSError:
        return memoryview(unfilled(length))
    return memoryview(made).cast("B")[:length]


def _free() -> _Piece | None:
    with suppress(IndexError):
        return _FREE.pop()
    return None
