"""The ledger: which bytes of which file lie where, and what each change of that does to slices, segments and leases.

Synchronous; every public method that changes something is one transaction (or joins the caller's). Knows no socket.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ibpfs.depot.capability import Key
from ibpfs.exnode_store.attributes import MAX_SIZE
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.extents import ExtentMap, Piece
from ibpfs.exnode_store.schema import CLOSED, OPEN
from ibpfs.exnode_store.sealing import DIGEST_NAME, SliceForm

#: A transaction that deletes mappings stops here; the rest is a state that a task advances.
MOST_ROWS = 1000
#: Extent maps kept in memory, counted in pieces; of small files a piece takes about 1 KB.
_CACHED_PIECES = 30_000


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


@dataclass(frozen=True, slots=True)
class Replica:
    """A row of table replicas."""

    id: int
    segment: int
    depot: int
    read: Key
    write: Key
    manage: Key
    lease_end: float | None
    told_at: float
    suspect: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """An allocation to release."""

    id: int
    depot: int
    manage: Key


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


class Ledger:
    """Rows of mappings, slices, segments, replicas, pending and orphans."""

    def __init__(self, db: Database, now: Callable[[], float]) -> None:
        self._db = db
        self._now = now
        self._maps: OrderedDict[int, ExtentMap[SliceRef]] = OrderedDict()
        self._map_pieces = 0
        self._lengths: dict[int, int] = {}
        self._replicas: dict[int, list[Replica]] = {}
        self.orphans_waiting = db.value("SELECT count(*) FROM orphans") > 0

    # Reading

    def extents(self, ino: int) -> ExtentMap[SliceRef]:
        """The file's committed bytes. The map is shared: not to be changed, and replaced by any later commit."""
        known = self._maps.get(ino)
        if known is not None:
            self._maps.move_to_end(ino)
            return known
        extents = self._load_extents(ino)
        self._maps[ino] = extents
        self._map_pieces += len(extents)
        while self._map_pieces > _CACHED_PIECES and len(self._maps) > 1:
            _, dropped = self._maps.popitem(last=False)
            self._map_pieces -= len(dropped)
        return extents

    def _load_extents(self, ino: int) -> ExtentMap[SliceRef]:
        rows = self._db.rows(
            "SELECT m.start, m.stop, m.slice_offset, m.covers, s.id, s.slice_id, s.origin, s.epoch, s.function,"
            " s.frame_size, s.length, s.segment, s.segment_offset"
            " FROM mappings m JOIN slices s ON s.id = m.slice WHERE m.ino = ? ORDER BY m.start",
            (ino,),
        )
        refs: dict[int, SliceRef] = {}
        pieces: list[Piece[SliceRef]] = []
        voids = self.voids(ino) if rows else []
        for start, stop, offset, covers, row, *form, segment, segment_offset in rows:
            stop = min([stop, *(at for seq, at in voids if covers <= seq)])
            if stop <= start:
                continue
            if row not in refs:
                refs[row] = SliceRef(row, SliceForm(*form), segment, segment_offset)
            pieces.append(Piece(start, stop, refs[row], offset))
        return ExtentMap(pieces)

    def voids(self, ino: int) -> list[tuple[int, int]]:
        """(covers, start) of the truncations that still matter for this inode's spool records and mappings."""
        return self._db.rows("SELECT covers, start FROM voids WHERE ino = ? ORDER BY covers", (ino,))

    def covered(self, ino: int, start: int, stop: int, seq: int) -> ExtentMap[int]:
        """The parts of [start, stop) that mappings which contain record `seq` hold."""
        rows = self._db.rows(
            f"SELECT start, stop, slice FROM mappings WHERE {_OVERLAPPING} AND covers >= ?",
            (ino, ino, start, stop, start, seq),
        )
        return ExtentMap([Piece(at, end, row, 0) for at, end, row in rows])

    def segment_length(self, segment: int) -> int:
        """Committed bytes of a segment; 0 when it is gone."""
        known = self._lengths.get(segment)
        if known is None:
            known = self._db.value("SELECT length FROM segments WHERE id = ?", (segment,)) or 0
            if len(self._lengths) > 100_000:
                self._lengths.clear()
            self._lengths[segment] = known
        return known

    def replicas(self, segment: int) -> list[Replica]:
        known = self._replicas.get(segment)
        if known is None:
            rows = self._db.rows(f"SELECT {_REPLICA} FROM replicas WHERE segment = ?", (segment,))
            known = [_replica(row) for row in rows]
            if len(self._replicas) > 20_000:
                self._replicas.clear()
            self._replicas[segment] = known
        return known

    def replica(self, replica: int) -> Replica | None:
        row = self._db.row(f"SELECT {_REPLICA} FROM replicas WHERE id = ?", (replica,))
        return None if row is None else _replica(row)

    def leased_replicas(self, depot: int) -> list[Replica]:
        """The replicas on a depot whose lease has an end."""
        rows = self._db.rows(
            f"SELECT {_REPLICA} FROM replicas WHERE depot = ? AND lease_end IS NOT NULL ORDER BY lease_end", (depot,)
        )
        return [_replica(row) for row in rows]

    def shortages(self) -> list[tuple[int, int, int]]:
        """(segment, length, missing replicas) of the closed segments that have too few sound ones."""
        return self._db.rows(
            "SELECT s.id, s.length, p.copies - count(r.id) FROM segments s JOIN policies p ON p.id = s.policy"
            " LEFT JOIN replicas r ON r.segment = s.id AND r.suspect = 0"
            " WHERE s.state = ? AND s.length > 0 GROUP BY s.id HAVING count(r.id) < p.copies",
            (CLOSED,),
        )

    def under_replicated_bytes(self) -> int:
        """Stored bytes of all segments, open ones too, that have fewer sound replicas than their policy asks for."""
        lacking: int = self._db.value(
            "SELECT coalesce(sum(length), 0) FROM (SELECT s.length FROM segments s JOIN policies p ON p.id = s.policy"
            " LEFT JOIN replicas r ON r.segment = s.id AND r.suspect = 0"
            " WHERE s.length > 0 GROUP BY s.id HAVING count(r.id) < p.copies)"
        )
        return lacking

    def packing(self) -> list[tuple[int, int, int, int]]:
        """(segment, policy, length, live) of every closed segment."""
        return self._db.rows("SELECT id, policy, length, live FROM segments WHERE state = ? ORDER BY id", (CLOSED,))

    def stored_slices(self, segment: int) -> list[StoredRun]:
        """The live slices of a segment, in the order of their bytes."""
        rows = self._db.rows(
            "SELECT id, segment_offset, stored_length, digest FROM slices WHERE segment = ? ORDER BY segment_offset",
            (segment,),
        )
        return [StoredRun(*row) for row in rows]

    # Allocations on their way in and out (I4, I5)

    def add_pending(self, allocations: Sequence[tuple[int, Key, Key, Key]]) -> list[int]:
        """Note (depot, read, write, manage) before their leases are extended; return the rows' ids."""
        with self._db.transaction() as db:
            return [
                db.execute(
                    "INSERT INTO pending (depot, read_key, write_key, manage_key, created_at, seq)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (depot, pack_key(read), pack_key(write), pack_key(manage), self._now(), db.seq),
                ).lastrowid
                or 0
                for depot, read, write, manage in allocations
            ]

    def abandon_pending(self, pending: Sequence[int] | None = None) -> int:
        """Turn pending allocations (None: all of them) into orphans; return how many."""
        with self._db.transaction() as db:
            rows = pending
            if rows is None:
                rows = [row for (row,) in db.rows("SELECT id FROM pending")]
            for row in rows:
                db.execute(
                    "INSERT INTO orphans (depot, manage_key, read_key, segment, since, seq)"
                    " SELECT depot, manage_key, read_key, NULL, ?, ? FROM pending WHERE id = ?",
                    (self._now(), db.seq, row),
                )
                db.execute("DELETE FROM pending WHERE id = ?", (row,))
            self.orphans_waiting = self.orphans_waiting or bool(rows)
            return len(rows)

    def orphans(self, limit: int = 100, depots: Sequence[int] | None = None) -> list[Orphan]:
        """Allocations to release, on any depot or on one of `depots`, oldest first.

        They may be released only after a `Database.sync` that followed the call (I5).
        """
        rows = self._db.rows("SELECT id, depot, manage_key FROM orphans ORDER BY id LIMIT ?", (limit,))
        self.orphans_waiting = bool(rows)
        if depots is not None:
            marks = ", ".join("?" * len(depots))
            rows = self._db.rows(
                f"SELECT id, depot, manage_key FROM orphans WHERE depot IN ({marks}) ORDER BY id LIMIT ?",
                (*depots, limit),
            )
        return [Orphan(row, depot, unpack_key(key)) for row, depot, key in rows]

    def forget_orphan(self, orphan: int) -> None:
        with self._db.transaction() as db:
            db.execute("DELETE FROM orphans WHERE id = ?", (orphan,))

    # Segments

    def add_segment(self, policy: int, replicas: Sequence[NewReplica]) -> int:
        """Make pending allocations an open segment; part of the transaction that first maps into it."""
        with self._db.transaction() as db:
            segment = db.execute(
                "INSERT INTO segments (policy, state, length, live, created_at, born, seq)"
                " VALUES (?, ?, 0, 0, ?, ?, ?)",
                (policy, OPEN, self._now(), db.seq, db.seq),
            ).lastrowid
            assert segment is not None
            for replica in replicas:
                self.add_replica(segment, replica)
            return segment

    def add_replica(self, segment: int, new: NewReplica) -> None:
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO replicas (segment, depot, read_key, write_key, manage_key, lease_end, told_at, suspect,"
                " seq) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (segment, new.depot, pack_key(new.read), pack_key(new.write), pack_key(new.manage), new.lease_end,
                 new.told_at, db.seq),
            )  # fmt: skip
            db.execute("DELETE FROM pending WHERE id = ?", (new.pending,))
            self._replicas.pop(segment, None)

    def close_segment(self, segment: int) -> None:
        """No more appends, for good; a segment in which nothing lives is released."""
        with self._db.transaction() as db:
            db.execute("UPDATE segments SET state = ?, seq = ? WHERE id = ?", (CLOSED, db.seq, segment))
            self._release_if_dead(segment)

    def close_all_segments(self) -> list[int]:
        """What a new owner does first: segments have one writer, and it is gone. Returns which were open."""
        with self._db.transaction() as db:
            left_open = [segment for (segment,) in db.rows("SELECT id FROM segments WHERE state = ?", (OPEN,))]
            for segment in left_open:
                self.close_segment(segment)
        return left_open

    def drop_replica(self, replica: Replica) -> None:
        """The allocation no longer holds the whole segment, or never did: release it."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO orphans (depot, manage_key, read_key, segment, since, seq)"
                " SELECT depot, manage_key, read_key, segment, ?, ? FROM replicas WHERE id = ?",
                (self._now(), db.seq, replica.id),
            )
            db.execute("DELETE FROM replicas WHERE id = ?", (replica.id,))
            self._replicas.pop(replica.segment, None)
            self.orphans_waiting = True

    def suspect(self, replica: Replica) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE replicas SET suspect = 1, seq = ? WHERE id = ?", (db.seq, replica.id))
            self._replicas.pop(replica.segment, None)

    def renewed(self, replica: Replica, lease_end: float | None) -> None:
        with self._db.transaction() as db:
            db.execute(
                "UPDATE replicas SET lease_end = ?, told_at = ?, seq = ? WHERE id = ?",
                (lease_end, self._now(), db.seq, replica.id),
            )
            self._replicas.pop(replica.segment, None)

    # Mappings

    def commit(
        self, segment: int, length: int, slices: Sequence[NewSlice], settlements: Callable[[], dict[int, Settlement]]
    ) -> None:
        """Map sealed slices that min_copies depots have acknowledged (I1), in one transaction with size and times (I3).

        `length` is the segment's new length. `settlements` is asked inside the transaction.
        """
        with self._db.transaction() as db:
            live = 0
            for new in slices:
                live += self._map(segment, new)
            db.execute(
                "UPDATE segments SET length = max(length, ?), live = live + ?, seq = ? WHERE id = ?",
                (length, live, db.seq, segment),
            )
            for ino, settlement in settlements().items():
                self._settle(ino, settlement)
            self._release_if_dead(segment)
        self._lengths.pop(segment, None)

    def _map(self, segment: int, new: NewSlice) -> int:
        """Insert the slice and its mappings; return its stored length, or 0 when nothing of it is needed any more."""
        parts = self._uncovered(new)
        if not parts or self._db.value("SELECT 1 FROM inodes WHERE ino = ? AND nlink >= 0", (new.ino,)) is None:
            return 0
        mapped = sum(stop - start for start, stop in parts)
        form = new.form
        row = self._db.execute(
            "INSERT INTO slices (slice_id, epoch, origin, function, frame_size, length, stored_length, digest,"
            " digest_name, segment, segment_offset, mapped, born, seq)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (form.slice_id, form.epoch, form.origin, form.function, form.frame_size, form.length, form.stored_length,
             new.digest, DIGEST_NAME, segment, new.segment_offset, mapped, self._db.seq, self._db.seq),
        ).lastrowid  # fmt: skip
        for start, stop in parts:
            self._clear(new.ino, start, stop)
            self._db.execute(
                "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (new.ino, start, stop, row, start - new.start, new.covers, self._db.seq),
            )
        self._db.execute(
            "UPDATE inodes SET allocated = allocated + ?, size = max(size, ?) WHERE ino = ?",
            (mapped, parts[-1][1], new.ino),
        )
        self._forget_map(new.ino)
        return form.stored_length

    def _uncovered(self, new: NewSlice) -> list[tuple[int, int]]:
        """The runs of the slice that neither a truncation nor a younger mapping has taken."""
        if new.limit <= new.start:
            return []
        younger = self.covered(new.ino, new.start, new.limit, new.covers + 1)
        return younger.holes(new.start, new.limit)

    def _settle(self, ino: int, settlement: Settlement) -> None:
        self._db.execute(
            "UPDATE inodes SET mtime_ns = coalesce(?, mtime_ns), ctime_ns = max(ctime_ns, coalesce(?, ctime_ns)),"
            " version = max(version + 1, ?), spooled = max(spooled, coalesce(?, spooled)), seq = ? WHERE ino = ?",
            (settlement.mtime_ns, settlement.ctime_ns, settlement.version, settlement.settled, self._db.seq, ino),
        )
        if settlement.settled is not None:
            self._drop_voids(ino)

    def _clear(self, ino: int, start: int, stop: int) -> None:
        """Make [start, stop) a hole: cut what overlaps it and let go of the slices below."""
        rows = self._db.rows(
            f"SELECT start, stop, slice, slice_offset, covers FROM mappings WHERE {_OVERLAPPING}",
            (ino, ino, start, stop, start),
        )
        for at, end, row, offset, covers in rows:
            self._db.execute("DELETE FROM mappings WHERE ino = ? AND start = ?", (ino, at))
            for left, right in ((at, min(end, start)), (max(at, stop), end)):
                if left < right:
                    self._db.execute(
                        "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (ino, left, right, row, offset + left - at, covers, self._db.seq),
                    )
            gone = min(end, stop) - max(at, start)
            self._db.execute("UPDATE inodes SET allocated = allocated - ? WHERE ino = ?", (gone, ino))
            self._let_go(row, gone)

    def _let_go(self, row: int, gone: int) -> None:
        mapped, stored_length, segment = self._db.execute(
            "UPDATE slices SET mapped = mapped - ?, seq = ? WHERE id = ? RETURNING mapped, stored_length, segment",
            (gone, self._db.seq, row),
        ).fetchall()[0]
        if mapped > 0:
            return
        self._db.execute("DELETE FROM slices WHERE id = ?", (row,))
        self._db.execute(
            "UPDATE segments SET live = live - ?, seq = ? WHERE id = ?", (stored_length, self._db.seq, segment)
        )
        self._release_if_dead(segment)

    def _release_if_dead(self, segment: int) -> None:
        row = self._db.row("SELECT state, live FROM segments WHERE id = ?", (segment,))
        if row is None or row != (CLOSED, 0):
            return
        for replica in self.replicas(segment):
            self.drop_replica(replica)
        self._db.execute("DELETE FROM segments WHERE id = ?", (segment,))
        self._lengths.pop(segment, None)
        self._replicas.pop(segment, None)

    def move(self, segment: int, length: int, moves: Sequence[tuple[int, int]]) -> None:
        """Slices, (row, new offset), now also lie in `segment`, whose new length is `length`: refer to them there."""
        with self._db.transaction() as db:
            live = 0
            for row, offset in moves:
                found = db.row("SELECT segment, stored_length FROM slices WHERE id = ?", (row,))
                if found is None:  # died meanwhile
                    continue
                old, stored_length = found
                db.execute(
                    "UPDATE slices SET segment = ?, segment_offset = ?, seq = ? WHERE id = ?",
                    (segment, offset, db.seq, row),
                )
                db.execute("UPDATE segments SET live = live - ?, seq = ? WHERE id = ?", (stored_length, db.seq, old))
                self._release_if_dead(old)
                live += stored_length
            db.execute(
                "UPDATE segments SET length = max(length, ?), live = live + ?, seq = ? WHERE id = ?",
                (length, live, db.seq, segment),
            )
        self._lengths.pop(segment, None)
        self._maps.clear()
        self._map_pieces = 0

    def truncate(self, ino: int, size: int, covers: int, *, spooled: bool, voids: bool = True) -> bool:
        """Set the size; void what lies beyond. `covers`: the inode's seq of this change; `spooled`: whether the spool
        holds records of the inode that are not settled; `voids`: whether some of them may reach beyond the size.

        Returns True when more mappings lie beyond than one transaction deletes: then call `cut` until it is False.
        """
        voids = voids and spooled
        with self._db.transaction() as db:
            more = self.unmap(ino, MOST_ROWS, size) == MOST_ROWS
            db.execute(
                "UPDATE inodes SET size = ?, version = max(version + 1, ?), seq = ? WHERE ino = ?",
                (size, covers, db.seq, ino),
            )
            if voids or more:
                db.execute("DELETE FROM voids WHERE ino = ? AND start >= ?", (ino, size))
                db.execute(
                    "INSERT OR REPLACE INTO voids (ino, covers, start, seq) VALUES (?, ?, ?, ?)",
                    (ino, covers, size, db.seq),
                )
            if not spooled:
                db.execute("UPDATE inodes SET spooled = max(spooled, ?) WHERE ino = ?", (covers, ino))
        self._forget_map(ino)
        return more

    def pass_by(self, ino: int, seq: int) -> None:
        """The next change's version is above `seq`: spool records up to it tell nothing of the times any more."""
        with self._db.transaction() as db:
            db.execute("UPDATE inodes SET version = max(version, ?) WHERE ino = ?", (seq, ino))

    def cut(self, ino: int) -> bool:
        """Delete some more mappings that truncations have made void; True while there may be more."""
        with self._db.transaction() as db:
            removed = 0
            for covers, start in self.voids(ino):
                removed += self._unmap_void(ino, covers, start, MOST_ROWS - removed)
            if removed < MOST_ROWS and self._is_settled(ino):
                db.execute("DELETE FROM voids WHERE ino = ?", (ino,))
        self._forget_map(ino)
        return removed >= MOST_ROWS

    def _is_settled(self, ino: int) -> bool:
        row = self._db.row("SELECT spooled, (SELECT max(covers) FROM voids v WHERE v.ino = i.ino) FROM inodes i"
                           " WHERE ino = ?", (ino,))  # fmt: skip
        return row is None or row[1] is None or row[0] >= row[1]

    def voided(self) -> list[int]:
        """Inodes with truncations that the cleaner may still have to finish."""
        return [ino for (ino,) in self._db.rows("SELECT DISTINCT ino FROM voids")]

    def _drop_voids(self, ino: int) -> None:
        for covers, start in self.voids(ino):
            found = self._db.row(
                f"SELECT 1 FROM mappings WHERE {_OVERLAPPING} AND covers <= ? LIMIT 1",
                (ino, ino, start, MAX_SIZE, start, covers),
            )
            if found is None:
                self._db.execute("DELETE FROM voids WHERE ino = ? AND covers = ?", (ino, covers))

    def _unmap_void(self, ino: int, covers: int, start: int, limit: int) -> int:
        rows = self._db.rows(
            f"SELECT start, stop FROM mappings WHERE {_OVERLAPPING} AND covers <= ? ORDER BY start DESC LIMIT ?",
            (ino, ino, start, MAX_SIZE, start, covers, limit),
        )
        for at, stop in rows:
            self._clear(ino, max(at, start), stop)
        return len(rows)

    def unmap(self, ino: int, limit: int, start: int = 0) -> int:
        """Delete up to `limit` mappings at `start` and beyond, from the end; return how many."""
        with self._db.transaction() as db:
            rows = db.rows(
                f"SELECT start, stop FROM mappings WHERE {_OVERLAPPING} ORDER BY start DESC LIMIT ?",
                (ino, ino, start, MAX_SIZE, start, limit),
            )
            for at, stop in rows:
                self._clear(ino, max(at, start), stop)
            self._forget_map(ino)
            return len(rows)

    def _forget_map(self, ino: int) -> None:
        dropped = self._maps.pop(ino, None)
        if dropped is not None:
            self._map_pieces -= len(dropped)


#: Mappings of ? that overlap [?, ?), parameters (ino, ino, start, stop, start). They never overlap each other, so only
#: the last one that begins at or below the start can reach beyond it: the index finds it at once.
_OVERLAPPING = (
    "ino = ? AND start >= coalesce((SELECT max(start) FROM mappings WHERE ino = ? AND start <= ?), 0)"
    " AND start < ? AND stop > ?"
)
_REPLICA = "id, segment, depot, read_key, write_key, manage_key, lease_end, told_at, suspect"


def _replica(row: tuple[int, int, int, str, str, str, float | None, float, int]) -> Replica:
    number, segment, depot, read, write, manage, lease_end, told_at, suspect = row
    keys = unpack_key(read), unpack_key(write), unpack_key(manage)
    return Replica(number, segment, depot, *keys, lease_end, told_at, suspect == 1)
