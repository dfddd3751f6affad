"""Rows of the ledger as its readers and writers hold them."""

from dataclasses import dataclass

from ibpfs.depot.capability import Key
from ibpfs.exnode_store.sealing import SliceForm


@dataclass(frozen=True, slots=True, eq=False)
class SliceRef:
    """A slice as a reader needs it: its form and where its stored bytes begin."""

    row: int
    form: SliceForm
    segment: int
    segment_offset: int


@dataclass(frozen=True, slots=True)
class NewSlice:
    """A run of one file, sealed and acknowledged, to be committed.

    `limit` is where truncations since its sealing have cut it (>= start); `covers` the inode's seq it contains.
    """

    ino: int
    start: int
    limit: int
    covers: int
    form: SliceForm
    digest: bytes
    segment_offset: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a commit of mappings tells of the inode itself (I3); `settled` None while the spool still holds others."""

    mtime_ns: int | None
    ctime_ns: int | None
    version: int
    settled: int | None


@dataclass(frozen=True, slots=True)
class NewReplica:
    """An allocation that is `pending` (row id) and becomes a replica with the first commit into its segment."""

    pending: int
    depot: int
    read: Key
    write: Key
    manage: Key
    lease_end: float | None
    told_at: float
    shard: int | None = None  # None: a whole copy


#: Stands where an imported replica has no capability.
NO_KEY = Key("-", "0")


@dataclass(frozen=True, slots=True)
class Replica:
    """A row of table replicas. `base`: where in the allocation the segment begins; `shard` None: a whole copy."""

    id: int
    segment: int
    depot: int
    read: Key
    write: Key
    manage: Key
    lease_end: float | None
    told_at: float
    suspect: bool
    base: int = 0
    imported: bool = False
    shard: int | None = None

    @property
    def is_managed(self) -> bool:
        return self.manage != NO_KEY


@dataclass(frozen=True, slots=True)
class Orphan:
    """An allocation to release."""

    id: int
    depot: int
    manage: Key


@dataclass(frozen=True, slots=True)
class Holdings:
    """How many allocations a volume has on a depot: replicas of its own making, imported ones, and so on."""

    own: int
    imported: int
    pending: int
    orphans: int


@dataclass(frozen=True, slots=True)
class StoredRun:
    """Where the stored bytes of slice `row` lie in its segment."""

    row: int
    offset: int
    length: int
    digest: bytes


def pack_key(key: Key) -> str:
    return f"{key.key}/{key.type_key}"


def unpack_key(text: str) -> Key:
    key, _, type_key = text.rpartition("/")
    return Key(key, type_key)
