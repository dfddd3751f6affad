"""The exchange of mappings against a plain model: files show the same bytes, spool records count as they did."""

import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.exnode_store import merging
from ibpfs.exnode_store.compaction import WASTE, Extent
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger_rows import Settlement
from ibpfs.exnode_store.merging import Merged, Merging
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm
from tests.exnode_store.test_ledger import Scene

#: A byte of a file: of which commit, which byte of it; and up to which record it is covered.
Content = dict[int, tuple[bytes, int]]


class MergeScene(Scene):
    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.merging = Merging(db, self.ledger)
        self.made_of: dict[int, list[tuple[bytes, int]]] = {}  # merged slices by row

    def settle(self, ino: int) -> None:
        self.seq += 1
        self.ledger.commit(self.segment(), 0, [], lambda: {ino: Settlement(None, None, self.seq, self.seq)})

    def plan(self, ino: int, dice: random.Random) -> tuple[Extent, ...]:
        extents = self.merging.extents(ino, 0)
        return tuple(one for one in extents if dice.random() < 0.7)

    def merge(self, segment: int, ino: int, parts: tuple[Extent, ...], batch: int = 1000) -> int | None:
        self.seq += 1
        size = sum(part.size for part in parts)
        made_of = [byte for part in parts for byte in self._bytes(part)]
        form = SliceForm(self.seq.to_bytes(16, "big"), bytes(16), 1, AES_256_GCM, 65536, size)
        at = self.ledger.segment_length(segment)
        new = Merged(form, bytes(16), segment, at, at + form.stored_length)
        offsets = accumulate((part.size for part in parts[:-1]), initial=0)
        placed = list(zip(parts, offsets, strict=True))
        row = None
        for first in range(0, len(placed), batch):
            row = self.merging.exchange(ino, placed[first : first + batch], new, row)
        if row is not None:
            self.made_of[row] = made_of
        return row

    def _bytes(self, part: Extent) -> list[tuple[bytes, int]]:
        if part.slice in self.made_of:
            return self.made_of[part.slice][part.offset : part.offset + part.size]
        slice_id = self.db.value("SELECT slice_id FROM slices WHERE id = ?", (part.slice,))
        return [(slice_id, part.offset + at) for at in range(part.size)]

    def shown(self, ino: int) -> Content:
        found: Content = {}
        for piece in self.ledger.extents(ino):
            row = piece.source.row
            for at in range(piece.start, piece.stop):
                offset = piece.offset + at - piece.start
                found[at] = self.made_of[row][offset] if row in self.made_of else (piece.source.form.slice_id, offset)
        return found

    def covers(self, ino: int) -> dict[int, int]:
        """Per byte, with all that is settled being one."""
        settled = self.db.value("SELECT spooled FROM inodes WHERE ino = ?", (ino,))
        rows = self.db.rows("SELECT start, stop, covers FROM mappings WHERE ino = ?", (ino,))
        return {at: max(covers, settled) for start, stop, covers in rows for at in range(start, stop)}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[MergeScene]:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    with Database(paths.store) as db:
        yield MergeScene(db)


@pytest.mark.parametrize("seed", range(20))
def test_random_merges_beside_commits_and_truncations(scene: MergeScene, seed: int) -> None:
    dice = random.Random(seed)
    ino, segment = scene.file(), scene.segment()
    planned: tuple[Extent, ...] = ()
    for _ in range(60):
        what = dice.choice(["commit"] * 5 + ["truncate", "cut", "settle", "plan", "merge", "merge", "close"])
        before, covers = scene.shown(ino), scene.covers(ino)
        if what == "commit":
            scene.commit(segment, ino, dice.randrange(100), dice.randrange(1, 40))
        elif what == "truncate":
            scene.seq += 1
            scene.ledger.truncate(ino, dice.randrange(120), scene.seq, spooled=dice.random() < 0.5)
        elif what == "cut":
            scene.ledger.cut(ino)
        elif what == "settle":
            scene.settle(ino)
        elif what == "plan":
            planned = scene.plan(ino, dice)
        elif what == "merge" and planned:
            # What was planned a while ago, or just now, in one transaction or in several.
            parts = planned if dice.random() < 0.5 else scene.plan(ino, dice)
            if parts:
                scene.merge(segment, ino, parts, dice.choice([1, 2, 1000]))
            assert scene.shown(ino) == before
            assert scene.covers(ino) == covers
        elif what == "close":
            scene.ledger.close_segment(segment)
            segment = scene.segment()
        scene.check_sums()


def three(scene: MergeScene, ino: int) -> tuple[Extent, ...]:
    segment = scene.segment()
    for at in range(3):
        scene.commit(segment, ino, 10 * at, 10)
    return tuple(scene.merging.extents(ino, 0))


