"""Pins and holds against a plain model: nothing pinned or held is ever released, everything else is in the end."""

import shutil
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ibpfs.errors import NameExists, NotFound
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, always
from ibpfs.exnode_store.merging import Merging
from ibpfs.exnode_store.pins import OVER

from .ledgers import Volume

MANY = 1200


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "volume")


class PinsAgainstModel(RuleBasedStateMachine):
    """The model: what each pin saw, what lay in each held segment."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(mkdtemp())
        self.volume = Volume(self.directory / "volume")
        self.segment = self.volume.segment()
        self.seen: dict[int, set[bytes]] = {}
        self.held: dict[str, tuple[set[bytes], int, float | None]] = {}
        self.count = 0

    def teardown(self) -> None:
        for pin in list(self.seen):
            self.volume.ledger.drop_pin(pin)
        for name in list(self.held):
            self.volume.ledger.let_go_of("share", name)
        self.volume.release()
        assert self.volume.standing() == self.volume.all_mapped()
        self.volume.check()
        self.volume.db.close()
        shutil.rmtree(self.directory)

    @rule(file=st.integers(0, 2), start=st.integers(0, 20), length=st.integers(1, 30))
    def write(self, file: int, start: int, length: int) -> None:
        self.volume.write(self.volume.inos[file], start, length, self.segment)

    @rule()
    def close(self) -> None:
        self.volume.ledger.close_segment(self.segment)
        self.segment = self.volume.segment()

    @rule(file=st.integers(0, 2), size=st.integers(0, 30))
    def truncate(self, file: int, size: int) -> None:
        ino = self.volume.inos[file]
        self.volume.ledger.truncate(ino, size, self.volume.names.inode(ino).version + 1, spooled=False)

    @rule()
    def pin(self) -> None:
        self.count += 1
        pin = self.volume.ledger.add_pin("test", str(self.count))
        self.seen[pin.id] = self.volume.all_mapped()

    @precondition(lambda self: self.seen)
    @rule(which=st.integers(0, 9))
    def unpin(self, which: int) -> None:
        pin = sorted(self.seen)[which % len(self.seen)]
        self.volume.ledger.drop_pin(pin)
        del self.seen[pin]

    @rule(which=st.integers(0, 9), seconds=st.none() | st.integers(1, 50))
    def hold(self, which: int, seconds: int | None) -> None:
        segments = [row for (row,) in self.volume.db.rows("SELECT id FROM segments WHERE live > 0")]
        if segments:
            self.count += 1
            segment = segments[which % len(segments)]
            until = None if seconds is None else self.volume.now + seconds
            self.volume.ledger.hold_segments("share", str(self.count), [segment], until)
            self.held[str(self.count)] = (self.lying_in(segment), segment, until)

    def lying_in(self, segment: int) -> set[bytes]:
        return {one for (one,) in self.volume.db.rows("SELECT slice_id FROM slices WHERE segment = ?", (segment,))}

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def let_go(self, which: int) -> None:
        name = sorted(self.held)[which % len(self.held)]
        self.volume.ledger.let_go_of("share", name)
        del self.held[name]

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.volume.now += seconds
        self.held = {
            name: one for name, one in self.held.items() if one[2] is None or one[2] > self.volume.now
        }

    @rule(which=st.integers(0, 9))
    def pack(self, which: int) -> None:
        """What compaction of segments does, if it may."""
        movable = [row[0] for row in self.volume.ledger.packing()]
        assert not {segment for _, segment, _ in self.held.values()} & set(movable)
        if movable:
            moves, at = [], self.volume.ledger.segment_length(self.segment)
            for run in self.volume.ledger.stored_slices(movable[which % len(movable)]):
                moves.append((run.row, at))
                at += run.length
            self.volume.ledger.move(self.segment, at, moves)

    @rule()
    def release(self) -> None:
        self.volume.release()
        held = [self.lying_in(segment) for _, segment, _ in self.held.values()]
        assert self.volume.standing() == self.volume.all_mapped().union(*self.seen.values(), *held)

    @rule()
    def crash(self) -> None:
        self.volume.again()
        self.volume.ledger.close_all_segments()
        self.segment = self.volume.segment()

    @rule()
    def check_volume(self) -> None:
        self.volume.check()
        self.segment = self.volume.segment()

    @invariant()
    def nothing_kept_is_released(self) -> None:
        standing = self.volume.standing()
        assert all(seen <= standing for seen in self.seen.values())
        assert all(slices <= self.lying_in(segment) for slices, segment, _ in self.held.values())
        assert self.volume.db.rows(
            "SELECT g.id FROM segments g WHERE live !="
            " (SELECT coalesce(sum(stored_length), 0) FROM slices WHERE segment = g.id)"
        ) == []


TestPinsAgainstModel = PinsAgainstModel.TestCase
TestPinsAgainstModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_many_dead_slices_go_in_bounded_transactions(volume: Volume) -> None:
    (ino, *_), segment = volume.inos, volume.segment()
    with volume.db.transaction():
        for at in range(MANY):
            volume.write(ino, at * 10, 5, segment)
    pin = volume.ledger.add_pin("test", "one")
    while volume.ledger.truncate(ino, 0, volume.names.inode(ino).version + 1, spooled=False):
        pass
    volume.release()
    assert volume.ledger.dead_bytes() == volume.ledger.live_bytes() > 0
    volume.ledger.drop_pin(pin.id)
    before, steps = volume.db.seq, 0
    while volume.ledger.release_dead():
        steps += 1
        if steps == 3:
            volume.again()
    assert steps > MANY // 1000
    assert volume.db.seq > before + 3
    assert volume.standing() == set()
    assert volume.ledger.live_bytes() == 0


def test_a_name_pins_once(volume: Volume) -> None:
    volume.ledger.add_pin("test", "one")
    with pytest.raises(NameExists):
        volume.ledger.add_pin("test", "one")
    assert [pin.name for pin in volume.ledger.pins("test")] == ["one"]


def test_segments_that_are_gone_are_not_held(volume: Volume) -> None:
    segment = volume.segment()
    with pytest.raises(NotFound, match="segment 99 is gone"):
        volume.ledger.hold_segments("share", "x", [segment, 99])
    assert volume.ledger.held("share") == []


def test_holds_of_a_link_end_a_day_after_it_was_seen_to_expire(volume: Volume) -> None:
    """A link whose store was put back from a backup may last: a mount is to have the time to see that."""
    (ino, *_), segment = volume.inos, volume.segment()
    volume.write(ino, 0, 10, segment)
    with volume.db.transaction() as db:
        db.execute("INSERT INTO shares (id, record, expires, seq) VALUES ('x', x'', 2000, ?)", (db.seq,))
    for name in ("x", "none"):
        volume.ledger.hold_segments("share", name, [segment], 2000.0)
    volume.ledger.truncate(ino, 0, volume.names.inode(ino).version + 1, spooled=False)
    volume.now = seen = 500_000.0
    for now in (seen, seen + 86399):
        volume.now = now
        volume.release()
        assert (volume.ledger.held("share"), volume.ledger.held(OVER)) == ([], [("x", seen + 86400, 1)])
        assert volume.standing() != set()
        volume.again()
    volume.now = seen + 86400
    volume.release()
    assert (volume.ledger.held(OVER), volume.standing()) == ([], set())


def test_what_a_depot_leases_for_longer_is_held_on_for_as_long(volume: Volume) -> None:
    """Whoever renews leases notes it, before it is noticed that the link expired."""
    first, second = volume.segment(), volume.segment()
    with volume.db.transaction() as db:
        db.execute("INSERT INTO shares (id, record, expires, seq) VALUES ('x', x'', 2000, ?)", (db.seq,))
    volume.ledger.hold_segments("share", "x", [first, second], 2000.0)
    volume.now = 3000.0
    volume.ledger.hold_segments(OVER, "x", [first], 3000.0 + 30 * 86400)
    volume.ledger.hold_segments(OVER, "x", [second], 3060.0)
    volume.release()
    assert volume.ledger.held("share") == []
    ends = volume.db.rows("SELECT segment, until FROM held_segments WHERE kind = ? ORDER BY segment", (OVER,))
    assert ends == [(first, 3000.0 + 30 * 86400), (second, 3000.0 + 86400)]


def test_a_volume_with_pins_is_refused_by_who_does_not_look_at_them(volume: Volume) -> None:
    assert "pins" not in volume.db.facts["features"]
    segment = volume.segment()
    volume.ledger.hold_segments("share", "x", [segment], 1e12)
    assert "pins" in volume.db.facts["features"]
    assert volume.ledger.held("share") == [("x", 1e12, 1)]


def test_what_only_a_pin_keeps_is_not_written_anew(volume: Volume) -> None:
    (ino, *_), segment = volume.inos, volume.segment()
    size = 4 * 1024 * 1024
    volume.write(ino, 0, size, segment)
    merging = Merging(volume.db, volume.ledger)
    pin = volume.ledger.add_pin("test", "one")
    volume.ledger.truncate(ino, 1000, 99, spooled=False)
    assert volume.ledger.half_dead == set()
    assert merging.half_dead_behind(0)[0] == []
    assert [one.mapped for one in merging.extents(ino, 0)] == [size]
    volume.ledger.drop_pin(pin.id)
    assert [one.mapped for one in merging.extents(ino, 0)] == [1000]
    assert [one.ino for one in merging.half_dead_behind(0)[0]] == [ino]


def test_fsck_finds_dead_slices_that_do_not_say_so(volume: Volume) -> None:
    (ino, *_), segment = volume.inos, volume.segment()
    volume.write(ino, 0, 10, segment)
    volume.ledger.add_pin("test", "one")
    volume.ledger.truncate(ino, 0, 99, spooled=False)
    volume.db.execute("UPDATE slices SET died = NULL, mapped = 3")
    volume.db.close()
    said: list[str] = []
    checkup = Checkup(volume.paths, always, said.append)
    check_store(checkup)
    assert checkup.outcome.corrected == 1
    assert any("only a pin or a hold keeps it: noted as dead" in line for line in said)
    volume.open()
    volume.check()
