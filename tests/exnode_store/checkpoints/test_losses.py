"""What a lost spool takes with it: old bytes stay, holes that were being filled are no zeros."""

import time
from pathlib import Path

from ibpfs.exnode_store.checkpoints.commits import Dirty
from ibpfs.exnode_store.checkpoints.losses import note_lost
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from tests.exnode_store.volumes import BIG, FILE, small_volume


def test_holes_that_were_being_filled(tmp_path: Path) -> None:
    store = small_volume(tmp_path / "volume").store
    with Database(store) as db:
        ledger = Ledger(db, time.time)
        ledger.truncate(FILE, 20_000, db.seq + 50, spooled=False)  # longer than what is stored: a hole behind it
        before = [(piece.start, piece.stop, piece.source.row) for piece in ledger.extents(FILE)]
    lost = note_lost(store, [Dirty(FILE, 9000, [(1000, 10_000)]), Dirty(BIG, 5, [(0, 5), (1 << 40, 2 << 40)]),
                             Dirty(999, 1, [(0, 1)])])  # fmt: skip
    assert [(name.rpartition("/")[2], size) for name, size in lost] == [("file", 9000), ("big", 5)]
    with Database(store) as db:
        ledger = Ledger(db, time.time)
        pieces = list(ledger.extents(FILE))
        assert [(piece.start, piece.stop, piece.source.row) for piece in pieces[: len(before)]] == before
        assert [(piece.start, piece.stop) for piece in pieces[len(before) :]] == [(4196, 10_000)]
        assert ledger.replicas(pieces[-1].source.segment) == []
        assert db.value("SELECT size FROM inodes WHERE ino = ?", (FILE,)) == 20_000
        assert len(ledger.extents(BIG)) == 2
