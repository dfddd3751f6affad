"""The rows of the copies of record logs, and of the commits. Synchronous; knows no socket and no key of the volume."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ibpfs.depot.capability import Key
from ibpfs.exnode_store.checkpoints.commits import Commit, Place, digest_of
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger_rows import NewReplica, pack_key, unpack_key

ROOT, CHECKPOINT, SNAPSHOT = "root", "checkpoint", "snapshot"
#: Commits whose rows are kept: enough to know any that a depot rolled back to may show.
_COMMITS_KEPT = 1000
#: The same of logs.
_LOGS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Copy:
    """One allocation that holds a record log, or a part of it."""

    id: int
    log: bytes
    kind: str
    depot: int
    read: Key
    write: Key
    manage: Key
    size: int
    length: int
    lease_end: float | None
    told_at: float
    name: str | None = None


class LogRows:
    """Of one volume. `own` counts the transactions that are made here: they are no reason for another checkpoint."""

    def __init__(self, db: Database, now: Callable[[], float], orphaned: Callable[[], None] = lambda: None) -> None:
        """`orphaned` is called when there is something more to be released."""
        self._db = db
        self._orphaned = orphaned
        self.now = now
        self.own = 0

    def copies(self, kind: str | None = None) -> list[Copy]:
        """All, oldest first."""
        where, arguments = ("WHERE kind = ?", (kind,)) if kind else ("", ())
        rows = self._db.rows(
            "SELECT id, log, kind, depot, read_key, write_key, manage_key, size, length, lease_end, told_at, name"
            f" FROM record_logs {where} ORDER BY id", arguments)  # fmt: skip
        return [
            Copy(number, log, what, depot, unpack_key(read), unpack_key(write), unpack_key(manage), *rest)
            for number, log, what, depot, read, write, manage, *rest in rows
        ]

    def in_use(self, kind: str) -> list[Copy]:
        """The copies of the newest log of its kind."""
        copies = self.copies(kind)
        return [one for one in copies if one.log == copies[-1].log]

    def add_pending(self, depot: int, read: Key, write: Key, manage: Key) -> int:
        """As the ledger's (I4)."""
        with self._db.transaction() as db:
            row = db.execute(
                "INSERT INTO pending (depot, read_key, write_key, manage_key, created_at, seq)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (depot, pack_key(read), pack_key(write), pack_key(manage), self.now(), db.seq),
            ).lastrowid
        self.own += 1
        assert row is not None
        return row

    def abandon(self, pending: int) -> None:
        """It does not become a copy, and is released."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO orphans (depot, manage_key, read_key, segment, since, seq)"
                " SELECT depot, manage_key, read_key, NULL, ?, ? FROM pending WHERE id = ?",
                (self.now(), db.seq, pending),
            )
            db.execute("DELETE FROM pending WHERE id = ?", (pending,))
        self.own += 1
        self._orphaned()

    def add(self, log: bytes, kind: str, size: int, new: NewReplica, name: str | None = None) -> None:
        """What was pending is a copy of a log, still empty. The next checkpoint has to say so of any but its own."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO record_logs (log, kind, name, depot, read_key, write_key, manage_key, size, length,"
                " lease_end, told_at, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
                (log, kind, name, new.depot, pack_key(new.read), pack_key(new.write), pack_key(new.manage), size,
                 new.lease_end, new.told_at, db.seq),
            )  # fmt: skip
            db.execute("DELETE FROM pending WHERE id = ?", (new.pending,))
        self.own += kind == CHECKPOINT

    def acknowledged(self, lengths: Sequence[tuple[int, int]]) -> None:
        """(copy, bytes that it now holds)."""
        with self._db.transaction() as db:
            db.executemany(
                "UPDATE record_logs SET length = ?, seq = ? WHERE id = ?",
                [(length, db.seq, number) for number, length in lengths],
            )
        self.own += 1

    def renewed(self, copy: int, lease_end: float | None) -> None:
        with self._db.transaction() as db:
            db.execute(
                "UPDATE record_logs SET lease_end = ?, told_at = ?, seq = ? WHERE id = ?",
                (lease_end, self.now(), db.seq, copy),
            )
        self.own += 1

    def drop(self, copies: Sequence[Copy]) -> None:
        """They are released once a checkpoint does not name them any more: that one is still to come."""
        if not copies:
            return
        with self._db.transaction() as db:
            for one in copies:
                db.execute(
                    "INSERT INTO orphans (depot, manage_key, read_key, segment, since, seq)"
                    " SELECT depot, manage_key, read_key, NULL, ?, ? FROM record_logs WHERE id = ?",
                    (self.now(), db.seq, one.id),
                )
                db.execute("DELETE FROM record_logs WHERE id = ?", (one.id,))
            self._note_past({one.log for one in copies if one.kind == CHECKPOINT}, given_up=False)
        self._orphaned()

    def give_up(self, logs: Iterable[bytes]) -> None:
        """Checkpoint logs of which nothing is news any more, whatever depots have of them."""
        with self._db.transaction():
            self._note_past(logs, given_up=True)

    def _note_past(self, logs: Iterable[bytes], *, given_up: bool) -> None:
        self._db.executemany(
            "INSERT INTO past_logs (log, given_up, seq) VALUES (?, ?, ?)"
            " ON CONFLICT (log) DO UPDATE SET given_up = max(given_up, excluded.given_up), seq = excluded.seq",
            [(log, given_up, self._db.seq) for log in logs],
        )
        self._db.execute(
            "DELETE FROM past_logs WHERE seq < (SELECT seq FROM past_logs ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            (_LOGS_KEPT,),
        )

    def is_past(self, log: bytes, *, given_up: bool = False) -> bool:
        """Whether this store let go of a checkpoint log; `given_up`: whether a recovery did without it."""
        found = self._db.value("SELECT given_up FROM past_logs WHERE log = ?", (log,))
        return found is not None and found >= given_up

    def place(self, copy: Copy) -> Place:
        """As it is told to who has nothing but the string."""
        row = self._db.row("SELECT address, embedded, fingerprint FROM depots WHERE id = ?", (copy.depot,))
        assert row is not None
        address, embedded, pin = row
        return Place(address, embedded == 1, pack_key(copy.read), pin.hex() if pin and not embedded else "")

    def next_root_number(self) -> int:
        with self._db.transaction() as db:
            number = int(db.facts.get("root_records", "0")) + 1
            db.set_fact("root_records", str(number))
        self.own += 1
        return number

    # Commits

    def last_commit(self) -> tuple[int, dict[str, int], bytes] | None:
        """(seq, version vector, digest) of the last commit that was begun; None before the first."""
        row = self._db.row("SELECT seq, versions, root_digest FROM commits ORDER BY seq DESC LIMIT 1")
        return None if row is None else (row[0], json.loads(row[1]), row[2])

    def landed(self, seq: int, at: float) -> None:
        """The checkpoint of commit `seq`, taken at `at`, is on depots, and the root leads there."""
        with self._db.transaction() as db:
            db.set_fact("checkpoint_seq", str(seq))
            db.set_fact("checkpoint_at", str(at))
        self.own += 1

    def knows(self, digest: bytes) -> bool:
        return self._db.value("SELECT 1 FROM commits WHERE root_digest = ?", (digest,)) is not None

    def add_commit(self, commit: Commit, record: bytes) -> None:
        with self._db.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO commits (seq, volume, epoch, writer, versions, root_digest, previous)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (commit.seq, commit.volume, commit.epoch, commit.writer, json.dumps(dict(commit.versions)),
                 digest_of(record), commit.previous),
            )  # fmt: skip
            db.execute(
                "DELETE FROM commits WHERE seq < (SELECT seq FROM commits ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (_COMMITS_KEPT,),
            )
        self.own += 1
