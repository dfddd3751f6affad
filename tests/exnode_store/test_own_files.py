"""What is read past the volume's own depot, a real one."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.own_files import OwnFiles
from tests.cache.stack import Stack, run_depot, run_stack

MIB = 1 << 20
DATA = os.urandom(3 * MIB)


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


@asynccontextmanager
async def stored(volume: VolumePaths) -> AsyncIterator[tuple[Stack, OwnFiles, int]]:
    """A volume with a file of DATA, and the segment that it is in."""
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        await now.files.write(now.create(b"file").ino, 0, DATA)
        await now.files.flush()
        (segment,) = [row for (row,) in now.db.rows("SELECT id FROM segments")]
        yield now, now.transfer.own_files, segment


def forget_pages(volume: VolumePaths) -> None:
    """Have the kernel forget the depot's files. Pages that it is busy with stay."""
    for path in (volume.depot / "allocations").glob("*/*"):
        descriptor = os.open(path, os.O_RDWR)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def open_files(volume: VolumePaths) -> list[Path]:
    files: list[Path] = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # a thread has closed it meanwhile
            files.append(link.readlink())
    return [file for file in files if file.is_relative_to(volume.depot / "allocations")]


async def test_it_is_what_the_depot_would_give(volume: VolumePaths) -> None:
    async with stored(volume) as (now, own, segment):
        assert own.read_now(segment, 0, 10) is None
        assert not own.has(segment, 0, 10)
        assert await own.open(segment)
        assert not await own.open(segment)
        length = now.ledger.segment_length(segment)
        for start, stop in ((0, length), (MIB - 5, MIB + 5), (length - 1, length)):
            loaded = await now.transfer.load(segment, start, stop)
            at_hand = own.read_now(segment, start, stop)
            assert at_hand == loaded, "the replica and its name, too"
            assert own.has(segment, start, stop)
        assert own.read_now(segment, length, length + MIB) is None


async def test_many_who_want_it_at_once_ask_once(volume: VolumePaths) -> None:
    async with stored(volume) as (_, own, segment):
        opened: list[bool] = []

        async def ask() -> None:
            opened.append(await own.open(segment))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            nursery.start_soon(trio.lowlevel.checkpoint)
        await wait_all_tasks_blocked()  # the depot closes its own
        assert opened == 5 * [True]
        assert len(open_files(volume)) == 1


async def test_who_waits_for_one_that_is_cancelled_goes_on(volume: VolumePaths) -> None:
    async with stored(volume) as (_, own, segment), trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        found: list[bool] = []

        async def ask_and_leave() -> None:
            with scope:
                await own.open(segment)

        async def ask() -> None:
            found.append(await own.open(segment))

        nursery.start_soon(ask_and_leave)
        while not own._opening:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(ask)
        await trio.lowlevel.checkpoint()
        scope.cancel()
        with trio.fail_after(5):
            while not found:
                await trio.sleep(0.001)
        await own.open(segment)
        assert own.read_now(segment, 0, 1)


async def test_the_disk_is_never_waited_for(volume: VolumePaths) -> None:
    async with stored(volume) as (now, own, segment):
        await own.open(segment)
        with trio.fail_after(10):
            while own.read_now(segment, MIB, MIB + 10) is not None:  # a first look asks the disk, too
                await trio.sleep(0.01)
                forget_pages(volume)
        await now.transfer.load(segment, 0, 3 * MIB)
        assert own.read_now(segment, MIB, MIB + 10) is not None


async def test_what_nobody_uses_is_closed_and_a_deleted_file_gives_its_room_back(volume: VolumePaths) -> None:
    async with stored(volume) as (_, own, segment):
        await own.open(segment)
        await wait_all_tasks_blocked()  # the depot closes its own
        own.close_unused()
        own.read_now(segment, 0, 1)
        own.close_unused()
        assert open_files(volume)
        own.close_unused()
        assert not open_files(volume)
        assert await own.open(segment)
        await wait_all_tasks_blocked()
        own.close()
        assert not open_files(volume)


async def test_a_deleted_file_is_closed_though_it_is_read(volume: VolumePaths) -> None:
    async with stored(volume) as (_, own, segment):
        await own.open(segment)
        await wait_all_tasks_blocked()
        for path in (volume.depot / "allocations").glob("*/*"):
            path.unlink()
        assert own.read_now(segment, 0, 1)
        own.close_unused()
        assert own.read_now(segment, 0, 1) is None
        with trio.fail_after(5):
            while open_files(volume):  # a thread frees its blocks
                await trio.sleep(0.01)


async def test_a_suspect_replica_is_not_read(volume: VolumePaths) -> None:
    async with stored(volume) as (now, own, segment):
        await own.open(segment)
        await wait_all_tasks_blocked()
        own.forget(segment)
        assert not open_files(volume)
        (replica,) = now.ledger.replicas(segment)
        now.ledger.suspect(replica)
        assert not await own.open(segment)


async def test_a_depot_that_is_away_or_stuck_is_not_waited_for(volume: VolumePaths) -> None:
    async with stored(volume) as (now, own, segment):
        (depot,) = now.depots
        depot.client.drop_connections()
        (volume.depot / "depot.sock").rename(volume.depot / "away.sock")
        assert not await own.open(segment)
        (volume.depot / "away.sock").rename(volume.depot / "depot.sock")
        assert not await own.open(segment), "not again at once"
        own.close_unused()
        await depot.look()
        assert await own.open(segment)
