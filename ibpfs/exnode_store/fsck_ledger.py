"""Checks of files against mappings and of mappings against slices: every byte of a file comes from one place."""

import time
from collections.abc import Iterator
from functools import partial

from ibpfs.exnode_store.attributes import MAX_SIZE
from ibpfs.exnode_store.extents import ExtentMap
from ibpfs.exnode_store.fsck_faults import IS_REGULAR, SEQ, Checkup, Fault, has_entries
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import MAX_INO


def mappings(checkup: Checkup) -> Iterator[Fault]:
    """Mappings that lead nowhere, or beyond their slice."""
    db = checkup.db
    for ino, count in db.rows(
        "SELECT ino, count(*) FROM mappings WHERE ino NOT IN (SELECT ino FROM inodes) AND (ino < 1 OR ino >= ?)"
        " GROUP BY ino", (MAX_INO,)
    ):  # fmt: skip
        repair = checkup.statement("DELETE FROM mappings WHERE ino = ?", ino)
        yield Fault(f"inode {ino}: cannot be, though it has {count} mappings", "mappings removed", repair)
    for ino, start, stop, row in db.rows(
        "SELECT ino, start, stop, slice FROM mappings WHERE slice NOT IN (SELECT id FROM slices)"
    ):
        repair = checkup.statement("DELETE FROM mappings WHERE ino = ? AND start = ?", ino, start)
        what = f"{checkup.inode(ino)}: bytes {start} to {stop} are mapped to slice {row}, which does not exist"
        yield Fault(what, "mapping removed, they read as zeros", repair)
    yield from _beyond_slices(checkup)
    yield from _overlaps(checkup)


def _beyond_slices(checkup: Checkup) -> Iterator[Fault]:
    for ino, start, stop, offset, row, length in checkup.db.rows(
        "SELECT m.ino, m.start, m.stop, m.slice_offset, s.id, s.length FROM mappings m JOIN slices s ON s.id = m.slice"
        " WHERE m.slice_offset < 0 OR m.slice_offset + m.stop - m.start > s.length"
    ):
        what = (
            f"{checkup.inode(ino)}: bytes {start} to {stop} are mapped to bytes {offset} to {offset + stop - start} of"
            f" slice {row}, which has {length}"
        )
        if 0 <= offset < length:
            sql = "UPDATE mappings SET stop = ?, seq = ? WHERE ino = ? AND start = ?"
            yield Fault(what, "mapping cut", checkup.statement(sql, start + length - offset, SEQ, ino, start))
        else:
            repair = checkup.statement("DELETE FROM mappings WHERE ino = ? AND start = ?", ino, start)
            yield Fault(what, "mapping removed, they read as zeros", repair)


def _overlaps(checkup: Checkup) -> Iterator[Fault]:
    for ino, start in checkup.db.rows(
        "SELECT ino, min(start) FROM (SELECT ino, start, lag(stop) OVER (PARTITION BY ino ORDER BY start) AS before"
        " FROM mappings) WHERE before > start GROUP BY ino"
    ):
        what = f"{checkup.inode(ino)}: extents overlap, first at byte {start}"
        yield Fault(what, "the younger ones cut the older", partial(_cut_overlaps, checkup, ino))


def _cut_overlaps(checkup: Checkup, ino: int) -> None:
    db = checkup.db
    rows = db.rows(
        "SELECT start, stop, slice, slice_offset, covers, seq FROM mappings WHERE ino = ?"
        " ORDER BY covers, seq, slice", (ino,)
    )  # fmt: skip
    extents: ExtentMap[tuple[int, int]] = ExtentMap()
    for start, stop, row, offset, covers, _ in rows:
        extents.overlay(start, stop, (row, covers), offset)
    db.execute("DELETE FROM mappings WHERE ino = ?", (ino,))
    db.executemany(
        "INSERT INTO mappings (ino, start, stop, slice, slice_offset, covers, seq) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(ino, one.start, one.stop, one.source[0], one.offset, one.source[1], db.seq) for one in extents],
    )


def allocated(checkup: Checkup) -> Iterator[Fault]:
    for ino, counted, right in checkup.db.rows(
        "SELECT ino, allocated, mapped FROM (SELECT i.ino, i.allocated,"
        " (SELECT coalesce(sum(m.stop - m.start), 0) FROM mappings m WHERE m.ino = i.ino) AS mapped FROM inodes i)"
        " WHERE allocated != mapped"
    ):
        repair = checkup.statement("UPDATE inodes SET allocated = ?, seq = ? WHERE ino = ?", right, SEQ, ino)
        what = f"{checkup.inode(ino)}: counts {counted} allocated bytes, {right} are mapped"
        yield Fault(what, "count corrected", repair)


