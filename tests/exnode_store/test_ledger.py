"""The ledger against a plain model: mappings, live bytes, releases, truncations that leave voids."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, NewSlice, pack_key, unpack_key
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm

KEY = Key("1#abc", "17")


class Scene:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.ledger = Ledger(db, lambda: 1000.0)
        self.names = Namespace(db, lambda: 5, self.ledger.unmap)
        self.seq = 0

    def file(self, name: bytes = b"f") -> int:
        return self.names.create(1, name, NewInode(0o100644, 0, 0)).ino

    def segment(self) -> int:
        with self.db.transaction():
            (row,) = self.ledger.add_pending([(1, KEY, KEY, KEY)])
            return self.ledger.add_segment(1, [NewReplica(row, 1, KEY, KEY, KEY, None, 1000.0)])

    def commit(self, segment: int, ino: int, start: int, length: int, *, limit: int | None = None,
               covers: int | None = None) -> bytes:  # fmt: skip
        self.seq += 1
        form = SliceForm(self.seq.to_bytes(16, "big"), bytes(16), 1, AES_256_GCM, 65536, length)
        at = self.ledger.segment_length(segment)
        stop = start + length if limit is None else limit
        new = NewSlice(ino, start, stop, self.seq if covers is None else covers, form, bytes(16), at)
        self.ledger.commit(segment, at + form.stored_length, [new], dict)
        return form.slice_id

    def check_sums(self) -> None:
        """What the columns say is what the rows add up to."""
        assert self.db.rows(
            "SELECT s.id FROM slices s WHERE mapped != (SELECT sum(stop - start) FROM mappings WHERE slice = s.id)"
        ) == []
        assert self.db.rows(
            "SELECT g.id FROM segments g WHERE live !="
            " (SELECT coalesce(sum(stored_length), 0) FROM slices WHERE segment = g.id)"
        ) == []
        assert self.db.rows(
            "SELECT i.ino FROM inodes i WHERE allocated !="
            " (SELECT coalesce(sum(stop - start), 0) FROM mappings WHERE ino = i.ino)"
        ) == []


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    with Database(paths.store) as db:
        yield Scene(db)


def bytes_of(scene: Scene, ino: int) -> dict[int, tuple[bytes, int]]:
    return {
        at: (piece.source.form.slice_id, piece.offset + at - piece.start)
        for piece in scene.ledger.extents(ino)
        for at in range(piece.start, piece.stop)
    }


@pytest.mark.parametrize("seed", range(20))
def test_random_commits_and_truncations_agree_with_a_model(scene: Scene, seed: int) -> None:
    dice = random.Random(seed)
    ino, model = scene.file(), {}
    segment = scene.segment()
    for _ in range(60):
        if dice.random() < 0.7:
            start, length = dice.randrange(100), dice.randrange(1, 40)
            slice_id = scene.commit(segment, ino, start, length)
            model |= {start + at: (slice_id, at) for at in range(length)}
        else:
            size = dice.randrange(120)
            scene.seq += 1
            scene.ledger.truncate(ino, size, scene.seq, spooled=dice.random() < 0.5)
            model = {at: value for at, value in model.items() if at < size}
        if dice.random() < 0.1:
            scene.ledger.close_segment(segment)
            segment = scene.segment()
        assert bytes_of(scene, ino) == model
        scene.check_sums()


def test_an_older_slice_never_covers_a_younger_one(scene: Scene) -> None:
    ino, segment = scene.file(), scene.segment()
    younger = scene.commit(segment, ino, 10, 10, covers=9)
    older = scene.commit(segment, ino, 0, 30, covers=5)
    found = bytes_of(scene, ino)
    assert {found[at][0] for at in range(10, 20)} == {younger}
    assert {found[at][0] for at in (*range(10), *range(20, 30))} == {older}
    scene.check_sums()


def test_what_a_truncation_cut_while_it_flew_is_not_mapped(scene: Scene) -> None:
    ino, segment = scene.file(), scene.segment()
    scene.commit(segment, ino, 0, 30, limit=12)
    assert scene.ledger.extents(ino).covered == 12
    scene.commit(segment, ino, 50, 5, limit=12)
    assert scene.ledger.extents(ino).covered == 12
    scene.check_sums()


def test_a_closed_segment_without_live_slices_becomes_orphans(scene: Scene) -> None:
    ino, segment = scene.file(), scene.segment()
    scene.commit(segment, ino, 0, 30)
    scene.commit(scene.segment(), ino, 0, 30)
    assert scene.ledger.orphans() == []  # still open: its writer may append
    scene.ledger.close_segment(segment)
    (orphan,) = scene.ledger.orphans()
    assert orphan.manage == KEY
    assert scene.ledger.replicas(segment) == []
    assert scene.ledger.segment_length(segment) == 0


def test_a_slice_of_a_file_that_is_gone_is_not_kept(scene: Scene) -> None:
    segment = scene.segment()
    scene.commit(segment, 999, 0, 30)
    assert scene.db.value("SELECT count(*) FROM slices") == 0
    scene.check_sums()


def test_a_huge_truncation_is_finished_by_the_cleaner_and_hidden_at_once(scene: Scene) -> None:
    ino, segment = scene.file(), scene.segment()
    with scene.db.transaction():
        for number in range(2500):
            scene.commit(segment, ino, 10 * number, 5)
    scene.seq += 1
    assert scene.ledger.truncate(ino, 7, scene.seq, spooled=False)
    assert bytes_of(scene, ino).keys() == set(range(5))
    rounds = 1
    while scene.ledger.cut(ino):
        rounds += 1
    assert rounds >= 2
    assert scene.ledger.voids(ino) == []
    scene.check_sums()


def test_pending_allocations_of_an_earlier_owner_become_orphans(scene: Scene) -> None:
    scene.ledger.add_pending([(1, KEY, KEY, KEY), (1, KEY, KEY, KEY)])
    assert scene.ledger.abandon_pending() == 2
    assert len(scene.ledger.orphans()) == 2
    assert scene.db.value("SELECT count(*) FROM pending") == 0


def test_a_key_in_the_tables_comes_back(scene: Scene) -> None:
    assert unpack_key(pack_key(KEY)) == KEY


def test_slices_that_lack_copies_are_found_in_the_order_they_were_made(scene: Scene) -> None:
    ino, full, short = scene.file(), scene.segment(), scene.segment()
    scene.commit(full, ino, 0, 100)
    second = scene.commit(short, ino, 100, 100)
    third = scene.commit(short, ino, 50, 80)
    (replica,) = scene.ledger.replicas(short)
    scene.ledger.suspect(replica)
    assert [scene.ledger.is_short(segment) for segment in (full, short, 99)] == [False, True, False]
    found = [(start, covers, ref.form.slice_id) for start, covers, ref in scene.ledger.short_slices(ino)]
    assert found == [(100, 2, second), (50, 3, third)]
    assert scene.ledger.segment_of(third) == short
    assert scene.ledger.segment_of(bytes(16)) is None
    scene.ledger.verified(scene.ledger.suspects()[0])
    assert scene.ledger.short_slices(ino) == []
