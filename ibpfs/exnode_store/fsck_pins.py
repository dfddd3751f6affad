"""Checks of dead slices: each stays because of a pin or a hold, or is about to be released."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from ibpfs.exnode_store.fsck_faults import SEQ, Checkup, Fault
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.snapshots import SNAPSHOT

#: Slices `s` that stay if they die now, or died at s.died.
_KEPT = (
    "(EXISTS (SELECT 1 FROM pins p WHERE p.pinned >= s.born AND p.pinned < coalesce(s.died, 1 << 62))"
    " OR s.segment IN (SELECT segment FROM held_segments))"
)
_UNMAPPED = "NOT EXISTS (SELECT 1 FROM mappings m WHERE m.slice = s.id)"


def holds(checkup: Checkup) -> Iterator[Fault]:
    """Holds on what is gone, pins on what is still to come."""
    db = checkup.db
    for kind, name, segment in db.rows(
        "SELECT kind, name, segment FROM held_segments WHERE segment NOT IN (SELECT id FROM segments)"
    ):
        repair = checkup.statement("DELETE FROM held_segments WHERE segment = ?", segment)
        yield Fault(f"segment {segment}: is held by {kind} {name} and does not exist", "hold removed", repair)
    for row, kind, name, pinned in db.rows("SELECT id, kind, name, pinned FROM pins WHERE pinned > ?", (db.seq,)):
        repair = checkup.statement("UPDATE pins SET pinned = ?, seq = ? WHERE id = ?", db.seq, SEQ, row)
        yield Fault(f"{kind} {name}: pins commit {pinned}, which is still to come", "pins what is there now", repair)


def snapshots(checkup: Checkup) -> Iterator[Fault]:
    """Snapshots whose file cannot be read any more, or which miss bytes. One that depots have comes back by itself."""
    db = checkup.db
    for row, name in db.rows("SELECT id, name FROM pins WHERE kind = ?", (SNAPSHOT,)):
        path = checkup.paths.snapshots / f"{row}.sqlite"
        if not path.exists() and _is_on_depots(checkup, row):
            checkup.note(f"snapshot {name}: {path} is not there, the next mount fetches it from the depots")
            continue
        try:
            lost = _lost_extents(checkup, path)
        except sqlite3.Error as error:
            repair = checkup.statement("DELETE FROM pins WHERE id = ?", row)
            what = f"snapshot {name}: {path} cannot be read ({error})"
            yield Fault(what, "given up, what only it kept is released", repair, safe=False)
        else:
            if lost:
                yield Fault(f"snapshot {name}: {lost} extents are lost, their slices do not exist")


def _is_on_depots(checkup: Checkup, row: int) -> bool:
    copies = "SELECT 1 FROM record_logs WHERE kind = ? AND name = ? AND length > 0"
    return checkup.db.value(copies, (SNAPSHOT, str(row))) is not None


def _lost_extents(checkup: Checkup, path: Path) -> int:
    db = checkup.db
    db.execute("ATTACH ? AS snapshot", (f"{path.absolute().as_uri()}?mode=ro",))
    try:
        lost: int = db.value("SELECT count(*) FROM snapshot.mappings WHERE slice NOT IN (SELECT id FROM main.slices)")
        db.value("SELECT count(*) FROM snapshot.inodes i JOIN snapshot.dentries d ON d.ino = i.ino")
        return lost
    finally:
        db.execute("DETACH snapshot")


def dead_slices(checkup: Checkup) -> Iterator[Fault]:
    """Slices without a mapping that do not say that they are dead, and the reverse."""
    db = checkup.db
    for row, segment in db.rows(
        f"SELECT id, segment FROM slices s WHERE {_UNMAPPED} AND died IS NULL AND NOT {_KEPT}"
    ):
        repair = checkup.statement("DELETE FROM slices WHERE id = ?", row)
        yield Fault(f"slice {row} of segment {segment}: no file is mapped to it", "removed", repair)
    for row, segment, mapped in db.rows(
        f"SELECT id, segment, mapped FROM slices s WHERE {_UNMAPPED} AND (mapped != 0 OR died IS NULL) AND {_KEPT}"
    ):
        repair = checkup.statement(
            "UPDATE slices SET mapped = 0, died = coalesce(died, ?), seq = ? WHERE id = ?", SEQ, SEQ, row
        )
        what = f"slice {row} of segment {segment}: counts {mapped} mapped bytes, only a pin or a hold keeps it"
        yield Fault(what, "noted as dead", repair)
    for row, segment in db.rows(f"SELECT id, segment FROM slices s WHERE died IS NOT NULL AND NOT {_UNMAPPED}"):
        repair = checkup.statement("UPDATE slices SET died = NULL, seq = ? WHERE id = ?", SEQ, row)
        yield Fault(f"slice {row} of segment {segment}: is noted as dead, a file is mapped to it", "corrected", repair)


def released_slices(checkup: Checkup) -> Iterator[Fault]:
    """Dead slices that nothing keeps any more: an owner releases them by and by, that is no fault."""
    count = checkup.db.value(f"SELECT count(*) FROM slices s WHERE {_UNMAPPED} AND died IS NOT NULL AND NOT {_KEPT}")
    if count and checkup.read_only:
        checkup.note(f"{count} dead slices wait to be released")
    elif count:
        ledger = Ledger(checkup.db, time.time)
        while ledger.release_dead():
            pass
        checkup.note(f"{count} dead slices waited to be released, done")
    yield from ()
