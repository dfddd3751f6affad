"""Block digests: which there are, how long they are, and how they stand between the bytes of a stream.

After every block of the stream, and after the shorter last one, comes its digest as lower-case hex text.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_BLOCK: Final = 2**31


class DigestType(IntEnum):
    SHA256 = 1
    SHA512 = 2
    SHA1 = 3
    MD5 = 4


_NAMES: Final = {
    DigestType.SHA256: "sha256",
    DigestType.SHA512: "sha512",
    DigestType.SHA1: "sha1",
    DigestType.MD5: "md5",
}
_SIZES: Final = {DigestType.SHA256: 32, DigestType.SHA512: 64, DigestType.SHA1: 20, DigestType.MD5: 16}


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest of `type` for every `block_size` bytes."""

    type: DigestType
    block_size: int

    @property
    def digest_size(self) -> int:
        return _SIZES[self.type]

    def new(self) -> "_Hash":
        return hashlib.new(_NAMES[self.type], usedforsecurity=False)

    def blocks(self, length: int) -> int:
        return -(-length // self.block_size)

    def framed_length(self, length: int) -> int:
        """Of `length` bytes with their digests between them."""
        return length + self.blocks(length) * 2 * self.digest_size


def framed_length(checksum: Checksum | None, length: int) -> int:
    return length if checksum is None else checksum.framed_length(length)


class Framer:
    """Puts digests between the bytes of one stream."""

    def __init__(self, checksum: Checksum) -> None:
        self._checksum = checksum
        self._hash = checksum.new()
        self._left = checksum.block_size

    def feed(self, data: bytes | memoryview) -> bytes:
        framed, rest = bytearray(), memoryview(data)
        while rest:
            piece, rest = rest[: self._left], rest[self._left :]
            self._hash.update(piece)
            self._left -= len(piece)
            framed += piece
            if not self._left:
                framed += self._digest()
        return bytes(framed)

    def finish(self) -> bytes:
        """The digest of a shorter last block."""
        return self._digest() if self._left < self._checksum.block_size else b""

    def _digest(self) -> bytes:
        digest = self._hash.hexdigest().encode()
        self._hash, self._left = self._checksum.new(), self._checksum.block_size
        return digest


class Deframer:
    """Takes the digests out of a stream with `length` bytes of data. `damaged`: one of them did not fit."""

    def __init__(self, checksum: Checksum, length: int) -> None:
        self.damaged = False
        self._checksum = checksum
        self._data_left = length  # of the stream
        self._hash = checksum.new()
        self._block_left = min(checksum.block_size, length)
        self._expected = b""  # what is there of the digest that comes now

    def feed(self, framed: bytes | memoryview) -> bytes:
        data, rest = bytearray(), memoryview(framed)
        while rest:
            if self._block_left:
                piece, rest = rest[: self._block_left], rest[self._block_left :]
                self._hash.update(piece)
                self._block_left -= len(piece)
                self._data_left -= len(piece)
                data += piece
            else:
                missing = 2 * self._checksum.digest_size - len(self._expected)
                piece, rest = rest[:missing], rest[missing:]
                self._expected += bytes(piece)
                if len(piece) == missing:
                    self._compare()
        return bytes(data)

    def _compare(self) -> None:
        if not hmac.compare_digest(self._expected.lower(), self._hash.hexdigest().encode()):
            self.damaged = True
        self._hash, self._expected = self._checksum.new(), b""
        self._block_left = min(self._checksum.block_size, self._data_left)
