"""What a lost spool takes with it: holes that were being filled read as errors, never as zeros."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ibpfs.exnode_store.checkpoints.commits import Dirty
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewSlice
from ibpfs.exnode_store.sealing import AES_256_GCM, FRAME_SIZE, MAX_SLICE, SliceForm

_MOST_DEEP = 4096
#: Slices that are made for a hole, at most; they are longer where that is not enough.
_MOST_SLICES = 256


def note_lost(store: Path, dirty: Sequence[Dirty]) -> list[tuple[str, int]]:
    """(name, bytes) of the files. Where the store has bytes from before, they stay; where it has none, but the file
    goes on, a read fails from now on."""
    with Database(store) as db:
        ledger = Ledger(db, time.time)
        lost = []
        for one in dirty:
            row = db.row("SELECT size, version, policy FROM inodes WHERE ino = ?", (one.ino,))
            if row is None:
                continue
            lost.append((name_of(db, one.ino), one.size))
            _fence(db, ledger, one, *row)
        return lost


def _fence(db: Database, ledger: Ledger, one: Dirty, size: int, version: int, policy: int) -> None:
    """Map the holes among the runs to a segment that no depot has."""
    holes = [hole for start, stop in one.runs for hole in ledger.extents(one.ino).holes(start, min(stop, size))
             if start < size]  # fmt: skip
    volume = bytes.fromhex(db.facts["uuid"])
    slices, at = [], 0
    for start, stop in _pieces(holes):
        form = SliceForm(os.urandom(16), volume, 1, AES_256_GCM, FRAME_SIZE, stop - start)
        slices.append(NewSlice(one.ino, start, stop, version, form, bytes(16), at))
        at += form.stored_length
    if slices:
        with db.transaction():
            segment = ledger.add_segment(policy, [])
            ledger.commit(segment, at, slices, dict)
            ledger.close_segment(segment)


def _pieces(holes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, stop in holes:
        step = max(MAX_SLICE, -(-(stop - start) // _MOST_SLICES))
        for at in range(start, stop, step):
            yield at, min(stop, at + step)


def name_of(db: Database, ino: int) -> str:
    """A path of an inode."""
    words: list[str] = []
    while ino != 1 and len(words) < _MOST_DEEP:
        row = db.row("SELECT parent, name FROM dentries WHERE ino = ?", (ino,))
        if row is None:
            return f"a file without a name (inode {ino})"
        ino = row[0]
        words.append(row[1].decode("utf-8", "backslashreplace"))
    return "/" + "/".join(reversed(words))
