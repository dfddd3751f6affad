"""The ledger's part in compaction: which files may be due, what they consist of, the exchange of their mappings.

Synchronous, like the ledger; every change is one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ibpfs.exnode_store.compaction import MOST_PARTS, Extent, is_half_dead, may_be_due
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.sealing import NO_DIGEST, SliceForm

#: Extents that one transaction exchanges: each takes up to four rows.
MOST_EXCHANGED = 240
#: Extents of a file that are looked at together.
WINDOW = MOST_PARTS
#: Inodes, or slices, that one query looks at.
_AT_ONCE = 500
#: Slices `s` that may be merged (parameter: now): neither imported nor in a window of an export.
_MOVABLE = (
    f"s.digest_name != '{NO_DIGEST}' AND s.segment NOT IN (SELECT segment FROM windows WHERE until > ?)"
)


@dataclass(frozen=True, slots=True)
class Crowd:
    """A file's extents in figures: enough to tell whether a plan is worth making."""

    ino: int
    extents: int
    allocated: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Merged:
    """A new slice that holds extents of a file, sealed and acknowledged; its segment ends behind it at `end`."""

    form: SliceForm
    digest: bytes
    segment: int
    segment_offset: int
    end: int


@dataclass(slots=True)
class _Run:
    """Bytes [start, stop) of a file, from `offset` of the new slice."""

    start: int
    stop: int
    offset: int
    covers: int


