"""Checks of slices, segments and allocations: every slice lies in its segment, every segment in allocations that are
released exactly when nothing lives in them.

What is looked at last releases; by then no living allocation is on a list it should not be on.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial

from ibpfs.depot.capability import BadCapability
from ibpfs.exnode_store.fsck_faults import SEQ, Checkup, Fault
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import unpack_key
from ibpfs.exnode_store.schema import CLOSED, OPEN
from ibpfs.exnode_store.sealing import CHECKSUM_SIZE, FUNCTIONS, HEADER, PLAIN_XXH3, RAW, TAG_SIZE

_STORED_LENGTH = (
    f"CASE function WHEN {RAW} THEN length ELSE {HEADER.size} + length + ((length + frame_size - 1) / frame_size)"
    f" * (CASE function WHEN {PLAIN_XXH3} THEN {CHECKSUM_SIZE} ELSE {TAG_SIZE} END) END"
)
_MAPPED = "(SELECT coalesce(sum(m.stop - m.start), 0) FROM mappings m WHERE m.slice = s.id)"

#: Replicas that share an allocation with an older one: the older one's id, the younger's, the older one's segment.
#: Several imported ones may lie in one.
_SHARED = (
    "SELECT first, id, first_segment FROM (SELECT id, segment, first_value(id) OVER same AS first,"
    " first_value(segment) OVER same AS first_segment FROM replicas WHERE id NOT IN (SELECT replica FROM imported)"
    " WINDOW same AS (PARTITION BY depot, read_key ORDER BY id)) WHERE id != first AND segment {} first_segment"
)


# Slices


def slices(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    known = ", ".join(str(code) for code in FUNCTIONS)
    for row, function, frame_size in db.rows(
        f"SELECT id, function, frame_size FROM slices WHERE function NOT IN ({known}) OR frame_size < 1"
    ):
        yield Fault(f"slice {row}: sealed by function {function} in frames of {frame_size}, which is unknown")
    for row, stored, right in db.rows(
        f"SELECT id, stored_length, right FROM (SELECT id, stored_length, {_STORED_LENGTH} AS right FROM slices"
        f" WHERE function IN ({known}) AND frame_size > 0) WHERE stored_length != right"
    ):
        repair = checkup.statement("UPDATE slices SET stored_length = ?, seq = ? WHERE id = ?", right, SEQ, row)
        yield Fault(f"slice {row}: counts {stored} stored bytes, has {right}", "count corrected", repair)
    for row, mapped, right in db.rows(
        f"SELECT id, mapped, right FROM (SELECT id, mapped, {_MAPPED} AS right FROM slices s)"
        " WHERE mapped != right AND right > 0"
    ):
        repair = checkup.statement("UPDATE slices SET mapped = ?, seq = ? WHERE id = ?", right, SEQ, row)
        yield Fault(f"slice {row}: counts {mapped} mapped bytes, {right} are", "count corrected", repair)


# Segments


def segments(checkup: Checkup) -> Iterator[Fault]:
    """Their rows against their slices."""
    yield from _missing_segments(checkup)
    db = checkup.db
    for segment, length, end in db.rows(
        "SELECT g.id, g.length, max(s.segment_offset + s.stored_length) AS end FROM segments g"
        " JOIN slices s ON s.segment = g.id GROUP BY g.id HAVING end > g.length"
    ):
        repair = checkup.statement("UPDATE segments SET length = ?, seq = ? WHERE id = ?", end, SEQ, segment)
        what = f"segment {segment}: counts {length} bytes, its slices reach to {end}"
        yield Fault(what, "length corrected; --data tells whether the bytes are there", repair)
    for segment, live, right in db.rows(
        "SELECT id, live, right FROM (SELECT g.id, g.live, (SELECT coalesce(sum(s.stored_length), 0) FROM slices s"
        " WHERE s.segment = g.id) AS right FROM segments g) WHERE live != right"
    ):
        repair = checkup.statement("UPDATE segments SET live = ?, seq = ? WHERE id = ?", right, SEQ, segment)
        yield Fault(f"segment {segment}: counts {live} live bytes, there are {right}", "count corrected", repair)


def misplaced_slices(checkup: Checkup) -> Iterator[Fault]:
    """Slices that cannot be where their rows say; where they are, only their bytes can tell."""
    db = checkup.db
    tail = "; --data looks for it in the segment"
    for row, segment, offset in db.rows("SELECT id, segment, segment_offset FROM slices WHERE segment_offset < 0"):
        yield Fault(f"slice {row} of segment {segment}: offset {offset} cannot be{tail}")
    for row, segment in db.rows(
        "SELECT id, segment FROM (SELECT id, segment, segment_offset, lag(segment_offset + stored_length)"
        " OVER (PARTITION BY segment ORDER BY segment_offset, id) AS before FROM slices) WHERE before > segment_offset"
    ):
        yield Fault(f"slice {row} of segment {segment}: overlaps the one before it{tail}")


def _missing_segments(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    for (segment,) in db.rows("SELECT DISTINCT segment FROM slices WHERE segment NOT IN (SELECT id FROM segments)"):
        if db.value("SELECT 1 FROM replicas WHERE segment = ?", (segment,)):
            what = f"segment {segment}: its row is missing"
            yield Fault(what, "made anew from its slices and replicas", partial(_make_segment, checkup, segment))
        else:
            for file in checkup.files_of("s.segment = ?", (segment,)):
                yield Fault(f"{file}: lost, segment {segment} does not exist")


def _make_segment(checkup: Checkup, segment: int) -> None:
    db = checkup.db
    length, live, born = db.rows(
        "SELECT max(segment_offset + stored_length), sum(stored_length), min(born) FROM slices WHERE segment = ?",
        (segment,),
    )[0]
    policy = db.value(
        "SELECT i.policy FROM slices s JOIN mappings m ON m.slice = s.id JOIN inodes i ON i.ino = m.ino"
        " WHERE s.segment = ? LIMIT 1", (segment,)
    )  # fmt: skip
    db.execute(
        "INSERT INTO segments (id, policy, state, length, live, created_at, born, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (segment, policy or 1, CLOSED, length, live, time.time(), born, db.seq),
    )


def lost_segments(checkup: Checkup) -> Iterator[Fault]:
    """Segments of which no replica is known: nothing here brings their bytes back."""
    for segment, needed, left in checkup.db.rows(
        "SELECT s.id, c.k, count(DISTINCT r.shard) FROM segments s LEFT JOIN coded c ON c.segment = s.id"
        " LEFT JOIN replicas r ON r.segment = s.id WHERE s.live > 0 GROUP BY s.id"
        " HAVING CASE WHEN c.k IS NULL THEN count(r.id) = 0 ELSE count(DISTINCT r.shard) < c.k END"
    ):
        has = "no replica" if needed is None else f"{left} of the {needed} shards that are needed"
        files = checkup.files_of("s.segment = ?", (segment,)) or ["what snapshots or shares keep"]
        for file in files:
            yield Fault(f"{file}: lost, segment {segment} has {has}")


def open_segments(checkup: Checkup) -> Iterable[Fault]:
    """An owner that was killed leaves its segments open; that is no fault. Any next owner closes them first."""
    for (segment,) in checkup.db.rows("SELECT id FROM segments WHERE state = ?", (OPEN,)):
        if checkup.read_only:
            checkup.note(f"segment {segment}: its owner left it open")
        else:
            _close(checkup, segment)
            checkup.note(f"segment {segment}: its owner left it open, closed")
    return ()


def dead_segments(checkup: Checkup) -> Iterator[Fault]:
    for (segment,) in checkup.db.rows("SELECT id FROM segments WHERE state = ? AND live = 0", (CLOSED,)):
        what = f"segment {segment}: nothing lives in it, and it was not released"
        yield Fault(what, "released", partial(_close, checkup, segment))


def _close(checkup: Checkup, segment: int) -> None:
    Ledger(checkup.db, time.time).close_segment(segment)


# Allocations


def keys(checkup: Checkup) -> Iterator[Fault]:
    """Rows whose keys no depot could have given: an owner could not even read them."""
    for table in ("replicas", "pending", "orphans"):
        columns = "read_key, manage_key" + ("" if table == "orphans" else ", write_key")
        for row, *texts in checkup.db.rows(f"SELECT id, {columns} FROM {table}"):
            try:
                for text in texts:
                    unpack_key(text)
            except BadCapability:
                repair = checkup.statement(f"DELETE FROM {table} WHERE id = ?", row)
                yield Fault(f"{_place(checkup, table, row)}: its keys are damaged", "removed", repair)


def doubles(checkup: Checkup) -> Iterator[Fault]:
    """An allocation that stands in two rows. One that holds a segment is never released."""
    db = checkup.db
    for row, other, segment in db.rows(_SHARED.format("=")):
        what = f"{_place(checkup, 'replicas', other)}: is also replica {row} of the same segment {segment}"
        yield Fault(what, "second row removed", checkup.statement("DELETE FROM replicas WHERE id = ?", other))
    # `+` keeps the index of depots out of it: few depots hold all rows, SQLite makes an index of its own for the keys.
    for table in ("orphans", "pending"):
        for row, segment in db.rows(
            f"SELECT t.id, r.segment FROM {table} t JOIN replicas r ON +r.depot = t.depot AND r.read_key = t.read_key"
            " GROUP BY t.id"
        ):
            trouble = "is to be released" if table == "orphans" else "is noted as pending"
            repair = checkup.statement(f"DELETE FROM {table} WHERE id = ?", row)
            what = f"{_place(checkup, table, row)}: {trouble}, though it holds segment {segment}"
            yield Fault(what, "kept", repair)
    for table, against in (("orphans", "orphans"), ("pending", "orphans"), ("pending", "pending")):
        younger = " AND o.id < t.id" if table == against else ""
        for (row,) in db.rows(
            f"SELECT DISTINCT t.id FROM {table} t JOIN {against} o ON +o.depot = t.depot AND o.read_key = t.read_key"
            + younger
        ):
            repair = checkup.statement(f"DELETE FROM {table} WHERE id = ?", row)
            yield Fault(f"{_place(checkup, table, row)}: stands in two rows", "second row removed", repair)


def shared_allocations(checkup: Checkup) -> Iterator[Fault]:
    """An allocation that two segments claim; whose it is, only its bytes can tell."""
    for row, other, segment in checkup.db.rows(_SHARED.format("!=")):
        what = f"{_place(checkup, 'replicas', other)}: is also replica {row} of another segment, {segment}"
        yield Fault(what, "cannot be repaired; --data tells whose it is")


def stray_replicas(checkup: Checkup) -> Iterator[Fault]:
    """Replicas of nothing, or on nothing."""
    db = checkup.db
    for table in ("replicas", "pending", "orphans"):
        for row, depot in db.rows(f"SELECT id, depot FROM {table} WHERE depot NOT IN (SELECT id FROM depots)"):
            what = f"{_place(checkup, table, row)}: on depot {depot}, which does not exist"
            if table == "replicas" and _is_last(checkup, row):
                yield Fault(f"{what}; it is the last of its segment")
            else:
                yield Fault(what, "removed", checkup.statement(f"DELETE FROM {table} WHERE id = ?", row))
    for row, segment in db.rows("SELECT id, segment FROM replicas WHERE segment NOT IN (SELECT id FROM segments)"):
        what = f"{_place(checkup, 'replicas', row)}: of segment {segment}, which does not exist"
        yield Fault(what, "to be released", partial(_release, checkup, row))


def stray_imports(checkup: Checkup) -> Iterator[Fault]:
    """What was noted of replicas and slices that are gone, or moved to another segment's row."""
    db = checkup.db
    for (row,) in db.rows("SELECT replica FROM imported WHERE replica NOT IN (SELECT id FROM replicas)"):
        repair = checkup.statement("DELETE FROM imported WHERE replica = ?", row)
        yield Fault(f"replica {row}: is noted as imported and does not exist", "note removed", repair)
    for row, segment in db.rows(
        "SELECT i.replica, r.segment FROM imported i JOIN replicas r ON r.id = i.replica WHERE r.segment != i.segment"
    ):
        repair = checkup.statement("UPDATE imported SET segment = ?, seq = ? WHERE replica = ?", segment, SEQ, row)
        yield Fault(f"replica {row}: is noted as imported for another segment", "note corrected", repair)
    for (row,) in db.rows("SELECT slice FROM imported_keys WHERE slice NOT IN (SELECT id FROM slices)"):
        repair = checkup.statement("DELETE FROM imported_keys WHERE slice = ?", row)
        yield Fault(f"slice {row}: has an imported key and does not exist", "key removed", repair)


