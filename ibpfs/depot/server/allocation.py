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

from ibpfs.depot.wire.digests import Checksum, DigestType
from ibpfs.depot.wire.protocol import AllocationKind, Reliability

MAGIC = b"ibpfsAL1"
FORMAT = 1  # a byte array or BUFFER and nothing more
EXTENDED_FORMAT = 2  # with the fields of queues, digests and aliases
HEADER_BYTES = 4096  # data begin page-aligned, so a header write dirties exactly one page
SLOT_OFFSETS = (0, 2048)
PERMANENT = math.inf

# magic, format, reliability, kind, flags, generation, id, digests of the read, write and manage key,
# read count, write count, size, max size, created, lease end
_FIELDS = struct.Struct("<8sHBBBxxxQ16s32s32s32sIIQQdd")
# head, digest type, digest block size, first and end of the stale blocks, parent, window's offset and length
_EXTENSION = struct.Struct("<QBxxxIQQ16sQQ")
_CHECKSUM = struct.Struct("<Q")
SLOT_BYTES = _FIELDS.size + _EXTENSION.size + _CHECKSUM.size  # at most a sector, which is never torn
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
    head: int = 0  # of a queue: where in its ring the oldest byte is
    checksum: Checksum | None = None
    stale: tuple[int, int] = (0, 0)  # digests of these blocks (first, end) may not fit their data
    parent: bytes = b""  # of an alias: the id of the allocation that it shows
    window: tuple[int, int] = (0, 0)  # of an alias: offset and length, 0 = all
    laid: int = 0  # up to where zeros lie in the file behind its bytes; in memory alone
    gone: bool = field(default=False)  # deleted while somebody still holds this object

    @property
    def label(self) -> str:
        """Names the allocation in logs; grants nothing."""
        return self.manage_digest[:4].hex()

    @property
    def stable(self) -> bool:
        return self.reliability is Reliability.STABLE

    @property
    def is_alias(self) -> bool:
        return bool(self.parent)

    @property
    def ring(self) -> int:
        """Bytes of a queue's file. A circular queue needs twice its size: what is pushed off stays until the new
        bytes are there."""
        return 2 * self.max_size if self.kind is AllocationKind.CIRCULAR_QUEUE else self.max_size

    @property
    def charge(self) -> int:
        """What it takes of the capacity."""
        return self.charge_for(self.max_size)

    def charge_for(self, max_size: int) -> int:
        if self.is_alias:
            return HEADER_BYTES  # its file
        if self.checksum is None:
            return max_size
        return max_size + self.checksum.blocks(max_size) * self.checksum.digest_size

    def ended(self, now: float) -> bool:
        return self.lease_end <= now

    def __repr__(self) -> str:
        return f"<allocation {self.label}>"


def pack_slot(allocation: Allocation) -> bytes:
    """The allocation as one slot of its header."""
    extension = _pack_extension(allocation)
    fields = _FIELDS.pack(
        MAGIC, EXTENDED_FORMAT if extension else FORMAT, allocation.reliability, allocation.kind,
        _READ_ONLY if allocation.read_only else 0, allocation.generation, allocation.id,
        allocation.read_digest, allocation.write_digest, allocation.manage_digest,
        allocation.read_count, allocation.write_count, allocation.size, allocation.max_size,
        allocation.created, allocation.lease_end,
    )  # fmt: skip
    return fields + extension + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields + extension))


def _pack_extension(allocation: Allocation) -> bytes:
    if not (allocation.kind.is_queue or allocation.checksum or allocation.is_alias):
        return b""
    kept = allocation.checksum
    return _EXTENSION.pack(
        allocation.head, kept.type if kept else 0, kept.block_size if kept else 0, *allocation.stale,
        allocation.parent, *allocation.window,
    )  # fmt: skip


def pack_header(allocation: Allocation) -> bytes:
    """A whole new header; written in full so that no later slot write can run out of disk space."""
    header = bytearray(HEADER_BYTES)
    offset = slot_offset(allocation.generation)
    slot = pack_slot(allocation)
    header[offset : offset + len(slot)] = slot
    return bytes(header)


def slot_offset(generation: int) -> int:
    """Where the slot of this generation goes; the slot of the generation before it stays intact."""
    return SLOT_OFFSETS[generation & 1]


def unpack_header(raw: bytes) -> Allocation | None:
    """The newest valid slot among the first bytes of a file; None when neither is valid."""
    slots = [slot for offset in SLOT_OFFSETS if (slot := _unpack_slot(raw[offset : offset + SLOT_BYTES]))]
    return max(slots, key=lambda slot: slot.generation, default=None)


def _unpack_slot(raw: bytes) -> Allocation | None:
    if len(raw) != SLOT_BYTES or not raw.startswith(MAGIC):
        return None
    (_, format_, reliability, kind, flags, generation, id_, read, write, manage,
     reads, writes, size, max_size, created, lease_end) = _FIELDS.unpack_from(raw)  # fmt: skip
    if format_ not in (FORMAT, EXTENDED_FORMAT):
        return None
    end = _FIELDS.size + (_EXTENSION.size if format_ == EXTENDED_FORMAT else 0)
    if _CHECKSUM.unpack_from(raw, end)[0] != xxhash.xxh3_64_intdigest(raw[:end]):
        return None
    allocation = Allocation(
        id=id_, read_digest=read, write_digest=write, manage_digest=manage,
        reliability=Reliability(reliability), kind=AllocationKind(kind), read_count=reads, write_count=writes,
        max_size=max_size, created=created, lease_end=lease_end, size=size,
        read_only=bool(flags & _READ_ONLY), generation=generation,
    )  # fmt: skip
    if format_ == EXTENDED_FORMAT:
        _unpack_extension(allocation, raw)
    return allocation


def _unpack_extension(allocation: Allocation, raw: bytes) -> None:
    head, digest_type, block_size, first, end, parent, offset, length = _EXTENSION.unpack_from(raw, _FIELDS.size)
    allocation.head = head
    allocation.checksum = Checksum(DigestType(digest_type), block_size) if digest_type else None
    allocation.stale = first, end
    allocation.parent = parent if any(parent) else b""
    allocation.window = offset, length
