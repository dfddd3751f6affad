"""What keeps dead slices from being released: pins on a commit seq (snapshots) and segments that are held (shares).

A slice whose last mapping is gone stays, `died` set, while [born, died) contains a pinned seq or its segment is held.
Its segment lives with it: renewed, repaired and packed like any other; a held one is not packed.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ibpfs.errors import NameExists, NotFound
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.schema import PINS
from ibpfs.exnode_store.segments import Segments

#: Rows that one transaction writes, or one look reads; dead slices of which it deletes, with replicas and all.
_ROWS = 1000
_DELETED = 150
#: Holds of links that are over are held on, under this kind, for so long (seconds) from when that was noticed: such a
#: link may have been extended before a backup was put back, and a mount sees what its record says.
OVER = "expired share"
_MARGIN = 86400.0
_OF_LINKS = "kind = 'share' AND name IN (SELECT id FROM shares)"


@dataclass(frozen=True, slots=True)
class Pin:
    """A row of table pins."""

    id: int
    name: str
    pinned: int


class Pinned(Segments):
    """Adds pins and holds to the segments. What ends is noticed by `release_dead`, a transaction at a time."""

    def __init__(self, db: Database, now: Callable[[], float]) -> None:
        super().__init__(db, now)
        self._load_pins()
        self._looked_to = 0
        # Whether there may be dead slices that nothing keeps any more. They are found from the tables alone.
        self.dead_waiting = db.value("SELECT 1 FROM slices WHERE died IS NOT NULL LIMIT 1") is not None

    def _load_pins(self) -> None:
        db = self._db
        self._pinned: list[int] = [seq for (seq,) in db.rows("SELECT DISTINCT pinned FROM pins ORDER BY pinned")]
        self.newest_pin = self._pinned[-1] if self._pinned else -1
        self._held = {segment for (segment,) in db.rows("SELECT DISTINCT segment FROM held_segments")}
        ends = [db.value(f"SELECT min(until) FROM {table}") for table in ("pins", "held_segments")]
        self._next_end: float = min((end for end in ends if end is not None), default=math.inf)

    # Pins

    def add_pin(self, kind: str, name: str, number: int | None = None) -> Pin:
        """Pin what is committed before the call; `number` is the row's id. NameExists."""
        with self._db.transaction() as db:
            if db.value("SELECT 1 FROM pins WHERE kind = ? AND name = ?", (kind, name)):
                raise NameExists(f"there is a {kind} {name} already")
            self._note_feature()
            row = db.execute(
                "INSERT INTO pins (id, kind, name, pinned, seq) VALUES (?, ?, ?, ?, ?)",
                (number, kind, name, db.seq, db.seq),
            ).lastrowid
            assert row is not None
            pin = Pin(row, name, db.seq)
        self._load_pins()
        return pin

    def pins(self, kind: str) -> list[Pin]:
        """Oldest first."""
        rows = self._db.rows("SELECT id, name, pinned FROM pins WHERE kind = ? ORDER BY pinned", (kind,))
        return [Pin(*row) for row in rows]

    def change_pin(self, pin: int, kind: str) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE pins SET kind = ?, seq = ? WHERE id = ?", (kind, db.seq, pin))

    def drop_pin(self, pin: int) -> None:
        """What only it kept is released by and by."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM pins WHERE id = ?", (pin,))
        self._ended()

    # Held segments

    def hold_segments(self, kind: str, name: str, segments: Sequence[int], until: float | None = None) -> None:
        """Keep segments where they are, and whole as they are now, until then (Unix seconds; None: until let go of).

        Once more under the same kind and name: the later end counts. NotFound when one is gone: then none is held.
        """
        self._check_segments(segments)
        for at in range(0, len(segments), _ROWS):
            with self._db.transaction() as db:
                self._note_feature()
                db.executemany(
                    "INSERT INTO held_segments (kind, name, segment, until, seq) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET seq = excluded.seq, until = CASE"
                    " WHEN until IS NULL OR excluded.until IS NULL THEN NULL ELSE max(until, excluded.until) END",
                    [(kind, name, segment, until, db.seq) for segment in segments[at : at + _ROWS]],
                )
        self._load_pins()

    def _check_segments(self, segments: Sequence[int]) -> None:
        for at in range(0, len(segments), _ROWS):
            some = sorted(set(segments[at : at + _ROWS]))
            marks = ", ".join("?" * len(some))
            known = {row for (row,) in self._db.rows(f"SELECT id FROM segments WHERE id IN ({marks})", tuple(some))}
            if len(known) < len(some):
                raise NotFound(f"segment {min(set(some) - known)} is gone")

    def let_go_of(self, kind: str, name: str) -> None:
        """End a hold; what only it kept is released by and by."""
        self._delete_some("held_segments", "kind = ? AND name = ?", (kind, name))
        self._ended()

    def held(self, kind: str) -> list[tuple[str, float | None, int]]:
        """(name, until, segments) of each hold of this kind."""
        return self._db.rows(
            "SELECT name, CASE WHEN count(until) = count(*) THEN max(until) END, count(*) FROM held_segments"
            " WHERE kind = ? GROUP BY name ORDER BY name",
            (kind,),
        )

    def is_held(self, segment: int) -> bool:
        """Whether somebody else counts on it as it is."""
        return segment in self._held

    # What ends

    def keeps(self, born: int, segment: int) -> bool:
        """Whether a slice that dies now stays."""
        return born <= self.newest_pin or segment in self._held

    def release_dead(self) -> bool:
        """Delete some dead slices that nothing keeps any more; one transaction. False when there are none."""
        if self._next_end <= self.now():
            self._end_what_is_over()
        if not self.dead_waiting:
            return False
        rows = self._db.rows(
            "SELECT id, segment, stored_length, born, died FROM slices WHERE died IS NOT NULL AND id > ?"
            " ORDER BY id LIMIT ?",
            (self._looked_to, _ROWS),
        )
        free = [row for row in rows if not self._keeps_dead(row[3], row[4], row[1])]
        some = free[:_DELETED]
        with self._db.transaction():
            for row, segment, stored_length, _, _ in some:
                self.delete_slice(row, segment, stored_length)
        if len(free) > len(some):
            self._looked_to = some[-1][0]
        else:
            self._looked_to = rows[-1][0] if rows else 0
            self.dead_waiting = len(rows) == _ROWS
        return self.dead_waiting

    def _keeps_dead(self, born: int, died: int, segment: int) -> bool:
        at = bisect_left(self._pinned, born)
        return (at < len(self._pinned) and self._pinned[at] < died) or segment in self._held

    def delete_slice(self, row: int, segment: int, stored_length: int) -> None:
        """Nothing refers to it. Part of the caller's transaction."""
        db = self._db
        db.execute("DELETE FROM imported_keys WHERE slice = ?", (row,))
        db.execute("DELETE FROM slices WHERE id = ?", (row,))
        db.execute("UPDATE segments SET live = live - ?, seq = ? WHERE id = ?", (stored_length, db.seq, segment))
        self._release_if_dead(segment)

    def _end_what_is_over(self) -> None:
        now = self.now()
        self._delete_some("pins", "until <= ?", (now,))
        self._delete_some("held_segments", f"until <= ? AND NOT ({_OF_LINKS})", (now,))
        self._hold_on(now)
        self._ended()

    def _hold_on(self, now: float) -> None:
        """Where it is held on already, as long as a depot leases it, the later end counts."""
        is_more = True
        while is_more:
            with self._db.transaction() as db:
                where = f"until <= ? AND {_OF_LINKS} LIMIT {_ROWS}"
                rows = db.rows(f"SELECT kind, name, segment FROM held_segments WHERE {where}", (now,))
                db.executemany(
                    "INSERT INTO held_segments (kind, name, segment, until, seq) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET seq = excluded.seq, until = max(until, excluded.until)",
                    [(OVER, name, segment, now + _MARGIN, db.seq) for _, name, segment in rows],
                )
                db.executemany("DELETE FROM held_segments WHERE kind = ? AND name = ? AND segment = ?", rows)
                is_more = len(rows) == _ROWS

    def _delete_some(self, table: str, where: str, parameters: tuple[object, ...]) -> None:
        key = "id" if table == "pins" else "kind, name, segment"
        deleted = _ROWS
        while deleted == _ROWS:
            with self._db.transaction() as db:
                deleted = db.execute(
                    f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {where} LIMIT {_ROWS})",
                    parameters,
                ).rowcount

    def _ended(self) -> None:
        self._load_pins()
        self._looked_to = 0
        self.dead_waiting = True

    def dead_bytes(self) -> int:
        """Stored bytes of slices that no file has any more, one copy: what snapshots and holds alone keep."""
        kept: int = self._db.value("SELECT coalesce(sum(stored_length), 0) FROM slices WHERE died IS NOT NULL")
        return kept

    def _note_feature(self) -> None:
        known = self._db.facts.get("features", "").split()
        if PINS not in known:
            self._db.set_fact("features", " ".join([*known, PINS]))