def rows(scene: MergeScene, ino: int) -> list[tuple[int, int, int]]:
    return scene.db.rows("SELECT start, stop, covers FROM mappings WHERE ino = ?", (ino,))


def slices(scene: MergeScene, ino: int) -> int:
    return len({one.slice for one in scene.merging.extents(ino, 0)})


def test_settled_neighbours_become_one_mapping(scene: MergeScene) -> None:
    ino = scene.file()
    parts = three(scene, ino)
    scene.settle(ino)
    scene.merge(scene.segment(), ino, parts)
    assert rows(scene, ino) == [(0, 30, 3)]


def test_records_on_their_way_tell_mappings_apart(scene: MergeScene) -> None:
    ino = scene.file()
    scene.merge(scene.segment(), ino, three(scene, ino))
    assert rows(scene, ino) == [(0, 10, 1), (10, 20, 2), (20, 30, 3)]
    assert slices(scene, ino) == 1


def test_a_file_whose_truncation_is_being_finished_is_left_alone(scene: MergeScene) -> None:
    ino = scene.file()
    parts = three(scene, ino)
    scene.settle(ino)
    scene.seq += 1
    scene.ledger.truncate(ino, 25, scene.seq, spooled=True)
    assert scene.merging.extents(ino, 0) == []
    assert scene.merge(scene.segment(), ino, parts) is None
    assert len(rows(scene, ino)) == 3


def test_old_slices_are_released_with_their_segment(scene: MergeScene) -> None:
    ino = scene.file()
    parts = three(scene, ino)
    old = scene.ledger.extents(ino).find(0, 1)[0].source.segment
    scene.ledger.close_segment(old)
    scene.merge(scene.segment(), ino, parts)
    assert scene.ledger.segment_length(old) == 0
    assert len(scene.ledger.orphans()) == 1


def test_a_merge_for_nothing_leaves_a_segment_that_goes_when_it_closes(scene: MergeScene) -> None:
    ino = scene.file()
    parts = three(scene, ino)
    scene.commit(scene.segment(), ino, 0, 30)
    new = scene.segment()
    assert scene.merge(new, ino, parts) is None
    scene.ledger.close_segment(new)
    assert scene.ledger.segment_length(new) == 0


def test_who_added_slices_is_noted_and_found(scene: MergeScene) -> None:
    segment = scene.segment()
    whole, crowd = scene.file(b"whole"), scene.file(b"crowd")
    scene.commit(segment, whole, 0, 4 * WASTE)
    for at in range(20):
        scene.commit(segment, crowd, 10 * at, 10)
    (found,) = scene.merging.touched()
    assert (found.ino, found.extents, found.allocated) == (crowd, 20, 200)
    assert scene.merging.touched() == []
    scene.ledger.truncate(whole, 2 * WASTE, scene.seq + 1, spooled=False)
    assert scene.merging.touched() == []
    scene.ledger.truncate(whole, WASTE, scene.seq + 1, spooled=False)
    (found,) = scene.merging.touched()
    assert (found.ino, found.extents, found.allocated) == (whole, 1, WASTE)


def test_all_files_and_slices_are_looked_through(scene: MergeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_AT_ONCE", 3)
    segment = scene.segment()
    inos = [scene.file(b"%d" % number) for number in range(10)]
    for ino in inos[:5]:
        for at in range(20):
            scene.commit(segment, ino, 10 * at, 10)
    for ino in inos[5:]:
        scene.commit(segment, ino, 0, 4 * WASTE)
        scene.ledger.truncate(ino, 10, scene.seq + 1, spooled=False)
    for behind, expected in ((scene.merging.crowded_behind, inos[:5]), (scene.merging.half_dead_behind, inos[5:])):
        found: list[int] = []
        crowds, last = behind(0)
        while last:
            found += [crowd.ino for crowd in crowds]
            crowds, last = behind(last)
        assert found == expected


def test_a_file_without_a_name_is_not_looked_at(scene: MergeScene) -> None:
    ino = scene.file()
    three(scene, ino)
    assert scene.merging.crowd(ino) is not None
    scene.names.unlink(1, b"f")
    assert scene.merging.crowd(ino) is None
    assert scene.merging.touched() == []


def test_what_was_exported_since_the_plan_stays_where_it_is(scene: MergeScene) -> None:
    ino, segment, target = scene.file(), scene.segment(), scene.segment()
    scene.commit(segment, ino, 0, 10)
    scene.commit(segment, ino, 10, 20)
    planned = tuple(scene.merging.extents(ino, 0))
    before = scene.shown(ino)
    scene.ledger.keep_for_windows(segment, scene.ledger.now() + 10)
    assert scene.merge(target, ino, planned) is None
    assert scene.shown(ino) == before
    scene.ledger.move(target, 100, [(part.slice, 0) for part in planned])
    assert {piece.source.segment for piece in scene.ledger.extents(ino)} == {segment}
