"""A local disk that is full, or refuses: work waits in the spool, and no task ends."""

import logging
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.errors import NoSpace, VolumeError
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume

from .stack import Stack, run_depot, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


@pytest.fixture
def tight(small_disk: Path, tmp_path: Path) -> VolumePaths:
    """A volume whose store alone is on a small disk."""
    paths = VolumePaths(small_disk / "volume")
    create_volume(paths)
    for place in (paths.depot, paths.spool, paths.cache):
        (tmp_path / place.name).mkdir()
        place.rmdir()
        place.symlink_to(tmp_path / place.name)
    return paths


def use_up(now: Stack, ino: int) -> None:
    """Of a disk that is full: the room that the store's own files still have, to the last small transaction."""
    with pytest.raises(NoSpace):
        for number in range(1000):
            now.create(b"%d" % number)
    with pytest.raises(NoSpace):
        for number in range(1000):
            now.names.change(ino, AttributeChange(), above=number)


def fill(disk: Path) -> Path:
    other = disk / "other"
    with other.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    return other


async def test_uploads_wait_while_the_store_cannot_be_synced(
    volume: VolumePaths, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        Path(f"{volume.store}-wal").unlink()
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"kept")
        now.flusher.hurry(ino)
        with trio.fail_after(10):
            while now.flusher.trouble is None:
                await trio.sleep(0.01)
        assert isinstance(now.flusher.trouble, VolumeError)
        assert await now.files.read(ino, 0, 10) == b"kept"
        assert not now.db.value("SELECT count(*) FROM pending")
    assert "bytes wait in the spool: the local disk" in caplog.text
    caplog.clear()


async def test_releasing_waits_for_room_on_the_local_disk(
    tight: VolumePaths, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with run_depot(tight.depot.resolve()), run_stack(tight, warming=False) as now, trio.open_nursery() as nursery:
        await now.depots.wait_for_any(5)
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x" * 1000)
        await now.files.fsync(ino)
        now.ledger.unmap(ino, 10)
        with trio.fail_after(10):
            while not now.ledger.orphans():  # the flusher gives the segment back a moment after the fsync
                await now.transfer.close_old(every=True)
                await trio.sleep(0.01)
        other = fill(small_disk)
        use_up(now, ino)
        nursery.start_soon(now.warmer.run)
        with trio.fail_after(10):
            while "upkeep of the volume waits" not in caplog.text:
                await trio.sleep(0.01)
            other.unlink()
            while now.ledger.orphans():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    caplog.clear()


async def test_a_read_goes_on_although_a_bad_replica_cannot_be_noted(
    tight: VolumePaths, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_depot(tight.depot.resolve()), run_stack(tight) as now:
        await now.depots.wait_for_any(5)
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x" * 1000)
        await now.files.fsync(ino)
        (replica,) = now.ledger.replicas(1)
        fill(small_disk)
        use_up(now, ino)
        now.transfer.report(replica.id, "it is wrong")
        assert not now.ledger.replicas(1)[0].suspect
    caplog.clear()
