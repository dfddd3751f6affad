"""Erasure codes of segments: K shards hold the bytes themselves, M more make up for any M that are lost. Pure.

The code is Reed and Solomon's over GF(2^8) with the polynomial 0x11d: byte n of every shard is the value, at the
shard's own point, of the polynomial of degree below K that goes through byte n of the K data shards. The point of
shard 0 is 0, that of shard n is 2^(n-1). So any K shards give all others, by interpolation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import zfec

from ibpfs.errors import UsageError
from ibpfs.exnode_store.sealing import Buffer

#: Most data shards, and most others: each is on a depot of its own.
MOST = 64


@dataclass(frozen=True, slots=True)
class Code:
    """K+M."""

    k: int
    m: int

    @classmethod
    def parse(cls, text: str) -> "Code":
        """Of '4+2'. UsageError."""
        k, plus, m = text.partition("+")
        if not (plus and k.isascii() and k.isdigit() and m.isascii() and m.isdigit() and len(text) < 8):
            raise UsageError(f"code={text}: must be K+M, such as 4+2: any K of K+M shards give the bytes; or none")
        code = cls(int(k), int(m))
        if not (2 <= code.k <= MOST and 1 <= code.m <= MOST):
            raise UsageError(f"code={text}: K must be from 2 to {MOST} and M from 1 to {MOST}")
        return code

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"

    @property
    def shards(self) -> int:
        return self.k + self.m

    def shard_length(self, length: int) -> int:
        """Of a segment of so many bytes; the last data shard is filled up with zeros."""
        return -(-length // self.k)

    def encode(self, data: Buffer) -> list[bytes]:
        """All shards of a segment's bytes."""
        size = self.shard_length(len(data))
        whole = bytes(data).ljust(size * self.k, b"\0")
        rows = tuple(whole[at * size : (at + 1) * size] for at in range(self.k))
        return [bytes(one) for one in _encoder(self).encode(rows)]

    def decode(self, shards: Mapping[int, Buffer]) -> list[bytes]:
        """The K data shards, or the same columns of them, from those of any K shards, by number."""
        numbers = sorted(shards)[: self.k]
        if len(numbers) < self.k:
            raise ValueError(f"{self.k} shards are needed, and here are {len(numbers)}")
        found = _decoder(self).decode(tuple(bytes(shards[one]) for one in numbers), tuple(numbers))
        return [bytes(one) for one in found]

    def rebuild(self, shards: Mapping[int, Buffer], number: int) -> bytes:
        """One shard, or columns of it, from those of any K others."""
        (found,) = _encoder(self).encode(tuple(self.decode(shards)), (number,))
        return bytes(found)


@lru_cache(maxsize=16)
def _encoder(code: Code) -> zfec.Encoder:
    return zfec.Encoder(code.k, code.shards)


@lru_cache(maxsize=16)
def _decoder(code: Code) -> zfec.Decoder:
    return zfec.Decoder(code.k, code.shards)


@dataclass(frozen=True, slots=True)
class Coded:
    """How a segment is stored: as shards of so many bytes, instead of whole copies."""

    code: Code
    shard_length: int

    def spans(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(data shard, begin, end) that together are bytes [start, stop) of the segment, in order."""
        size = self.shard_length
        return [
            (shard, max(start - shard * size, 0), min(stop - shard * size, size))
            for shard in range(start // size, -(-stop // size))
        ]
