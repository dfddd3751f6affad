"""Bytes that others stored, as parts of our files: an exNode from outside becomes mappings, nothing is copied.

Raw bytes, or slices that another volume sealed. Beside `Ledger`, which releases and renews what is written here.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ibpfs.depot.capability import Key
from ibpfs.errors import InvalidArgument, VolumeError
from ibpfs.exnode_store.attributes import MAX_SIZE
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import pack_key
from ibpfs.exnode_store.schema import CLOSED, IMPORTS
from ibpfs.exnode_store.sealing import FRAME_SIZE, MAX_SLICE, NO_DIGEST, RAW, ForeignSlice, SliceForm

#: A longer raw part is several segments: deleting a file lets go of them one by one.
LONGEST_PART = 128 * 1024 * 1024
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class ForeignReplica:
    """An allocation on depot row `depot`; the part's stored bytes begin at its byte `base`."""

    depot: int
    base: int
    read: Key
    write: Key
    manage: Key
    lease_end: float | None
    owned: bool


@dataclass(frozen=True, slots=True)
class Part:
    """File bytes [start, stop), raw in every replica, or of a sealed slice that each replica has whole."""

    start: int
    stop: int
    replicas: tuple[ForeignReplica, ...]
    sealed: ForeignSlice | None = None


class Imports:
    """Adopts parts, and knows the keys that came with them."""

    def __init__(self, db: Database, ledger: Ledger, keys: VolumeKeys, volume: bytes) -> None:
        self._db = db
        self._ledger = ledger
        self._keys = keys
        self._volume = volume

    def slice_key(self, epoch: int, slice_id: bytes) -> bytes:
        """The key of any slice here, whoever sealed it."""
        if IMPORTS in self._db.facts.get("features", "").split():
            row = self._db.row(
                "SELECT k.epoch, k.wrapped FROM slices s JOIN imported_keys k ON k.slice = s.id WHERE s.slice_id = ?",
                (slice_id,),
            )
            if row is not None:
                return self._keys.unwrap_import(row[0], slice_id, row[1])
        return self._keys.slice_key(epoch, slice_id)

    def adopt(self, ino: int, parts: Sequence[Part], size: int) -> Iterator[int]:
        """Make an empty file of these bytes; gaps are holes. Yields how many parts are done, between transactions."""
        self._check(ino, parts, size)
        self._note_feature()
        now, done = self._ledger.now(), 0
        for batch in _batches(shorter for part in parts for shorter in _cut(part)):
            with self._db.transaction():
                for part in batch:
                    self._adopt(ino, part, now)
            done += len(batch)
            self._ledger.forget_map(ino)
            yield done
        with self._db.transaction() as db:
            db.update_inode("size = ?, version = version + 1, seq = ?", (size, db.seq, ino))

    def note_adopted(self, ino: int) -> None:
        """The file came with a link: what of it lies on depots of others is to be copied to ours."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO adopted (slice, seq) SELECT DISTINCT s.id, ? FROM mappings m"
                " JOIN slices s ON s.id = m.slice WHERE m.ino = ? AND s.digest_name = ?"
                " AND s.segment IN (SELECT segment FROM imported)",
                (db.seq, ino, NO_DIGEST),
            )

    def _check(self, ino: int, parts: Sequence[Part], size: int) -> None:
        row = self._db.row("SELECT size, mode & 61440 FROM inodes WHERE ino = ?", (ino,))
        if row != (0, 0o100000) or self._db.row("SELECT 1 FROM mappings WHERE ino = ?", (ino,)):
            raise InvalidArgument("bytes are imported into a new, empty file")
        at = 0
        for part in parts:
            if not at <= part.start < part.stop <= size <= MAX_SIZE or not part.replicas:
                raise InvalidArgument("parts of a file follow each other and have replicas")
            at = part.stop
        for part in parts:
            if part.sealed and part.sealed.key is None and part.sealed.form.origin != self._volume:
                raise VolumeError("sealed by another volume, and the exNode carries no key; export it with --with-keys")

    def _note_feature(self) -> None:
        known = self._db.facts.get("features", "").split()
        if IMPORTS not in known:
            with self._db.transaction() as db:
                db.set_fact("features", " ".join([*known, IMPORTS]))

    def _adopt(self, ino: int, part: Part, now: float) -> None:
        policy, version = self._db.rows("SELECT policy, version FROM inodes WHERE ino = ?", (ino,))[0]
        if part.sealed is not None:
            row = self._known(part.sealed.form) or self._sealed_row(part, part.sealed, policy, now)
            self._map(ino, part.start, part.stop, row, part.sealed.offset, version)
            return
        segment = self._segment(policy, part.stop - part.start, part.replicas, now)
        for start in range(part.start, part.stop, MAX_SLICE):
            stop = min(start + MAX_SLICE, part.stop)
            form = SliceForm(os.urandom(16), self._volume, 0, RAW, FRAME_SIZE, stop - start)
            row = self._slice(form, segment, start - part.start)
            self._map(ino, start, stop, row, 0, version)

    def _known(self, form: SliceForm) -> int | None:
        """The slice may be here already: then the file only refers to it."""
        found = self._db.row(
            "SELECT id, origin, epoch, function, frame_size, length FROM slices WHERE slice_id = ?", (form.slice_id,)
        )
        if found is None:
            return None
        if found[1:] != (form.origin, form.epoch, form.function, form.frame_size, form.length):
            raise InvalidArgument("a slice of the same id is here already, and is another one")
        row: int = found[0]
        return row

    def _sealed_row(self, part: Part, sealed: ForeignSlice, policy: int, now: float) -> int:
        segment = self._segment(policy, sealed.form.stored_length, part.replicas, now)
        row = self._slice(sealed.form, segment, 0)
        if sealed.key is not None:
            epoch = self._keys.epoch
            wrapped = self._keys.wrap_import(epoch, sealed.form.slice_id, sealed.key)
            self._db.execute(
                "INSERT INTO imported_keys (slice, epoch, wrapped, seq) VALUES (?, ?, ?, ?)",
                (row, epoch, wrapped, self._db.seq),
            )
        return row

    def _segment(self, policy: int, length: int, replicas: Sequence[ForeignReplica], now: float) -> int:
        seq = self._db.seq
        segment = self._db.execute(
            "INSERT INTO segments (policy, state, length, live, created_at, born, seq) VALUES (?, ?, ?, 0, ?, ?, ?)",
            (policy, CLOSED, length, now, seq, seq),
        ).lastrowid
        assert segment is not None
        for one in replicas:
            replica = self._db.execute(
                "INSERT INTO replicas (segment, depot, read_key, write_key, manage_key, lease_end, told_at, suspect,"
                " seq) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (segment, one.depot, pack_key(one.read), pack_key(one.write), pack_key(one.manage), one.lease_end, now,
                 seq),
            ).lastrowid  # fmt: skip
            self._db.execute(
                "INSERT INTO imported (replica, segment, base, owned, allocation, seq) VALUES (?, ?, ?, ?, ?, ?)",
                (replica, segment, one.base, one.owned, one.read.label, seq),
            )
        return segment

    def _slice(self, form: SliceForm, segment: int, offset: int) -> int:
        sql = "UPDATE segments SET live = live + ? WHERE id = ?"
        self._db.execute(sql, (form.stored_length, segment))
        return self._ledger.add_slice(form, b"", segment, offset, 0)

    def _map(self, ino: int, start: int, stop: int, row: int, offset: int, version: int) -> None:
        self._db.execute("UPDATE slices SET mapped = mapped + ? WHERE id = ?", (stop - start, row))
        self._db.execute(
            "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (ino, start, stop, row, offset, version, self._db.seq),
        )
        self._db.update_inode("allocated = allocated + ?, size = ?", (stop - start, stop, ino))


def describe_imports(db: Database, ino: int) -> Mapping[str, object] | None:
    """What is special about a file with imported bytes; None when it has none."""
    row = db.row(
        "SELECT count(DISTINCT i.replica), count(DISTINCT CASE WHEN r.manage_key = '-/0' THEN r.id END), sum(i.owned),"
        f" count(DISTINCT CASE WHEN s.function = {RAW} THEN s.id END), min(r.lease_end)"
        " FROM mappings m JOIN slices s ON s.id = m.slice JOIN imported i ON i.segment = s.segment"
        " JOIN replicas r ON r.id = i.replica WHERE m.ino = ?", (ino,)
    )  # fmt: skip
    if row is None or not row[0]:
        return None
    replicas, unmanaged, owned, raw, lease_end = row
    return {
        "allocations": replicas, "not_renewable": unmanaged, "owned": bool(owned), "unverified_slices": raw,
        "earliest_lease_end": lease_end,
    }  # fmt: skip


def _cut(part: Part) -> Iterator[Part]:
    if part.sealed is not None or part.stop - part.start <= LONGEST_PART:
        yield part
        return
    for start in range(part.start, part.stop, LONGEST_PART):
        moved = tuple(_moved(replica, start - part.start) for replica in part.replicas)
        yield Part(start, min(start + LONGEST_PART, part.stop), moved)


def _moved(replica: ForeignReplica, by: int) -> ForeignReplica:
    one = replica
    return ForeignReplica(one.depot, one.base + by, one.read, one.write, one.manage, one.lease_end, one.owned)


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    rows = 0
    for part in parts:
        more = 1 + 2 * len(part.replicas) + 2 * -(-(part.stop - part.start) // MAX_SLICE)
        if batch and rows + more > _ROWS_AT_ONCE:
            yield batch
            batch, rows = [], 0
        batch.append(part)
        rows += more
    if batch:
        yield batch