class Merging:
    """Queries and the one change, on the ledger's tables."""

    def __init__(self, db: Database, ledger: Ledger) -> None:
        self._db = db
        self._ledger = ledger

    # Finding

    def touched(self) -> list[Crowd]:
        """Take some of the files whose slices became more or died by half; those that may be due."""
        dead = _some(self._ledger.half_dead)
        crowds = self._crowds(dead + _some(self._ledger.touched))
        return [one for one in crowds if one.ino in dead or may_be_due(one.extents, one.allocated)]

    def crowded_behind(self, ino: int) -> tuple[list[Crowd], int]:
        """Those of the next files by number that may be due; and the last file that was looked at, 0 at the end."""
        inos = [row for (row,) in self._db.rows("SELECT ino FROM inodes WHERE ino > ? ORDER BY ino LIMIT ?",
                                                (ino, _AT_ONCE))]  # fmt: skip
        crowds = [one for one in self._crowds(inos) if may_be_due(one.extents, one.allocated)]
        return crowds, inos[-1] if inos else 0

    def half_dead_behind(self, row: int) -> tuple[list[Crowd], int]:
        """The files of the half-dead among the next slices; and the last slice that was looked at, 0 at the end.

        They are looked for among the slices, not in their files: one file may have a million.
        """
        rows = self._db.rows(
            "SELECT id, length, mapped, born FROM slices WHERE id > ? ORDER BY id LIMIT ?", (row, _AT_ONCE)
        )
        pinned = self._ledger.newest_pin
        dead = [number for number, length, mapped, born in rows if born > pinned and is_half_dead(length, mapped)]
        marks = ", ".join("?" * len(dead))
        inos = self._db.rows(f"SELECT DISTINCT ino FROM mappings WHERE slice IN ({marks})", tuple(dead))
        return self._crowds([ino for (ino,) in inos]), rows[-1][0] if rows else 0

    def _crowds(self, inos: Sequence[int]) -> list[Crowd]:
        rows = self._db.rows(
            "SELECT ino, (SELECT count(*) FROM mappings m WHERE m.ino = i.ino), allocated, ctime_ns"
            f" FROM inodes i WHERE ino IN ({', '.join('?' * len(inos))}) AND nlink > 0 ORDER BY ino",
            tuple(inos),
        )
        return [Crowd(*row) for row in rows]

    def extents(self, ino: int, start: int) -> list[Extent]:
        """The first WINDOW extents of a file at `start` and beyond, without those that stay where they are.

        None while a truncation is being finished. A slice that is pinned counts as whole: writing what lives of it anew
        would free nothing.
        """
        if self._ledger.voids(ino):
            return []
        rows = self._db.rows(
            "SELECT m.start, m.stop, m.slice, m.slice_offset, s.length, iif(s.born <= ?, s.length, s.mapped)"
            f" FROM mappings m JOIN slices s ON s.id = m.slice WHERE m.ino = ? AND m.start >= ? AND {_MOVABLE}"
            " ORDER BY m.start LIMIT ?",
            (self._ledger.newest_pin, ino, start, self._ledger.now(), WINDOW),
        )
        return [Extent(*row) for row in rows]

    def refs(self, parts: Sequence[Extent]) -> dict[int, SliceRef]:
        """The slices of these extents that there still are, where they lie now."""
        rows = sorted({part.slice for part in parts})
        found: dict[int, SliceRef] = {}
        for at in range(0, len(rows), _AT_ONCE):
            some = rows[at : at + _AT_ONCE]
            for row, *form, segment, offset in self._db.rows(
                "SELECT id, slice_id, origin, epoch, function, frame_size, length, segment, segment_offset FROM slices"
                f" WHERE id IN ({', '.join('?' * len(some))})",
                tuple(some),
            ):
                found[row] = SliceRef(row, SliceForm(*form), segment, offset)
        return found

    def crowd(self, ino: int) -> Crowd | None:
        """One file; None when it has no name any more."""
        return next(iter(self._crowds([ino])), None)

    def policy(self, ino: int) -> int | None:
        """The file's policy; None when it has no name any more."""
        number: int | None = self._db.value("SELECT policy FROM inodes WHERE ino = ? AND nlink > 0", (ino,))
        return number

    # Exchanging

    def exchange(self, ino: int, parts: Sequence[tuple[Extent, int]], new: Merged, row: int | None) -> int | None:
        """Let those of the extents that are still mapped as planned refer to the new slice, at the offsets given.

        `row` is the new slice's, once it has one. Returns it; None when nothing is mapped to it. What the file shows
        does not change, nor its times, nor which spool records count as contained.
        """
        with self._db.transaction() as db:
            kept = self._as_planned(ino, parts)
            row = self._hold(new, row, sum(part.size for part, _, _ in kept))
            if row is None:
                return None
            for part, _, _ in kept:
                db.execute("DELETE FROM mappings WHERE ino = ? AND start = ?", (ino, part.start))
                self._ledger.let_go(part.slice, part.size)
            settled: int = db.value("SELECT spooled FROM inodes WHERE ino = ?", (ino,)) or 0
            for run in _joined(kept, settled):
                db.execute(
                    "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (ino, run.start, run.stop, row, run.offset, run.covers, db.seq),
                )
        self._ledger.forget_map(ino)
        return row

    def _as_planned(self, ino: int, parts: Sequence[tuple[Extent, int]]) -> list[tuple[Extent, int, int]]:
        """(extent, offset in the new slice, covers) of those that nobody has changed, or exported, since the plan."""
        if self._ledger.voids(ino):
            return []
        kept, now = [], self._ledger.now()
        for part, at in parts:
            found = self._db.row(
                "SELECT m.stop, m.slice, m.slice_offset, m.covers FROM mappings m JOIN slices s ON s.id = m.slice"
                f" WHERE m.ino = ? AND m.start = ? AND {_MOVABLE}",
                (ino, part.start, now),
            )
            if found is not None and found[:3] == (part.stop, part.slice, part.offset):
                kept.append((part, at, found[3]))
        return kept

    def _hold(self, new: Merged, row: int | None, mapped: int) -> int | None:
        """The new slice's row, with so many more bytes mapped; None when nothing is."""
        db = self._db
        if row is not None:
            changed = db.execute(
                "UPDATE slices SET mapped = mapped + ?, seq = ? WHERE id = ?", (mapped, db.seq, row)
            ).rowcount
            return row if changed else None
        db.execute(
            "UPDATE segments SET length = max(length, ?), live = live + ?, seq = ? WHERE id = ?",
            (new.end, new.form.stored_length if mapped else 0, db.seq, new.segment),
        )
        self._ledger.forget_length(new.segment)
        if not mapped:
            return None
        return self._ledger.add_slice(new.form, new.digest, new.segment, new.segment_offset, mapped)


def _some(inos: set[int]) -> list[int]:
    return [inos.pop() for _ in range(min(_AT_ONCE, len(inos)))]


def _joined(kept: Sequence[tuple[Extent, int, int]], settled: int) -> list[_Run]:
    """Mappings for the extents: one for those that follow each other in the file and in the slice.

    Only where no spool record can tell their `covers` apart: when they are the same, or when all records so far are
    settled (seq <= `settled`), and so neither replayed nor on their way.
    """
    runs: list[_Run] = []
    for part, at, covers in kept:
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.stop == part.start
            and last.offset + last.stop - last.start == at
            and (covers == last.covers or max(covers, last.covers) <= settled)
        ):
            last.stop = part.stop
            last.covers = max(covers, last.covers)
        else:
            runs.append(_Run(part.start, part.stop, at, covers))
    return runs
