"""One allocation: its attributes, and the header that keeps them at the start of its file.

The header has two slots, written in turn, each with its own checksum: a torn write damages one at most, the other
still holds the state before it. Keys are kept as SHA-256 only, so a copy of the depot's disk grants nothing.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field

import xxhash

from ibpfs.depot.wire.protocol import AllocationKind, Reliability

MAGIC = b"ibpfsAL1"
FORMAT = 1
HEADER_BYTES = 4096  # data begin page-aligned, so a header write dirties exactly one page
SLOT_OFFSETS = (0, 2048)
PERMANENT = math.inf

# magic, format, reliability, kind, flags, generation, id, digests of the read, write and manage key,
# read count, write count, size, max size, created, lease end
_FIELDS = struct.Struct("<8sHBBBxxxQ16s32s32s32sIIQQdd")
_CHECKSUM = struct.Struct("<Q")
SLOT_BYTES = _FIELDS.size + _CHECKSUM.size
_READ_ONLY = 1


def key_digest(key: str) -> bytes:
    """Under which a key is filed."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(slots=True, eq=False, repr=False)
class Allocation:
    """Attributes of one allocation. Times in Unix seconds; `lease_end` may be `PERMANENT`."""

    id: bytes
    read_digest: bytes
    write_digest: bytes
    manage_digest: bytes
    reliability: Reliability
    kind: AllocationKind
    read_count: int
    write_count: int
    max_size: int
    created: float
    lease_end: float
    size: int = 0
    read_only: bool = False
    generation: int = 0
    gone: bool = field(default=False)  # deleted while somebody still holds this object

    @property
    def label(self) -> str:
        """Names the allocation in logs; grants nothing."""
        return self.manage_digest[:4].hex()

    @property
    def stable(self) -> bool:
        return self.reliability is Reliability.STABLE

    def ended(self, now: float) -> bool:
        return self.lease_end <= now

    def __repr__(self) -> str:
        return f"<allocation {self.label}>"


def pack_slot(allocation: Allocation) -> bytes:
    """The allocation as one slot of its header."""
    fields = _FIELDS.pack(
        MAGIC, FORMAT, allocation.reliability, allocation.kind, _READ_ONLY if allocation.read_only else 0,
        allocation.generation, allocation.id,
        allocation.read_digest, allocation.write_digest, allocation.manage_digest,
        allocation.read_count, allocation.write_count, allocation.size, allocation.max_size,
        allocation.created, allocation.lease_end,
    )  # fmt: skip
    return fields + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))


def pack_header(allocation: Allocation) -> bytes:
    """A whole new header; written in full so that no later slot write can run out of disk space."""
    header = bytearray(HEADER_BYTES)
    offset = slot_offset(allocation.generation)
    header[offset : offset + SLOT_BYTES] = pack_slot(allocation)
    return bytes(header)


def slot_offset(generation: int) -> int:
    """Where the slot of this generation goes; the slot of the generation before it stays intact."""
    return SLOT_OFFSETS[generation & 1]


def unpack_header(raw: bytes) -> Allocation | None:
    """The newest valid slot among the first bytes of a file; None when neither is valid."""
    slots = [slot for offset in SLOT_OFFSETS if (slot := _unpack_slot(raw[offset : offset + SLOT_BYTES]))]
    return max(slots, key=lambda slot: slot.generation, default=None)


def _unpack_slot(raw: bytes) -> Allocation | None:
    fields = raw[: _FIELDS.size]
    if len(raw) != SLOT_BYTES or not raw.startswith(MAGIC):
        return None
    if _CHECKSUM.unpack(raw[_FIELDS.size :])[0] != xxhash.xxh3_64_intdigest(fields):
        return None
    (_, format_, reliability, kind, flags, generation, id_, read, write, manage,
     reads, writes, size, max_size, created, lease_end) = _FIELDS.unpack(fields)  # fmt: skip
    if format_ != FORMAT:
        return None
    return Allocation(
        id=id_, read_digest=read, write_digest=write, manage_digest=manage,
        reliability=Reliability(reliability), kind=AllocationKind(kind), read_count=reads, write_count=writes,
        max_size=max_size, created=created, lease_end=lease_end, size=size,
        read_only=bool(flags & _READ_ONLY), generation=generation,
    )  # fmt: skip