def versions(checkup: Checkup) -> Iterator[Fault]:
    """A version behind what is covered would have replay drop what is written next."""
    for ino, version, covers in checkup.db.rows(
        "SELECT ino, version, covers FROM (SELECT i.ino, i.version, max(i.spooled,"
        " coalesce((SELECT max(m.covers) FROM mappings m WHERE m.ino = i.ino), 0),"
        " coalesce((SELECT max(v.covers) FROM voids v WHERE v.ino = i.ino), 0)) AS covers FROM inodes i)"
        " WHERE version < covers"
    ):
        repair = checkup.statement("UPDATE inodes SET version = ?, seq = ? WHERE ino = ?", covers + 1, SEQ, ino)
        yield Fault(f"{checkup.inode(ino)}: version {version} is behind its extents' {covers}", "moved on", repair)


# Leftovers: what an owner would do next. They go through the ledger, whose counts are right by now.


def voids(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    for (ino,) in db.rows("SELECT DISTINCT ino FROM voids WHERE ino NOT IN (SELECT ino FROM inodes)"):
        repair = checkup.statement("DELETE FROM voids WHERE ino = ?", ino)
        yield Fault(f"inode {ino}: missing, though it has a truncation to be finished", "removed", repair)
    for (ino,) in db.rows("SELECT ino FROM inodes WHERE nlink > 0 AND ino IN (SELECT ino FROM voids)"):
        if _has_void_mappings(checkup, ino):
            yield Fault(f"{checkup.inode(ino)}: a truncation is unfinished", "finished", partial(_cut, checkup, ino))
    if has_entries(checkup.paths.spool):  # its records may still need them
        return
    for (ino,) in db.rows("SELECT DISTINCT ino FROM voids WHERE ino IN (SELECT ino FROM inodes WHERE nlink > 0)"):
        if not _has_void_mappings(checkup, ino):
            what = f"{checkup.inode(ino)}: a truncation is noted that nothing needs"
            yield Fault(what, "removed", checkup.statement("DELETE FROM voids WHERE ino = ?", ino))


def _has_void_mappings(checkup: Checkup, ino: int) -> bool:
    return checkup.db.value(
        "SELECT 1 FROM voids v JOIN mappings m ON m.ino = v.ino WHERE v.ino = ? AND m.stop > v.start"
        " AND m.covers <= v.covers LIMIT 1", (ino,)
    ) is not None  # fmt: skip


def _cut(checkup: Checkup, ino: int) -> None:
    ledger = Ledger(checkup.db, time.time)
    while ledger.cut(ino):
        pass


def sizes(checkup: Checkup) -> Iterator[Fault]:
    """Bytes beyond the end; those that a truncation has voided are no fault of the size."""
    for ino, size, end in checkup.db.rows(
        f"SELECT ino, size, end FROM (SELECT i.ino, i.size, (SELECT max(m.stop) FROM mappings m WHERE m.ino = i.ino)"
        f" AS end FROM inodes i WHERE {IS_REGULAR} AND nlink > 0 AND ino NOT IN (SELECT ino FROM voids))"
        " WHERE end > size"
    ):
        if end > MAX_SIZE:
            continue
        repair = checkup.statement(
            "UPDATE inodes SET size = ?, version = version + 1, seq = ? WHERE ino = ?", end, SEQ, ino
        )
        yield Fault(f"{checkup.inode(ino)}: size is {size}, bytes are mapped up to {end}", "size corrected", repair)


def unlinked(checkup: Checkup) -> Iterator[Fault]:
    for (ino,) in checkup.db.rows(
        "SELECT ino FROM inodes i WHERE nlink = 0 AND NOT EXISTS (SELECT 1 FROM dentries d WHERE d.ino = i.ino)"
        " AND NOT EXISTS (SELECT 1 FROM dentries d WHERE d.parent = i.ino) AND ino NOT IN (SELECT ino FROM trash)"
    ):
        yield Fault(f"inode {ino}: was unlinked and is still there", "deleted", partial(_reap, checkup, ino))


def _reap(checkup: Checkup, ino: int) -> None:
    ledger = Ledger(checkup.db, time.time)
    names = Namespace(checkup.db, time.time_ns, ledger.unmap)
    while not names.reap(ino):
        pass
