"""The ledger: which bytes of which file lie where, and what each change of that does to slices, segments and leases.

Synchronous; every public method that changes something is one transaction (or joins the caller's). Knows no socket.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ibpfs.exnode_store.attributes import COLUMNS, MAX_SIZE
from ibpfs.exnode_store.compaction import is_half_dead
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.extents import ExtentMap, Piece
from ibpfs.exnode_store.ledger_rows import NewSlice, Settlement, SliceRef
from ibpfs.exnode_store.pins import Pinned
from ibpfs.exnode_store.sealing import DIGEST_NAME, NO_DIGEST, SliceForm

#: A transaction that deletes mappings stops here; the rest is a state that a task advances. Each changes five rows (its
#: own, the slice's twice, those of segment and file), and up to ten where a segment with its copies goes with it: no
#: transaction changes more than 1,000.
MOST_MAPPINGS = 100
#: Extent maps kept in memory, counted in pieces; of small files a piece takes about 1 KB.
_CACHED_PIECES = 30_000

_ALLOCATED = COLUMNS.split(", ").index("allocated")

_Mapping = tuple[int, int, int, int, int]  # start, stop, slice, slice_offset, covers


@dataclass(slots=True)
class _Sums:
    """What a transaction does to rows that many of its mappings have in common: 256 random writes into one slice change
    its row, and the inode's, once, where each took five statements more."""

    allocated: Counter[int] = field(default_factory=Counter)  # bytes, by inode
    size: dict[int, int] = field(default_factory=dict)  # at least, by inode
    gone: Counter[tuple[int, int]] = field(default_factory=Counter)  # bytes no longer mapped, by slice and inode


