"""An exNode store without a depot, whose files are written straight into the ledger."""

import os
from pathlib import Path

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, always
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, NewSlice, Settlement
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm


class Volume:
    """Open, with three files; `now` is its clock."""

    def __init__(self, root: Path) -> None:
        self.paths = VolumePaths(root)
        create_volume(self.paths, depots=["ibp://127.0.0.1:1"], owner=(0, 0))
        self.now = 1000.0
        self.open()
        self.inos = [self.names.create(1, b"%d" % one, NewInode(0o100644, 0, 0)).ino for one in range(3)]

    def open(self) -> None:
        self.db = Database(self.paths.store)
        self.ledger = Ledger(self.db, lambda: self.now)
        self.names = Namespace(self.db, lambda: 5, self.ledger.unmap)

    def again(self) -> None:
        """As after a crash: nothing but the database is left."""
        self.db.close()
        self.open()

    def segment(self) -> int:
        keys = [Key(os.urandom(8).hex(), "0") for _ in range(3)]
        with self.db.transaction():
            (row,) = self.ledger.add_pending([(1, *keys)])
            return self.ledger.add_segment(1, [NewReplica(row, 1, *keys, None, 1000.0)])

    def write(self, ino: int, start: int, length: int, segment: int) -> bytes:
        form = SliceForm(os.urandom(16), bytes.fromhex(self.db.facts["uuid"]), 1, AES_256_GCM, 65536, length)
        version = self.names.inode(ino).version + 1
        at = self.ledger.segment_length(segment)
        new = NewSlice(ino, start, start + length, version, form, bytes(16), at)
        settled = {ino: Settlement(None, None, version + 1, version + 1)}
        self.ledger.commit(segment, at + form.stored_length, [new], lambda: settled)
        return form.slice_id

    def slices_of(self, ino: int) -> set[bytes]:
        return {piece.source.form.slice_id for piece in self.ledger.extents(ino)}

    def all_mapped(self) -> set[bytes]:
        return set().union(*map(self.slices_of, self.inos))

    def standing(self) -> set[bytes]:
        return {one for (one,) in self.db.rows("SELECT slice_id FROM slices")}

    def release(self) -> None:
        while self.ledger.release_dead():
            pass

    def check(self) -> list[str]:
        """What fsck says, without what any owner does first."""
        said: list[str] = []
        self.db.close()
        checkup = Checkup(self.paths, always, said.append)
        check_store(checkup)
        self.open()
        assert checkup.outcome.corrected + checkup.outcome.left == 0, said
        return said
