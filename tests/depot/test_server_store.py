"""Allocations on disk: what a restart finds, when leases end, how much may be promised."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server import store
from ibpfs.depot.server.allocation import HEADER_BYTES, PERMANENT, Allocation
from ibpfs.depot.server.laying import lay_ahead
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.store import AllocationStore, NewKeys
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.wire.errors import CapabilityNotFound, NoRoom
from ibpfs.depot.wire.protocol import Reliability

READ, WRITE, MANAGE = CapabilityKind


class Steered:
    """A store with a clock of its own that can be opened again."""

    def __init__(self, directory: Path, capacity: int | None = 1 << 20) -> None:
        self.directory = directory
        self.capacity = capacity
        self.now = 1_700_000_000.0
        self.unsynced = Unsynced()
        self.open()

    def open(self) -> None:
        self.unsynced.close()
        self.store = AllocationStore(
            self.directory,
            rules=LeaseRules(None, permanent=True),
            grace=100.0,
            clock=lambda: self.now,
            capacity=self.capacity,
        )

    def allocate(self, size: int = 1000, duration: float = 50, counted: bool = False) -> NewKeys:
        return self.store.allocate(size, duration, Reliability.STABLE, self.unsynced, counted=counted)

    def append(self, keys: NewKeys, data: bytes) -> None:
        allocation = self.store.find(WRITE, keys.write)
        fd = self.store.open(allocation)
        self.store.write_data(fd, memoryview(data), allocation.size)
        self.store.keep_data(allocation, fd, allocation.size + len(data))
        self.store.hand_over(allocation, fd, self.unsynced)

    def read(self, keys: NewKeys) -> bytes:
        allocation = self.store.find(READ, keys.read)
        fd = self.store.open(allocation)
        try:
            return self.store.read_data(fd, 0, allocation.size)
        finally:
            os.close(fd)

    def find(self, keys: NewKeys, **options: bool) -> Allocation:
        return self.store.find(MANAGE, keys.manage, **options)

    def files(self) -> list[Path]:
        return [path for path in (self.directory / "allocations").rglob("*") if path.is_file()]


@pytest.fixture
def steered(tmp_path: Path) -> Any:
    steered = Steered(tmp_path / "store")
    yield steered
    steered.unsynced.close()


def test_a_restart_finds_everything(steered: Steered) -> None:
    keys = steered.allocate(size=5000, duration=PERMANENT, counted=True)
    steered.append(keys, b"0123456789")
    steered.store.update(steered.find(keys), steered.unsynced, read_count=7, write_count=0, read_only=True)
    before = steered.find(keys)
    steered.open()
    after = steered.find(keys)
    assert after is not before
    for name in Allocation.__slots__:
        assert getattr(after, name) == getattr(before, name)
    assert steered.read(keys) == b"0123456789"
    assert steered.store.table.allocated == 5000


def test_bytes_behind_the_size_are_cut_at_start(steered: Steered) -> None:
    keys = steered.allocate()
    steered.append(keys, b"kept")
    allocation = steered.find(keys)
    fd = steered.store.open(allocation)
    steered.store.write_data(fd, memoryview(b"never acknowledged"), 4)
    os.close(fd)
    steered.open()
    assert steered.files()[0].stat().st_size == HEADER_BYTES + 4
    assert steered.read(keys) == b"kept"


def test_small_appends_find_zeros_which_count_for_nothing(steered: Steered) -> None:
    keys = steered.allocate(size=500)
    steered.append(keys, b"x" * 100)
    allocation, (file,) = steered.find(keys), steered.files()
    fd = steered.store.open(allocation)
    lay_ahead(allocation, fd, 100)
    assert file.stat().st_size == HEADER_BYTES + 200
    steered.append(keys, b"y" * 50)
    lay_ahead(allocation, fd, 50)
    assert file.stat().st_size == HEADER_BYTES + 200  # it is laid out yet
    steered.append(keys, b"z" * 250)
    lay_ahead(allocation, fd, 250)
    assert file.stat().st_size == HEADER_BYTES + 500  # and never beyond what the allocation may hold
    os.close(fd)
    assert steered.read(keys) == b"x" * 100 + b"y" * 50 + b"z" * 250
    steered.store.resize(allocation, 450, Unsynced())
    assert file.stat().st_size == HEADER_BYTES + 450
    steered.open()
    assert steered.read(keys) == b"x" * 100 + b"y" * 50 + b"z" * 250


def test_an_allocate_that_was_never_answered_is_removed(steered: Steered) -> None:
    for content in (b"", b"ibpfsAL1 torn", bytes(HEADER_BYTES)):
        (steered.directory / "allocations" / "ab" / f"ab{len(content):030x}").write_bytes(content)
    steered.open()
    assert steered.files() == []


def test_a_damaged_header_is_put_aside_and_said(
    steered: Steered, caplog: pytest.LogCaptureFixture
) -> None:
    keys = steered.allocate()
    steered.append(keys, b"precious")
    path = steered.files()[0]
    path.write_bytes(bytes(HEADER_BYTES) + b"precious")
    steered.open()
    with pytest.raises(CapabilityNotFound):
        steered.find(keys)
    assert [file.parent.name for file in steered.files()] == ["damaged"]
    assert "is damaged" in caplog.text


def test_files_are_private_and_hold_no_key(steered: Steered) -> None:
    keys = steered.allocate()
    steered.append(keys, b"data")
    for path in steered.directory.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    raw = steered.files()[0].read_bytes()
    assert not any(key[2:].encode() in raw for key in (keys.read, keys.write, keys.manage))
    assert keys.read not in repr(keys)


class TestLeases:
    def test_an_ended_one_is_gone_but_for_renewal(self, steered: Steered) -> None:
        keys = steered.allocate(duration=50)
        steered.append(keys, b"data")
        steered.now += 50
        for kind, key in ((READ, keys.read), (WRITE, keys.write), (MANAGE, keys.manage)):
            with pytest.raises(CapabilityNotFound):
                steered.store.find(kind, key)
        allocation = steered.find(keys, even_ended=True)
        steered.store.update(allocation, steered.unsynced, lease_end=steered.now + 50)
        assert steered.read(keys) == b"data"

    def test_deleted_after_the_grace_time(self, steered: Steered) -> None:
        keys = steered.allocate(duration=50)
        steered.now += 149
        assert steered.store.delete_ended() == 0
        steered.find(keys, even_ended=True)
        steered.now += 1
        assert steered.store.delete_ended() == 1
        with pytest.raises(CapabilityNotFound):
            steered.find(keys, even_ended=True)
        assert steered.files() == []
        assert (steered.store.table.allocated, len(steered.store.table)) == (0, 0)

    def test_renewed_and_shortened(self, steered: Steered) -> None:
        longer, shorter, endless = (steered.allocate(duration=50) for _ in range(3))
        steered.store.update(steered.find(longer), steered.unsynced, lease_end=steered.now + 1000)
        steered.store.update(steered.find(endless), steered.unsynced, lease_end=PERMANENT)
        steered.store.update(steered.find(shorter), steered.unsynced, lease_end=steered.now + 10)
        steered.now += 111
        assert steered.store.delete_ended() == 1
        steered.now += 1000
        assert steered.store.delete_ended() == 1
        steered.now += 10**9
        assert steered.store.delete_ended() == 0
        steered.find(endless)

    def test_a_permanent_lease_can_be_ended(self, steered: Steered) -> None:
        keys = steered.allocate(duration=PERMANENT)
        steered.store.update(steered.find(keys), steered.unsynced, lease_end=steered.now + 1)
        steered.now += 102
        assert steered.store.delete_ended() == 1

    def test_a_wrong_clock_at_start_deletes_nothing_at_once(self, steered: Steered) -> None:
        keys = steered.allocate(duration=50)
        steered.now += 10**9
        steered.open()
        assert steered.store.delete_ended() == 0
        steered.find(keys, even_ended=True)
        steered.now += 100
        assert steered.store.delete_ended() == 1

    def test_leases_shortened_for_ever_take_no_memory(self, steered: Steered) -> None:
        keys = steered.allocate(duration=50)
        for _ in range(3000):
            unsynced = Unsynced()
            steered.store.update(steered.find(keys), unsynced, lease_end=steered.now + 60)
            steered.store.update(steered.find(keys), unsynced, lease_end=steered.now + 50)
            unsynced.close()
        assert len(steered.store.table._by_end) < 1100


class TestBlocks:
    """Of what is deleted: freed with the last descriptor."""

    @pytest.fixture
    def steered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        steered = Steered(tmp_path / "store", capacity=1 << 30)
        monkeypatch.setattr(steered.store, "_disk_free", lambda: 1 << 40)
        yield steered
        steered.unsynced.close()

    def long(self, steered: Steered) -> NewKeys:
        keys = steered.allocate(size=2 << 20)
        steered.append(keys, os.urandom(2 << 20))
        return keys

    def deleted(self, steered: Steered, *keys: NewKeys) -> list[int]:
        steered.unsynced.close()
        for allocation in [steered.find(one) for one in keys]:
            steered.store.delete(allocation, steered.unsynced)
            assert not Path(steered.store.path(allocation)).exists()
        return steered.unsynced.deleted

    def test_long_ones_are_left_to_who_syncs(self, steered: Steered) -> None:
        (fd,) = self.deleted(steered, self.long(steered))
        assert os.fstat(fd).st_nlink == 0
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 >= 2 << 20

    def test_short_ones_are_not(self, steered: Steered) -> None:
        keys = steered.allocate()
        steered.append(keys, bytes(1000))
        assert self.deleted(steered, keys) == []

    def test_nor_are_any_on_a_disk_that_is_nearly_full(
        self, steered: Steered, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = self.long(steered)
        steered.allocate(size=1 << 29)
        monkeypatch.setattr(steered.store, "_disk_free", lambda: (1 << 30) + (1 << 29) - 1)
        assert self.deleted(steered, keys) == []

    def test_nor_one_that_cannot_be_deleted(self, steered: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = self.long(steered)
        steered.unsynced.close()
        before = len(list(Path("/proc/self/fd").iterdir()))

        def refused(path: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "unlink", refused)
        with pytest.raises(OSError, match="Read-only"):
            steered.store.delete(steered.find(keys), steered.unsynced)
        assert steered.unsynced.deleted == []
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_nor_more_than_there_are_descriptors_for(self, steered: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "MOST_HELD", 2)
        assert len(self.deleted(steered, *[self.long(steered) for _ in range(3)])) == 2

    def test_what_ended_and_cannot_be_deleted_is_not_forgotten(
        self, steered: Steered, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = [steered.allocate() for _ in range(3)]

        def refused(path: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refused)
            steered.now += 151
            with pytest.raises(OSError, match="Read-only"):
                steered.store.delete_ended()
        assert len(steered.store.table) == len(keys)
        assert steered.store.delete_ended() == len(keys)
        assert steered.files() == []

    def test_what_ended_is_left_to_who_asked_for_it(self, steered: Steered) -> None:
        for _ in range(2):
            self.long(steered)
            steered.now += 151
            unsynced = Unsynced()
            assert steered.store.delete_ended(unsynced) == 1
            assert len(unsynced.deleted) == 1
            unsynced.close()
        self.long(steered)
        steered.unsynced.close()
        before = len(list(Path("/proc/self/fd").iterdir()))
        steered.now += 151
        assert steered.store.delete_ended() == 1
        assert len(list(Path("/proc/self/fd").iterdir())) == before


class TestCapacity:
    def test_promises_are_what_counts(self, steered: Steered) -> None:
        steered.allocate(size=1 << 19)
        keys = steered.allocate(size=1 << 19)
        with pytest.raises(NoRoom):
            steered.allocate(size=1)
        steered.store.delete(steered.find(keys), steered.unsynced)
        steered.allocate(size=1 << 19)

    def test_growth_counts(self, steered: Steered) -> None:
        keys = steered.allocate(size=1 << 19)
        steered.store.resize(steered.find(keys), 1 << 20, steered.unsynced)
        with pytest.raises(NoRoom):
            steered.store.resize(steered.find(keys), (1 << 20) + 1, steered.unsynced)
        steered.store.resize(steered.find(keys), 10, steered.unsynced)
        assert steered.store.free() == (1 << 20) - 10

    def test_ended_allocations_make_room_after_their_grace(self, steered: Steered) -> None:
        steered.allocate(size=1 << 20, duration=50)
        steered.now += 60
        with pytest.raises(NoRoom):
            steered.allocate()
        steered.now += 100
        steered.allocate()

    def test_no_more_than_the_disk_has(self, tmp_path: Path) -> None:
        steered = Steered(tmp_path / "store", capacity=1 << 60)
        disk = os.statvfs(tmp_path)
        assert steered.store.free() <= disk.f_blocks * disk.f_frsize
        with pytest.raises(NoRoom):
            steered.allocate(size=1 << 59)

    def test_default_is_a_share_of_the_disk(self, tmp_path: Path) -> None:
        disk = os.statvfs(tmp_path)
        free = disk.f_bavail * disk.f_frsize
        capacity = Steered(tmp_path / "store", capacity=None).store.capacity
        assert 0.8 * free < capacity < 0.95 * free


@pytest.mark.parametrize("change", [{"size": 3}, {"lease_end": 1.0}, {"read_count": 9}])
def test_a_change_that_cannot_be_written_did_not_happen(
    steered: Steered, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = steered.allocate()
    allocation = steered.find(keys)
    before = [getattr(allocation, name) for name in Allocation.__slots__]
    real = os.pwrite

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoRoom):
        steered.store.update(allocation, steered.unsynced, **change)
    with pytest.raises(NoRoom):
        steered.allocate()
    monkeypatch.setattr(os, "pwrite", real)
    assert [getattr(allocation, name) for name in Allocation.__slots__] == before
    assert len(steered.files()) == len(steered.store.table) == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_sums_agree_after_deletion(
    tmp_path_factory: pytest.TempPathFactory, amounts: list[int], which: int
) -> None:
    steered = Steered(tmp_path_factory.mktemp("sums") / "store")
    everything = [steered.allocate(size=50) for _ in amounts]
    for keys, amount in zip(everything, amounts, strict=True):
        steered.append(keys, b"x" * amount)
    steered.store.delete(steered.find(everything[which % len(amounts)]), steered.unsynced)
    sums = steered.store.table.stored, steered.store.table.allocated, steered.store.table.stable_allocated
    steered.open()
    table = steered.store.table
    assert sums == (table.stored, table.allocated, table.stable_allocated)
    steered.unsynced.close()


def test_allocations_of_one_batch_lie_in_two_directories_at_most(tmp_path: Path) -> None:
    depot = Steered(tmp_path)
    for _ in range(40):
        depot.allocate(size=10)
    assert len(depot.unsynced.directories) <= 2
    depot.unsynced.close()