class Ledger(Pinned):
    """Mappings and slices of files, above the segments that hold them."""

    def __init__(self, db: Database, now: Callable[[], float]) -> None:
        super().__init__(db, now)
        self._maps: OrderedDict[int, ExtentMap[SliceRef]] = OrderedDict()
        self._map_pieces = 0
        # Nearly no inode has voids, and each slice asks for them; whoever had some stays here.
        self._maybe_voided = {ino for (ino,) in db.rows("SELECT DISTINCT ino FROM voids")}
        # What compaction asks for and takes away: files whose slices became more, or died by more than half.
        self.touched: set[int] = set()
        self.half_dead: set[int] = set()
        self.moves = 0  # how often slices have come to lie in other segments

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

    def short_slices(self, ino: int) -> list[tuple[int, int, SliceRef]]:
        """(start in the file, covers, slice) of the file's slices in segments that lack copies, by covers."""
        rows = self._db.rows(
            "SELECT min(m.start - m.slice_offset), min(m.covers), s.id, s.slice_id, s.origin, s.epoch, s.function,"
            " s.frame_size, s.length, s.segment, s.segment_offset"
            " FROM mappings m JOIN slices s ON s.id = m.slice WHERE m.ino = ? GROUP BY s.id ORDER BY 2, s.id",
            (ino,),
        )
        short = {segment for segment in {row[-2] for row in rows} if self.is_short(segment)}
        return [
            (start, covers, SliceRef(row, SliceForm(*form), segment, offset))
            for start, covers, row, *form, segment, offset in rows
            if segment in short
        ]

    def segment_of(self, slice_id: bytes) -> int | None:
        """Where a slice lies now; None when it is dead."""
        segment: int | None = self._db.value("SELECT segment FROM slices WHERE slice_id = ?", (slice_id,))
        return segment

    def stored_digest(self, slice_id: bytes) -> bytes | None:
        found: bytes | None = self._db.value("SELECT digest FROM slices WHERE slice_id = ?", (slice_id,))
        return found

    def voids(self, ino: int) -> list[tuple[int, int]]:
        """(covers, start) of the truncations that still matter for this inode's spool records and mappings."""
        if ino not in self._maybe_voided:
            return []
        return self._db.rows("SELECT covers, start FROM voids WHERE ino = ? ORDER BY covers", (ino,))

    def covered(self, ino: int, start: int, stop: int, seq: int) -> ExtentMap[int]:
        """The parts of [start, stop) that mappings which contain record `seq` hold."""
        rows = self._db.rows(
            f"SELECT start, stop, slice FROM mappings WHERE {_OVERLAPPING} AND covers >= ?",
            (ino, ino, start, stop, start, seq),
        )
        return ExtentMap([Piece(at, end, row, 0) for at, end, row in rows])

    # Mappings

    def commit(
        self, segment: int, length: int, slices: Sequence[NewSlice], settlements: Callable[[], dict[int, Settlement]]
    ) -> None:
        """Map sealed slices that min_copies depots have acknowledged (I1), in one transaction with size and times (I3).

        `length` is the segment's new length. `settlements` is asked inside the transaction.
        """
        with self._db.transaction() as db:
            sums = _Sums()
            live = sum([self._map(segment, new, sums) for new in slices])
            db.execute(
                "UPDATE segments SET length = max(length, ?), live = live + ?, seq = ? WHERE id = ?",
                (length, live, db.seq, segment),
            )
            for ino, settlement in settlements().items():
                self._settle(ino, settlement, sums.allocated.pop(ino, 0), sums.size.get(ino, 0))
            self._book(sums)
            if not live:
                self._release_if_dead(segment)
        self._lengths.pop(segment, None)

    def _map(self, segment: int, new: NewSlice, sums: "_Sums") -> int:
        """Insert the slice and its mappings; return its stored length, or 0 when nothing of it is needed any more."""
        below = [] if self._is_empty(new.ino, sums) else self._overlapping(new.ino, new.start, new.limit)
        parts = _uncovered(new, below)
        if not parts or not self._has_inode(new.ino):
            return 0
        mapped = sum([stop - start for start, stop in parts])
        row = self.add_slice(new.form, new.digest, segment, new.segment_offset, mapped)
        for start, stop in parts:
            if below:
                self._cut_out(new.ino, start, stop, sums, below if len(parts) == 1 else None)
            self._db.execute(
                "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (new.ino, start, stop, row, start - new.start, new.covers, self._db.seq),
            )
        sums.allocated[new.ino] += mapped
        sums.size[new.ino] = max(sums.size.get(new.ino, 0), parts[-1][1])
        self.forget_map(new.ino)
        if new.start:
            self.touched.add(new.ino)
        return new.form.stored_length

    def add_slice(self, form: SliceForm, check: bytes, segment: int, offset: int, mapped: int) -> int:
        """Part of the transaction that maps `mapped` bytes of it; the segment's row is the caller's. `check` is empty
        when others stored it."""
        row = self._db.execute(
            "INSERT INTO slices (slice_id, epoch, origin, function, frame_size, length, stored_length, digest,"
            " digest_name, segment, segment_offset, mapped, born, seq)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (form.slice_id, form.epoch, form.origin, form.function, form.frame_size, form.length, form.stored_length,
             check, DIGEST_NAME if check else NO_DIGEST, segment, offset, mapped, self._db.seq, self._db.seq),
        ).lastrowid  # fmt: skip
        assert row is not None
        return row

    def _is_empty(self, ino: int, sums: "_Sums") -> bool:
        """Whether nothing of it is mapped, as far as that is known without a look at the tables."""
        row = self._db.remembered.rows.get(ino)
        return row is not None and row[_ALLOCATED] == 0 and ino not in sums.allocated

    def _has_inode(self, ino: int) -> bool:
        return ino in self._db.remembered.rows or self._db.row("SELECT 1 FROM inodes WHERE ino = ?", (ino,)) is not None

    def _overlapping(self, ino: int, start: int, stop: int) -> list[_Mapping]:
        """The mappings that overlap [start, stop)."""
        return self._db.rows(
            f"SELECT start, stop, slice, slice_offset, covers FROM mappings WHERE {_OVERLAPPING}",
            (ino, ino, start, stop, start),
        )

    def _settle(self, ino: int, settlement: Settlement, allocated: int, size: int) -> None:
        """With so many bytes more that are allocated, and at least this size."""
        rows = self._db.execute_remembered(
            "UPDATE inodes SET allocated = allocated + ?, size = max(size, ?),"
            " mtime_ns = coalesce(?, mtime_ns), ctime_ns = max(ctime_ns, coalesce(?, ctime_ns)),"
            " version = max(version + 1, ?), spooled = max(spooled, coalesce(?, spooled)), seq = ?"
            f" WHERE ino = ? RETURNING {COLUMNS}",
            (allocated, size, settlement.mtime_ns, settlement.ctime_ns, settlement.version, settlement.settled,
             self._db.seq, ino),
        ).fetchall()  # fmt: skip
        for row in rows:
            self._db.remembered.keep(ino, row)  # the file is closed next, or asked for
        if settlement.settled is not None:
            self._drop_voids(ino)

    def _clear(self, ino: int, start: int, stop: int) -> None:
        """Make [start, stop) a hole: cut what overlaps it and let go of the slices below."""
        sums = _Sums()
        self._cut_out(ino, start, stop, sums)
        self._book(sums)

    def _cut_out(self, ino: int, start: int, stop: int, sums: "_Sums", below: list[_Mapping] | None = None) -> None:
        """Cut the mappings that overlap [start, stop), which are `below` if the caller knows them; what goes is only
        noted in `sums`."""
        for at, end, row, offset, covers in self._overlapping(ino, start, stop) if below is None else below:
            if end <= start or at >= stop:
                continue
            if at < start:
                self._db.execute(
                    "UPDATE mappings SET stop = ?, seq = ? WHERE ino = ? AND start = ?", (start, self._db.seq, ino, at)
                )
            else:
                self._db.execute("DELETE FROM mappings WHERE ino = ? AND start = ?", (ino, at))
            if end > stop:
                self._db.execute(
                    "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (ino, stop, end, row, offset + stop - at, covers, self._db.seq),
                )
            gone = min(end, stop) - max(at, start)
            sums.allocated[ino] -= gone
            sums.gone[row, ino] += gone

    def _book(self, sums: "_Sums") -> None:
        for ino, allocated in sums.allocated.items():
            self._db.update_inode(
                "allocated = allocated + ?, size = max(size, ?)", (allocated, sums.size.get(ino, 0), ino)
            )
        for (row, ino), gone in sums.gone.items():
            if self.let_go(row, gone):
                self.half_dead.add(ino)

    def let_go(self, row: int, gone: int) -> bool:
        """So many bytes of the slice are mapped no more. True when what is left of it is worth moving."""
        length, mapped, stored_length, segment, born = self._db.execute(
            "UPDATE slices SET mapped = mapped - ?, seq = ? WHERE id = ?"
            " RETURNING length, mapped, stored_length, segment, born",
            (gone, self._db.seq, row),
        ).fetchall()[0]
        if mapped > 0:
            return is_half_dead(length, mapped) and not self.keeps(born, segment)
        if self.keeps(born, segment):
            self._db.execute("UPDATE slices SET died = ? WHERE id = ?", (self._db.seq, row))
        else:
            self.delete_slice(row, segment, stored_length)
        return False

    def move(self, segment: int, length: int, moves: Sequence[tuple[int, int]]) -> None:
        """Slices, (row, new offset), now also lie in `segment`, whose new length is `length`: refer to them there.

        Not to those that are gone, or in a segment that has a window or is held now.
        """
        with self._db.transaction() as db:
            live = 0
            for row, offset in moves:
                found = db.row(
                    "SELECT segment, stored_length FROM slices WHERE id = ?"
                    " AND segment NOT IN (SELECT segment FROM windows WHERE until > ?)", (row, self.now())
                )  # fmt: skip
                if found is None or found[0] in self._held:
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
        self.moves += 1

    def truncate(self, ino: int, size: int, covers: int, *, spooled: bool, voids: bool = True) -> bool:
        """Set the size; void what lies beyond. `covers`: the inode's seq of this change; `spooled`: whether the spool
        holds records of the inode that are not settled; `voids`: whether some of them may reach beyond the size.

        Returns True when more mappings lie beyond than one transaction deletes: then call `cut` until it is False.
        """
        voids = voids and spooled
        with self._db.transaction() as db:
            more = self.unmap(ino, MOST_MAPPINGS, size) == MOST_MAPPINGS
            db.update_inode("size = ?, version = max(version + 1, ?), seq = ?", (size, covers, db.seq, ino))
            if voids or more:
                self._maybe_voided.add(ino)
                db.execute("DELETE FROM voids WHERE ino = ? AND start >= ?", (ino, size))
                db.execute(
                    "INSERT OR REPLACE INTO voids (ino, covers, start, seq) VALUES (?, ?, ?, ?)",
                    (ino, covers, size, db.seq),
                )
            if not spooled:
                db.update_inode("spooled = max(spooled, ?)", (covers, ino))
        self.forget_map(ino)
        return more

    def cut(self, ino: int, *, idle: bool = False) -> bool:
        """Delete some more mappings that truncations have made void; True while there may be more.

        `idle`: all that the spool holds of the inode is in mappings, or void.
        """
        with self._db.transaction() as db:
            removed = 0
            for covers, start in self.voids(ino):
                removed += self._unmap_void(ino, covers, start, MOST_MAPPINGS - removed)
            if idle:
                covered = "SELECT max(covers) FROM voids v WHERE v.ino = inodes.ino"
                db.update_inode(f"spooled = max(spooled, coalesce(({covered}), 0))", (ino,))
            if removed < MOST_MAPPINGS and self._is_settled(ino):
                db.execute("DELETE FROM voids WHERE ino = ?", (ino,))
        self.forget_map(ino)
        return removed >= MOST_MAPPINGS

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
            if rows:
                self.forget_map(ino)
            return len(rows)

    def forget_map(self, ino: int) -> None:
        """The file's mappings have changed."""
        dropped = self._maps.pop(ino, None)
        if dropped is not None:
            self._map_pieces -= len(dropped)


def _uncovered(new: NewSlice, below: Sequence[_Mapping]) -> list[tuple[int, int]]:
    """The runs of the slice that neither a truncation nor a younger mapping has taken."""
    if new.limit <= new.start:
        return []
    younger = [Piece(at, end, row, 0) for at, end, row, _, covers in below if covers > new.covers]
    return ExtentMap(younger).holes(new.start, new.limit) if younger else [(new.start, new.limit)]


#: Mappings of ? that overlap [?, ?), parameters (ino, ino, start, stop, start). They never overlap each other, so only
#: the last one that begins at or below the start can reach beyond it: the index finds it at once.
_OVERLAPPING = (
    "ino = ? AND start >= coalesce((SELECT max(start) FROM mappings WHERE ino = ? AND start <= ?), 0)"
    " AND start < ? AND stop > ?"
)