def _is_last(checkup: Checkup, row: int) -> bool:
    return checkup.db.value(
        "SELECT 1 FROM replicas a JOIN replicas b ON b.segment = a.segment AND b.id != a.id JOIN depots d"
        " ON d.id = b.depot WHERE a.id = ? LIMIT 1", (row,)
    ) is None and checkup.db.value(
        "SELECT 1 FROM replicas a JOIN slices s ON s.segment = a.segment WHERE a.id = ? LIMIT 1", (row,)
    ) is not None  # fmt: skip


def _release(checkup: Checkup, row: int) -> None:
    ledger = Ledger(checkup.db, time.time)
    replica = ledger.replica(row)
    assert replica is not None
    ledger.drop_replica(replica)


def pending(checkup: Checkup) -> Iterator[Fault]:
    for (row,) in checkup.db.rows("SELECT id FROM pending"):
        what = f"{_place(checkup, 'pending', row)}: was never committed"
        yield Fault(what, "to be released", partial(_abandon, checkup, row))


def _abandon(checkup: Checkup, row: int) -> None:
    Ledger(checkup.db, time.time).abandon_pending([row])


def note_orphans(checkup: Checkup) -> None:
    """Say how much waits to be released; that is no fault."""
    for depot, count in checkup.db.rows("SELECT depot, count(*) FROM orphans GROUP BY depot"):
        plural = "s wait" if count > 1 else " waits"
        checkup.note(f"{depot_name(checkup, depot)}: {count} allocation{plural} to be released")


def _place(checkup: Checkup, table: str, row: int) -> str:
    """`replica 3 on depot ibp://HOST:PORT, allocation 3fa9c1d2`: never a key itself."""
    depot, text = checkup.db.rows(f"SELECT depot, read_key FROM {table} WHERE id = ?", (row,))[0]
    name = {"replicas": "replica", "pending": "pending allocation", "orphans": "orphan"}[table]
    try:
        label = unpack_key(text).label
    except BadCapability:
        label = "(unreadable)"
    return f"{name} {row} on {depot_name(checkup, depot)}, allocation {label}"


def depot_name(checkup: Checkup, depot: int) -> str:
    address = checkup.db.value("SELECT address FROM depots WHERE id = ?", (depot,))
    return f"depot {depot}" if address is None else f"depot {address}"
