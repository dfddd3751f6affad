"""Foreign bytes as parts of files: what stands in the ledger, what is renewed, copied and released of it."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, load_config, read_key_file
from ibpfs.depot.capability import Key
from ibpfs.errors import InvalidArgument, VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, Outcome, if_safe, never
from ibpfs.exnode_store.imports import LONGEST_PART, ForeignReplica, Imports, Part, describe_imports
from ibpfs.exnode_store.keys import open_slots
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NO_KEY
from ibpfs.exnode_store.merging import Merging
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.sealing import AES_256_GCM, MAX_SLICE, RAW, ForeignSlice, SliceForm

from .volumes import small_volume

NOW = time.time()


class Shelf:
    """An open volume without a depot behind it."""

    def __init__(self, paths: VolumePaths, db: Database) -> None:
        config = load_config(paths)
        self.paths, self.db = paths, db
        self.uuid = config.uuid
        keys = open_slots(config.slots, config.epochs, "keyfile", read_key_file(paths.key).value, config.uuid)
        self.ledger = Ledger(db, lambda: NOW)
        self.names = Namespace(db, time.time_ns, self.ledger.unmap)
        self.imports = Imports(db, self.ledger, keys, config.uuid)

    def new(self, name: bytes) -> int:
        return self.names.create(1, name, NewInode(stat.S_IFREG | 0o644, 0, 0)).ino

    def adopt(self, ino: int, parts: list[Part], size: int) -> None:
        for _ in self.imports.adopt(ino, parts, size):
            pass

    def delete(self, name: bytes) -> None:
        ino = self.names.unlink(1, name).ino
        while not self.names.reap(ino):
            pass

    def check(self) -> list[str]:
        said: list[str] = []
        checkup = Checkup(self.paths, never, said.append)
        check_store(checkup)
        assert (checkup.outcome == Outcome()) == (not said)
        return said


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    paths = small_volume(tmp_path / "volume")
    with Database(paths.store) as db:
        yield Shelf(paths, db)


def foreign(
    *, depot: int = 1, base: int = 0, manage: bool = False, owned: bool = False, name: str = ""
) -> ForeignReplica:
    read = Key(name or os.urandom(8).hex(), "1")
    return ForeignReplica(depot, base, read, NO_KEY, Key(f"m{read.key}", "1") if manage else NO_KEY, NOW + 100, owned)


def orphans(shelf: Shelf) -> list[str]:
    return sorted(one.manage.key for one in shelf.ledger.orphans())


def test_raw_parts_with_gaps(shelf: Shelf) -> None:
    ino = shelf.new(b"raw")
    shelf.adopt(ino, [Part(10, 110, (foreign(base=7), foreign(depot=2, base=0))), Part(200, 300, (foreign(),))], 1000)
    inode = shelf.names.inode(ino)
    assert (inode.size, inode.allocated) == (1000, 200)
    pieces = list(shelf.ledger.extents(ino))
    assert [(one.start, one.stop, one.source.form.function) for one in pieces] == [(10, 110, RAW), (200, 300, RAW)]
    assert [one.base for one in shelf.ledger.replicas(pieces[0].source.segment)] == [7, 0]
    assert shelf.check() == []
    found = describe_imports(shelf.db, ino)
    assert found is not None
    assert (found["allocations"], found["not_renewable"], found["owned"]) == (3, 3, False)
    assert describe_imports(shelf.db, 5) is None
    assert "imports" in shelf.db.facts["features"]


def test_an_import_that_is_broken_off(shelf: Shelf) -> None:
    """As a kill does: what there is holds together."""
    ino = shelf.new(b"raw")
    steps = shelf.imports.adopt(ino, [Part(at, at + 1, (foreign(),)) for at in range(1000)], 1000)
    assert 0 < next(steps) < 1000
    steps.close()
    assert 0 < shelf.names.inode(ino).size < 1000
    assert shelf.check() == []


def test_a_volume_without_the_newer_tables(shelf: Shelf) -> None:
    """As an older release left it: a reader adds them for itself alone, an owner for good."""
    shelf.adopt(shelf.new(b"raw"), [Part(0, 1000, (foreign(base=7),))], 1000)
    shelf.db.execute("DROP TABLE windows")
    with Database(shelf.paths.store, read_only=True) as reader:
        assert reader.value("SELECT count(*) FROM windows") == 0
        assert reader.value("SELECT base FROM imported") == 7
    assert shelf.check() == []
    with Database(shelf.paths.store) as owner:
        assert owner.value("SELECT count(*) FROM main.windows") == 0


def test_they_take_nobody_s_room(shelf: Shelf) -> None:
    before = shelf.ledger.live_bytes()
    shelf.adopt(shelf.new(b"raw"), [Part(0, 1000, (foreign(),))], 1000)
    assert shelf.ledger.live_bytes() == before


def test_long_parts_are_cut(shelf: Shelf) -> None:
    ino, size = shelf.new(b"long"), 2 * LONGEST_PART + MAX_SLICE + 1
    shelf.adopt(ino, [Part(0, size, (foreign(base=5),))], size)
    pieces = list(shelf.ledger.extents(ino))
    assert len(pieces) == 2 * LONGEST_PART // MAX_SLICE + 2
    bases = {one.base for piece in pieces for one in shelf.ledger.replicas(piece.source.segment)}
    assert bases == {5, 5 + LONGEST_PART, 5 + 2 * LONGEST_PART}
    assert shelf.check() == []


def test_the_warmer_leaves_them_as_they_are(shelf: Shelf) -> None:
    with shelf.db.transaction() as db:
        db.execute("UPDATE policies SET copies = 2")
    packing, shortages = shelf.ledger.packing(), shelf.ledger.shortages()
    shelf.adopt(shelf.new(b"raw"), [Part(0, 100, (foreign(manage=True),)), Part(100, 200, (foreign(),))], 200)
    assert shelf.ledger.packing() == packing
    assert shelf.ledger.shortages() == shortages
    assert shelf.ledger.under_replicated_bytes() == 0
    leased = [one for one in shelf.ledger.leased_replicas(1) if one.imported]
    assert [one.is_managed for one in leased] == [True]  # the other one cannot be renewed


def test_compaction_leaves_them_where_they_are(shelf: Shelf) -> None:
    ino = shelf.new(b"raw")
    shelf.adopt(ino, [Part(at, at + 1, (foreign(),)) for at in range(100)], 100)
    merging = Merging(shelf.db, shelf.ledger)
    assert merging.extents(ino, 0) == []


def test_what_is_released(shelf: Shelf) -> None:
    kept, owned = foreign(manage=True), foreign(manage=True, owned=True, name="shared")
    later = ForeignReplica(1, 50, owned.read, NO_KEY, owned.manage, NOW, True)
    shelf.adopt(shelf.new(b"a"), [Part(0, 50, (kept,)), Part(50, 100, (owned,))], 100)
    shelf.adopt(shelf.new(b"b"), [Part(0, 50, (later,))], 50)
    assert shelf.check() == []
    shelf.delete(b"a")
    assert orphans(shelf) == []  # one is not ours, the other holds a part of b, too
    shelf.delete(b"b")
    assert orphans(shelf) == ["mshared"]
    assert shelf.db.value("SELECT count(*) FROM imported") == 0


def test_the_key_of_another_volume_s_slice(shelf: Shelf) -> None:
    form = SliceForm(os.urandom(16), os.urandom(16), 1, AES_256_GCM, 65536, 1000)
    key = os.urandom(32)
    ino = shelf.new(b"sealed")
    with pytest.raises(VolumeError, match="carries no key"):
        shelf.adopt(ino, [Part(0, 100, (foreign(),), ForeignSlice(form, 0))], 100)
    parts = [
        Part(0, 100, (foreign(),), ForeignSlice(form, 0, key)),
        Part(200, 300, (foreign(),), ForeignSlice(form, 500)),
    ]
    with pytest.raises(VolumeError, match="carries no key"):
        shelf.adopt(ino, parts, 300)
    parts[1] = Part(200, 300, (foreign(),), ForeignSlice(form, 500, key))
    shelf.adopt(ino, parts, 300)
    assert shelf.imports.slice_key(1, form.slice_id) == key
    assert key not in shelf.paths.store.read_bytes()
    assert shelf.db.value("SELECT mapped FROM slices WHERE slice_id = ?", (form.slice_id,)) == 200
    assert shelf.check() == []
    with pytest.raises(InvalidArgument, match="is another one"):
        other = SliceForm(form.slice_id, form.origin, 1, AES_256_GCM, 65536, 999)
        shelf.adopt(shelf.new(b"x"), [Part(0, 100, (foreign(),), ForeignSlice(other, 0, key))], 100)
    shelf.delete(b"sealed")
    assert shelf.db.value("SELECT count(*) FROM imported_keys") == 0


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ([Part(0, 10, ())], 10),
        ([Part(0, 11, (foreign(),))], 10),
        ([Part(5, 5, (foreign(),))], 10),
        ([Part(-5, 5, (foreign(),))], 10),
        ([Part(0, 10, (foreign(),)), Part(9, 12, (foreign(),))], 20),
        ([Part(0, 1 << 63, (foreign(),))], 1 << 63),
    ],
)
def test_what_makes_no_file(shelf: Shelf, parts: list[Part], size: int) -> None:
    ino = shelf.new(b"x")
    with pytest.raises(InvalidArgument):
        shelf.adopt(ino, parts, size)
    assert shelf.check() == []


def test_only_into_a_new_file(shelf: Shelf) -> None:
    for ino in (1, 4, 99):
        with pytest.raises(InvalidArgument):
            shelf.adopt(ino, [], 0)


def test_notes_without_a_replica_are_a_fault(shelf: Shelf) -> None:
    shelf.adopt(shelf.new(b"raw"), [Part(0, 10, (foreign(),)), Part(10, 20, (foreign(),))], 20)
    with shelf.db.transaction() as db:
        db.execute("INSERT INTO imported VALUES (999, 1, 0, 0, 'x', 1)")
        db.execute("INSERT INTO imported_keys VALUES (999, 1, x'', 1)")
        db.execute("UPDATE imported SET segment = 999 WHERE replica = (SELECT min(replica) FROM imported)")
    assert len(shelf.check()) == 3
    checkup = Checkup(shelf.paths, if_safe, lambda _: None)
    check_store(checkup)
    assert checkup.outcome == Outcome(corrected=3)
    assert shelf.check() == []
