"""A warm capability: the ledger without names and keys, in one file, for a machine that keeps a volume alive.

The file is an exNode store of its own with the tables of depots, policies, segments, slices (where they lie, and
their digests), replicas, the copies of record logs, and the leases of links; so the warmer works on it as on a
volume. It renews, verifies and copies sealed bytes, and can read none; of the logs of checkpoints and snapshots, and
of links, it can do nothing but renew the leases; it gives nothing back. It is a snapshot: what was written since is not
in it, and a link that has expired in it may have been extended. What was added to it is taken home by `Merge`, which
trusts nothing in it before it has been verified.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibpfs.config import sync_directory
from ibpfs.depot.capability import BadCapability, Key
from ibpfs.errors import UsageError, VolumeError
from ibpfs.exnode_store.database import Database, create_database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, unpack_key
from ibpfs.exnode_store.schema import CLOSED, FORMAT, SHARDS

#: The row of table `volume` that tells such a file from a volume's own store.
_KIND, _WARM = "kind", "warm capability"
#: Rows of one transaction.
_ROWS = 500

_HERE = "SELECT id FROM home.segments WHERE state = ? AND length > 0 AND id NOT IN (SELECT segment FROM home.imported)"
_EMBEDDED = "SELECT id FROM home.depots WHERE embedded"


def _place(column: str) -> str:
    """An address, however it is spoken to."""
    return f"substr({column}, instr({column}, ':'))"


#: Which rows of a table go into the file, and what stands there instead of what is nobody's business.
_CONTENTS: dict[str, tuple[str, dict[str, str]]] = {
    "depots": ("NOT embedded AND role != 'removed'", {}),
    "policies": ("1", {"cache": "NULL"}),
    "segments": ("id IN here", {}),
    "slices": (
        "segment IN here",
        {
            "slice_id": "CAST(printf('%016d', id) AS BLOB)", "epoch": "0", "origin": "x''", "function": "0",
            "frame_size": "0", "length": "stored_length", "mapped": "1",
        },
    ),
    "coded": ("segment IN here", {}),
    "shards": (
        f"segment IN here AND (segment, shard) NOT IN (SELECT segment, shard FROM home.replicas WHERE suspect = 0"
        f" AND shard IS NOT NULL AND depot IN ({_EMBEDDED}))",
        {},
    ),
    "replicas": (f"segment IN here AND depot NOT IN ({_EMBEDDED})", {"write_key": "'-/0'"}),
    "record_logs": (f"length > 0 AND depot NOT IN ({_EMBEDDED})",
                    {"name": "NULL", "read_key": "'-/0'", "write_key": "'-/0'"}),
    "share_leases": (f"(segment IS NULL OR segment IN here) AND {_place('depot')} NOT IN"
                     f" (SELECT {_place('address')} FROM home.depots WHERE embedded)", {}),
}  # fmt: skip


def write_warm_capability(home: Path, target: Path, facts: dict[str, str]) -> dict[str, int]:
    """Write the file, mode 0600; `home` is the volume's store, which may be in use. Blocks: for a thread.

    Takes the place of an older one of the same volume. UsageError when anything else is there, or nothing would be in
    it.
    """
    _check_place(target, facts["uuid"])
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    known = {"uuid": facts["uuid"], "digest_seed": facts["digest_seed"], "format": str(FORMAT), _KIND: _WARM}
    if SHARDS in facts.get("features", "").split():
        known["features"] = SHARDS
    try:
        create_database(temporary, known)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as db:
            counts = _copy(db, home)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if not counts["replicas"] and not counts["record_logs"]:
            raise UsageError("there is nothing that another machine could keep alive: no closed segment and no"
                             " checkpoint on a depot that it could reach")
        _sync(temporary)
        temporary.replace(target)
    except OSError as error:
        raise VolumeError(f"{target}: {error.strerror}") from None
    finally:
        for name in ("", "-wal", "-shm"):
            Path(f"{temporary}{name}").unlink(missing_ok=True)
    sync_directory(target.parent)
    return counts


def _check_place(target: Path, uuid: str) -> None:
    if not target.exists():
        return
    with open_warm_capability(target) as db:
        if db.facts.get("uuid") != uuid:
            raise UsageError(f"{target}: is a warm capability of another volume")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(db: sqlite3.Connection, home: Path) -> dict[str, int]:
    db.execute("ATTACH DATABASE ? AS home", (str(home),))
    db.execute("BEGIN IMMEDIATE")
    db.execute(f"CREATE TEMP TABLE here AS {_HERE}", (CLOSED,))
    db.execute("CREATE UNIQUE INDEX temp.here_id ON here (id)")
    counts = {}
    for table, (which, instead) in _CONTENTS.items():
        columns = [str(row[1]) for row in db.execute(f"PRAGMA main.table_info({table})")]
        there = {str(row[1]) for row in db.execute(f"PRAGMA home.table_info({table})")}
        shared = [column for column in columns if column in there]
        values = [instead.get(column, column) for column in shared]
        counts[table] = db.execute(
            f"INSERT INTO main.{table} ({', '.join(shared)}) SELECT {', '.join(values)} FROM home.{table} WHERE {which}"
        ).rowcount
    _ask_for_fewer(db)
    db.execute("UPDATE state SET seq = (SELECT seq FROM home.state)")
    db.execute("COMMIT")
    db.execute("DROP TABLE temp.here")
    db.execute("DETACH DATABASE home")
    return counts


def _ask_for_fewer(db: sqlite3.Connection) -> None:
    """A copy on the volume's own depot counts, though nobody else reaches it: so many fewer are wanted elsewhere. (A
    shard there is not named as one that is wanted.)"""
    db.execute(
        "CREATE TEMP TABLE fewer AS SELECT s.id AS segment, s.policy AS policy, p.copies - count(*) AS copies"
        f" FROM main.segments s JOIN main.policies p ON p.id = s.policy JOIN home.replicas r ON r.segment = s.id"
        f" WHERE r.depot IN ({_EMBEDDED}) AND r.suspect = 0 AND r.shard IS NULL GROUP BY s.id"
    )
    rows = db.execute("SELECT DISTINCT policy, copies FROM fewer").fetchall()
    for policy, copies in rows:
        new = db.execute(
            "INSERT INTO main.policies (copies, min_copies, code, labels, cache, seq)"
            " SELECT ?, min(min_copies, ?), code, labels, NULL, seq FROM main.policies WHERE id = ?",
            (max(1, copies), max(1, copies), policy),
        ).lastrowid
        db.execute(
            "UPDATE main.segments SET policy = ?"
            " WHERE id IN (SELECT segment FROM fewer WHERE policy = ? AND copies = ?)",
            (new, policy, copies),
        )
    db.execute("DROP TABLE temp.fewer")


@contextmanager
def open_warm_capability(path: Path) -> Iterator[Database]:
    """The file as a ledger, for one user at a time. UsageError when it is none, VolumeError when it is in use."""
    _check_file(path)
    with _locked(path):
        try:
            db = Database(path)
        except (VolumeError, sqlite3.DatabaseError):
            raise UsageError(f"{path}: is no warm capability, or a damaged one") from None
        with db:
            if db.facts.get(_KIND) != _WARM:
                raise UsageError(f"{path}: is no warm capability")
            yield db
    with suppress(FileNotFoundError):
        path.chmod(0o600)


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if head != b"SQLite format 3\0":
        raise UsageError(f"{path}: is no warm capability")
    if path.stat().st_mode & 0o077:
        raise UsageError(f"{path}: others may read it, and could delete what it names; chmod 600 it")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise VolumeError(f"{path}: is in use by another process") from None
    finally:
        os.close(descriptor)


@dataclass
class Merged:
    """What came of taking a file home: copies that were added, that were not needed, and that nobody can use."""

    added: int = 0
    surplus: int = 0
    unusable: int = 0


class Merge:
    """Takes what a warm capability was added to into the volume's ledger."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots

    def take(self, path: Path) -> Merged:
        """Add the copies that another machine made, as suspect ones, as those that it gave up; what is not needed is
        given back."""
        merged = Merged()
        with open_warm_capability(path) as theirs:
            if theirs.facts.get("uuid") != self._db.facts.get("uuid"):
                raise UsageError(f"{path}: is a warm capability of another volume")
            rows = theirs.rows(
                "SELECT d.address, r.segment, s.length, c.k, r.shard, r.read_key, r.write_key, r.manage_key,"
                " r.lease_end, r.told_at FROM replicas r JOIN segments s ON s.id = r.segment"
                " JOIN depots d ON d.id = r.depot LEFT JOIN coded c ON c.segment = s.id"
                " WHERE r.write_key != '-/0' ORDER BY r.id"  # those that came with the file have none
            )
            given_up = theirs.rows("SELECT d.address, o.read_key FROM orphans o JOIN depots d ON d.id = o.depot")
        for at in range(0, len(given_up), _ROWS):
            with self._db.transaction():
                for address, read in given_up[at : at + _ROWS]:
                    self._doubt(str(address), str(read))
        for at in range(0, len(rows), _ROWS):
            with self._db.transaction():
                for row in rows[at : at + _ROWS]:
                    self._take(row, merged)
        return merged

    def _doubt(self, address: str, read: str) -> None:
        """What was found to be bad or lost there is looked at here."""
        depot = self._depots.at(address)
        number = depot and self._db.value("SELECT id FROM replicas WHERE depot = ? AND read_key = ?", (depot.id, read))
        replica = self._ledger.replica(number) if number else None
        if replica is not None:
            self._ledger.suspect(replica)

    def _take(self, row: tuple[Any, ...], merged: Merged) -> None:
        address, segment, length, needed, shard, *texts, end, told = row
        depot = self._depots.at(str(address))
        try:
            read, write, manage = (unpack_key(str(text)) for text in texts)
        except BadCapability:
            depot = None
        if depot is None or not isinstance(end, float | None) or not isinstance(told, float):
            merged.unusable += 1
        elif not self._knows(depot.id, read):
            new = NewReplica(0, depot.id, read, write, manage, end, told, shard)
            self._add(segment, (length, needed), new, merged)

    def _knows(self, depot: int, read: Key) -> bool:
        text = f"{read.key}/{read.type_key}"
        known = "SELECT 1 FROM replicas WHERE depot = ? AND read_key = ? UNION SELECT 1 FROM orphans WHERE depot = ?"
        return self._db.value(f"{known} AND read_key = ?", (depot, text, depot, text)) is not None

    def _add(self, segment: int, form: tuple[int, int | None], new: NewReplica, merged: Merged) -> None:
        """`form`: the segment's length, and how many shards of it are needed, where it was coded then."""
        coded = self._ledger.coded(segment)
        is_same = form == (self._ledger.segment_length(segment), coded and coded.code.k)
        is_same = is_same and (new.shard is None if coded is None else new.shard in self._ledger.shards(segment))
        if is_same and self._ledger.wanted_alike(segment) > self._standing(segment, new.shard):
            self._ledger.add_replica(segment, new)
            ours = [one for one in self._ledger.replicas(segment) if one.depot == new.depot]
            self._ledger.suspect(next(one for one in ours if one.read == new.read))
            merged.added += 1
        else:
            (pending,) = self._ledger.add_pending([(new.depot, new.read, new.write, new.manage)])
            self._ledger.abandon_pending([pending])
            merged.surplus += 1

    def _standing(self, segment: int, shard: int | None) -> int:
        """Sound replicas, or those of a shard, whose lease lasts, on depots that are not away."""
        now, away = self._ledger.now(), {depot.id for depot in self._depots if depot.is_away}
        alike = [one for one in self._ledger.replicas(segment) if one.shard == shard]
        return sum(
            not one.suspect and one.depot not in away and (one.lease_end is None or one.lease_end > now)
            for one in alike
        )
