"""The ledger's rows of segments and the allocations that hold them: replicas, pending, orphans. Knows no file."""

import math
from collections.abc import Callable, Sequence

from ibpfs.depot.capability import Key
from ibpfs.exnode_store.coded_rows import CodedRows, survivors
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.erasure import Coded
from ibpfs.exnode_store.ledger_rows import Holdings, NewReplica, Orphan, Replica, StoredRun, pack_key, unpack_key
from ibpfs.exnode_store.schema import CLOSED, OPEN
from ibpfs.exnode_store.sealing import Buffer

#: Above the number of every commit.
LAST_COMMIT = 1 << 62


class Segments(CodedRows):
    """Segments, replicas, pending and orphans. Every method that changes something is (or joins) one transaction."""

    def __init__(self, db: Database, now: Callable[[], float]) -> None:
        super().__init__(db, now)
        self._lengths: dict[int, int] = {}
        self._replicas: dict[int, list[Replica]] = {}
        self.orphans_waiting = db.value("SELECT count(*) FROM orphans") > 0

    def segment_length(self, segment: int) -> int:
        """Committed bytes of a segment; 0 when it is gone."""
        known = self._lengths.get(segment)
        if known is None:
            known = self._db.value("SELECT length FROM segments WHERE id = ?", (segment,)) or 0
            if len(self._lengths) > 100_000:
                self._lengths.clear()
            self._lengths[segment] = known
        return known

    def forget_length(self, segment: int) -> None:
        """A transaction has changed it."""
        self._lengths.pop(segment, None)

    def replicas(self, segment: int) -> list[Replica]:
        known = self._replicas.get(segment)
        if known is None:
            rows = self._db.rows(f"{_REPLICA} WHERE r.segment = ?", (segment,))
            known = [_replica(row) for row in rows]
            if len(self._replicas) > 20_000:
                self._replicas.clear()
            self._replicas[segment] = known
        return known

    def replica(self, replica: int) -> Replica | None:
        row = self._db.row(f"{_REPLICA} WHERE r.id = ?", (replica,))
        return None if row is None else _replica(row)

    def own_replicas(self, depot: int) -> list[Replica]:
        """The replicas of our making on a depot, in the order of their segments."""
        rows = self._db.rows(f"{_REPLICA} WHERE r.depot = ? AND i.base IS NULL ORDER BY r.segment", (depot,))
        return [_replica(row) for row in rows]

    def movable_replicas(self, depot: int, limit: int) -> list[Replica]:
        """The first of those whose segments are closed."""
        rows = self._db.rows(
            f"{_REPLICA} JOIN segments s ON s.id = r.segment WHERE r.depot = ? AND i.base IS NULL AND s.state = ?"
            " ORDER BY r.segment LIMIT ?",
            (depot, CLOSED, limit),
        )
        return [_replica(row) for row in rows]

    def holdings(self, depot: int) -> Holdings:
        """What the volume has on a depot."""
        counts = self._db.row(
            "SELECT (SELECT count(*) FROM replicas WHERE depot = ? AND id NOT IN (SELECT replica FROM imported)),"
            " (SELECT count(*) FROM replicas WHERE depot = ? AND id IN (SELECT replica FROM imported)),"
            " (SELECT count(*) FROM pending WHERE depot = ?), (SELECT count(*) FROM orphans WHERE depot = ?)",
            (depot, depot, depot, depot),
        )
        assert counts is not None
        return Holdings(*counts)

    def forget_orphans_on(self, depot: int) -> None:
        """They end with their leases."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM orphans WHERE depot = ?", (depot,))

    def leased_replicas(self, depot: int, half_run: float = math.inf, told_before: float = -math.inf) -> list[Replica]:
        """The replicas on a depot whose lease has an end, and can be renewed; with half of it run by a point in time.

        Those too, whatever the time, whose end was told after that point, or before `told_before`. Measured with
        128,000 of them (1 TB in two copies): all take 1 s, that none is due is found in 20 ms.
        """
        rows = self._db.rows(
            f"{_REPLICA} WHERE r.depot = ? AND r.lease_end IS NOT NULL"
            " AND ((r.told_at + r.lease_end) / 2 <= ? OR r.told_at > ? OR r.told_at < ?) ORDER BY r.lease_end",
            (depot, half_run, half_run, told_before),
        )
        return [replica for replica in map(_replica, rows) if replica.is_managed]

    def shortages(self) -> list[tuple[int, int, int, int]]:
        """(segment, length, missing replicas, how many more may be lost) of the closed segments that have too few sound
        ones."""
        return self._db.rows(
            f"SELECT s.id, s.length, {_WANTED} - {_SOUND}, {_SOUND} - coalesce(c.k, 1) {_FROM}"
            f" WHERE s.state = ? AND s.length > 0 AND {_OWN} GROUP BY s.id HAVING {_SOUND} < {_WANTED}",
            (CLOSED,),
        )

    def under_replicated_bytes(self) -> int:
        """Stored bytes of all segments, open ones too, that have fewer sound replicas than their policy asks for."""
        lacking: int = self._db.value(
            f"SELECT coalesce(sum(length), 0) FROM (SELECT s.length {_FROM}"
            f" WHERE s.length > 0 AND {_OWN} GROUP BY s.id HAVING {_SOUND} < {_WANTED})"
        )
        return lacking

    @property
    def segments(self) -> int:
        """How many there are of our own, open ones too."""
        count: int = self._db.value(f"SELECT count(*) FROM segments s WHERE {_OWN}")
        return count

    @property
    def last_segment(self) -> int:
        """The highest number that any segment ever had."""
        return self._db.value("SELECT seq FROM sqlite_sequence WHERE name = 'segments'") or 0

    def is_open(self, segment: int) -> bool:
        return bool(self._db.value("SELECT state FROM segments WHERE id = ?", (segment,)) == OPEN)

    def is_short(self, segment: int) -> bool:
        """Whether a segment, if it stands, has fewer sound replicas than its policy, or its code, asks for."""
        sound = [one for one in self.replicas(segment) if not one.suspect]
        if self.coded(segment) is not None:
            return bool(set(self.shards(segment)) - {one.shard for one in sound})
        return len(sound) < self.wanted_copies(segment)

    def wanted_alike(self, segment: int) -> int:
        """How many replicas that hold the same are wanted: of each shard one."""
        return 1 if self.coded(segment) is not None else self.wanted_copies(segment)

    def spare(self, segment: int, without: Replica | None = None) -> int:
        """How many sound replicas may be lost, `without` not counted; less than 0: the bytes are."""
        sound = [one for one in self.replicas(segment) if not one.suspect and (not without or one.id != without.id)]
        return survivors(sound, self.coded(segment))

    def stored_length(self, replica: Replica) -> int:
        """Bytes that its allocation holds."""
        coded = self.coded(replica.segment) if replica.shard is not None else None
        return self.segment_length(replica.segment) if coded is None else coded.shard_length

    def wanted_copies(self, segment: int) -> int:
        """How many its policy asks for; 0 when it is gone."""
        copies: int | None = self._db.value(
            "SELECT p.copies FROM segments s JOIN policies p ON p.id = s.policy WHERE s.id = ?", (segment,)
        )
        return copies or 0

    def policy_of(self, segment: int) -> int:
        """The number of its policy; the volume's default when it is gone."""
        return self._db.value("SELECT policy FROM segments WHERE id = ?", (segment,)) or 1

    def live_bytes(self) -> int:
        """Stored bytes of slices, pinned ones too, one copy; imported ones take nobody's room here."""
        live: int = self._db.value(f"SELECT coalesce(sum(s.live), 0) FROM segments s WHERE {_OWN}")
        return live

    def packing(self) -> list[tuple[int, int, int, int]]:
        """(segment, policy, length, live) of every closed segment of our own that may be moved."""
        return self._db.rows(
            f"SELECT s.id, s.policy, s.length, s.live FROM segments s WHERE s.state = ? AND {_OWN}"
            " AND s.id NOT IN (SELECT segment FROM windows WHERE until > ?)"
            " AND s.id NOT IN (SELECT segment FROM held_segments) ORDER BY s.id",
            (CLOSED, self.now()),
        )

    def stored_slices(self, segment: int) -> list[StoredRun]:
        """The slices of a segment, in the order of their bytes."""
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
                    (depot, pack_key(read), pack_key(write), pack_key(manage), self.now(), db.seq),
                ).lastrowid
                or 0
                for depot, read, write, manage in allocations
            ]

    def abandon_pending(self, pending: Sequence[int] | None = None) -> int:
        """Turn pending allocations (None: all of them) into orphans; return how many."""
        if pending is not None and not pending:
            return 0
        with self._db.transaction() as db:
            rows = pending
            if rows is None:
                rows = [row for (row,) in db.rows("SELECT id FROM pending")]
            for row in rows:
                db.execute(
                    "INSERT INTO orphans (depot, manage_key, read_key, segment, since, seq)"
                    " SELECT depot, manage_key, read_key, NULL, ?, ? FROM pending WHERE id = ?",
                    (self.now(), db.seq, row),
                )
                db.execute("DELETE FROM pending WHERE id = ?", (row,))
            self.orphans_waiting = self.orphans_waiting or bool(rows)
            return len(rows)

    def orphans(
        self, limit: int = 100, depots: Sequence[int] | None = None, up_to: int = LAST_COMMIT
    ) -> list[Orphan]:
        """Allocations to release, on any depot or on one of `depots`, oldest first; of commits `up_to` this one.

        They may be released only after a `Database.sync` that followed the call (I5).
        """
        rows = self._db.rows("SELECT id, depot, manage_key FROM orphans ORDER BY id LIMIT ?", (limit,))
        self.orphans_waiting = bool(rows)
        if depots is not None:
            marks = ", ".join("?" * len(depots))
            rows = self._db.rows(
                f"SELECT id, depot, manage_key FROM orphans WHERE depot IN ({marks}) AND seq <= ? ORDER BY id LIMIT ?",
                (*depots, up_to, limit),
            )
        return [Orphan(row, depot, unpack_key(key)) for row, depot, key in rows]

    def forget_orphan(self, orphan: int) -> None:
        with self._db.transaction() as db:
            db.execute("DELETE FROM orphans WHERE id = ?", (orphan,))

    def remove_empty_depots(self) -> None:
        """Draining depots that hold nothing any more are none of the volume's; removed ones that do are, after all."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE depots SET role = 'draining', seq = ? WHERE role = 'removed'"
                " AND id IN (SELECT depot FROM replicas)",
                (db.seq,),
            )
            db.execute(
                "UPDATE depots SET role = 'removed', seq = ? WHERE role = 'draining' AND NOT embedded AND id NOT IN"
                " (SELECT depot FROM replicas UNION SELECT depot FROM orphans UNION SELECT depot FROM pending"
                " UNION SELECT depot FROM record_logs)",
                (db.seq,),
            )

    # Windows of exported exNodes

    def keep_for_windows(self, segment: int, until: float) -> None:
        """The segment's slices stay where they are until then, unless they are deleted."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO windows (segment, until, seq) VALUES (?, ?, ?) ON CONFLICT (segment)"
                " DO UPDATE SET until = max(until, excluded.until), seq = excluded.seq",
                (segment, until, db.seq),
            )

    def forget_windows(self) -> None:
        """Those that are closed, and those on segments that are gone."""
        with self._db.transaction() as db:
            db.execute(
                "DELETE FROM windows WHERE until <= ? OR segment NOT IN (SELECT id FROM segments)", (self.now(),)
            )

    # Segments and their replicas

    def add_segment(self, policy: int, replicas: Sequence[NewReplica]) -> int:
        """Make pending allocations an open segment; part of the transaction that first maps into it."""
        with self._db.transaction() as db:
            segment = db.execute(
                "INSERT INTO segments (policy, state, length, live, created_at, born, seq)"
                " VALUES (?, ?, 0, 0, ?, ?, ?)",
                (policy, OPEN, self.now(), db.seq, db.seq),
            ).lastrowid
            assert segment is not None
            for replica in replicas:
                self.add_replica(segment, replica)
            return segment

    def add_replica(self, segment: int, new: NewReplica) -> None:
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO replicas (segment, depot, read_key, write_key, manage_key, shard, lease_end, told_at,"
                " suspect, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (segment, new.depot, pack_key(new.read), pack_key(new.write), pack_key(new.manage), new.shard,
                 new.lease_end, new.told_at, db.seq),
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
                f" SELECT depot, manage_key, read_key, segment, ?, ? FROM replicas r WHERE id = ? AND {_RELEASABLE}",
                (self.now(), db.seq, replica.id),
            )
            db.execute("DELETE FROM imported WHERE replica = ?", (replica.id,))
            db.execute("DELETE FROM replicas WHERE id = ?", (replica.id,))
            self._replicas.pop(replica.segment, None)
            self.orphans_waiting = True

    def recode(
        self, segment: int, made: Sequence[NewReplica], coded: Coded | None, shards: Sequence[Buffer]
    ) -> None:
        """Count on pending replicas instead of all that the segment has: shards, or whole copies (`coded` None)."""
        with self._db.transaction():
            old = self.replicas(segment)
            self.forget_coded(segment)
            if coded is not None:
                self.note_coded(segment, coded, shards)
            for new in made:
                self.add_replica(segment, new)
            for replica in old:
                self.drop_replica(replica)

    def suspect(self, replica: Replica) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE replicas SET suspect = 1, seq = ? WHERE id = ?", (db.seq, replica.id))
            self._replicas.pop(replica.segment, None)

    def suspects(self) -> list[Replica]:
        """The replicas of our making that are not to be trusted before they are verified."""
        return [_replica(row) for row in self._db.rows(f"{_REPLICA} WHERE r.suspect = 1 AND i.base IS NULL")]

    def verified(self, replica: Replica) -> None:
        """It holds what it should."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE replicas SET suspect = 0, verified_at = ?, seq = ? WHERE id = ?",
                (self.now(), db.seq, replica.id),
            )
            self._replicas.pop(replica.segment, None)

    def renewed(self, replica: Replica, lease_end: float | None, told_at: float | None = None) -> None:
        """Its depot tells a new end of its lease, now or at `told_at`."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE replicas SET lease_end = ?, told_at = ?, seq = ? WHERE id = ?",
                (lease_end, self.now() if told_at is None else told_at, db.seq, replica.id),
            )
            self._replicas.pop(replica.segment, None)

    def _release_if_dead(self, segment: int) -> None:
        row = self._db.row("SELECT state, live FROM segments WHERE id = ?", (segment,))
        if row is None or row != (CLOSED, 0):
            return
        for replica in self.replicas(segment):
            self.drop_replica(replica)
        self.forget_coded(segment)
        self._db.execute("DELETE FROM segments WHERE id = ?", (segment,))
        self._lengths.pop(segment, None)
        self._replicas.pop(segment, None)


_REPLICA = (
    "SELECT r.id, r.segment, r.depot, r.read_key, r.write_key, r.manage_key, r.lease_end, r.told_at, r.suspect,"
    " r.shard, i.base FROM replicas r LEFT JOIN imported i ON i.replica = r.id"
)
#: Segments `s` that this volume made; the warmer leaves the others as they are.
_OWN = "s.id NOT IN (SELECT segment FROM imported)"
#: Segments `s`, grouped by `s.id`: how many different sound replicas there are, and are wanted.
_FROM = (
    "FROM segments s JOIN policies p ON p.id = s.policy LEFT JOIN coded c ON c.segment = s.id"
    " LEFT JOIN replicas r ON r.segment = s.id AND r.suspect = 0"
)
_SOUND = "CASE WHEN c.k IS NULL THEN count(r.id) ELSE count(DISTINCT r.shard) END"
_WANTED = "CASE WHEN c.k IS NULL THEN p.copies ELSE (SELECT count(*) FROM shards h WHERE h.segment = s.id) END"
#: Replicas `r` whose allocation is ours to give back: we made it, or own it and no other segment lies in it.
_RELEASABLE = (
    "NOT EXISTS (SELECT 1 FROM imported i WHERE i.replica = r.id AND (NOT i.owned OR EXISTS (SELECT 1 FROM imported j"
    " JOIN replicas o ON o.id = j.replica WHERE j.allocation = i.allocation AND j.replica != i.replica"
    " AND o.depot = r.depot AND o.read_key = r.read_key)))"
)


def _replica(row: tuple[int, int, int, str, str, str, float | None, float, int, int | None, int | None]) -> Replica:
    number, segment, depot, read, write, manage, lease_end, told_at, suspect, shard, base = row
    keys = unpack_key(read), unpack_key(write), unpack_key(manage)
    known = number, segment, depot, *keys, lease_end, told_at, suspect == 1
    return Replica(*known, base or 0, base is not None, shard)
