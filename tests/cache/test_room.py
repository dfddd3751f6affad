"""Room for writes: who waits how long, and which reason is told."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from ibpfs.cache import commits, queue
from ibpfs.cache.room import LOCAL_LIMIT, RESERVE, Limits
from ibpfs.config import VolumePaths
from ibpfs.errors import DeadlineExceeded, NoSpace
from ibpfs.exnode_store.creation import create_volume

from .stack import run_depot, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


@pytest.mark.parametrize(
    ("deadline", "waits", "free"),
    [(20.0, LOCAL_LIMIT, 4096), (2.0, 2.0, 4096), (2.0, 2.0, RESERVE + (40 << 20) + 4096)],
)
async def test_a_full_local_disk_is_told_soon(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, deadline: float, waits: float,
    free: int,
) -> None:  # fmt: skip
    async with run_stack(volume, Limits(deadline=deadline)) as now:
        ino = now.create(b"file").ino
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
        began = trio.current_time()
        with pytest.raises(NoSpace, match="the spool's disk is full"):
            await now.files.write(ino, 0, bytes(8192))
        assert waits <= trio.current_time() - began <= waits + 1


async def test_depots_that_take_nothing_are_waited_for_until_the_deadline(
    volume: VolumePaths, autojump_clock: object
) -> None:
    async with run_stack(volume, Limits(records=1, deadline=20.0)) as now:
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x")
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await now.files.write(ino, 1, b"x")
        assert 20 <= trio.current_time() - began <= 21


async def test_a_zero_that_waited_for_room_hides_nothing_that_was_written_meanwhile(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume, Limits(records=1)) as now:
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"a" * 100)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(now.files.write, ino, 100, b"b" * 100)
                nursery.start_soon(now.files.write, ino, 300, b"\0")
                now.flusher.hurry(ino)
        assert await now.files.read(ino, 0, 1000) == b"a" * 100 + b"b" * 100 + bytes(101)


async def test_what_is_deleted_from_full_depots_makes_room_for_who_writes_then(volume: VolumePaths) -> None:
    data = bytes(4 << 20)
    async with run_depot(volume.depot, capacity=20 << 20), run_stack(volume) as now:
        assert await now.depots.wait_for_any(5)
        for name in (b"first", b"second", b"third"):
            ino = now.create(name).ino
            for at in range(0, 16 << 20, len(data)):
                await now.files.write(ino, at, data)
            await now.files.flush()
            with pytest.raises(NoSpace):
                await now.files.write(ino, 16 << 20, data)
            now.files.unlinked(now.names.unlink(1, name))
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_what_closed_segments_did_not_use_is_room(volume: VolumePaths) -> None:
    async with run_depot(volume.depot, capacity=40 << 20), run_stack(volume) as now:
        assert await now.depots.wait_for_any(5)
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, bytes(1 << 20))
        await now.files.flush()
        await now.transfer.close_old(every=True)
        assert now.transfer.free_bytes(1) >= 38 << 20


async def test_what_is_let_through_unseen_keeps_to_every_limit(volume: VolumePaths) -> None:
    limits = Limits(dirty=2 << 20, records=200, spool=1 << 30, deadline=0.5)
    async with run_depot(volume.depot), run_stack(volume, limits) as now:
        assert await now.depots.wait_for_any(5)
        ino = now.create(b"file").ino
        with pytest.raises(DeadlineExceeded):
            for at in range(1000):
                await now.files.write(ino, 2 * at, b"x")
        assert now.files.dirty_bytes <= limits.records


async def test_room_that_went_away_is_noticed_soon(volume: VolumePaths, autojump_clock: object) -> None:
    async with run_depot(volume.depot), run_stack(volume, Limits(deadline=2.0)) as now:
        assert await now.depots.wait_for_any(5)
        ino = now.create(b"file").ino
        await now.files.write(ino, 0, b"x")  # much room: more are let through
        (depot,) = now.depots
        depot.free_bytes = 0
        await trio.sleep(1.5)
        await now.files.write(ino, 1, b"x")
        assert depot.free_bytes  # it was asked


async def test_what_depots_have_takes_no_room_while_its_commit_waits(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_GATHER", 3600.0)
    monkeypatch.setattr(queue, "DELAY", 3600.0)  # full slices alone fly
    mib = 1 << 20
    async with run_depot(volume.depot), run_stack(volume, Limits(dirty=8 * mib)) as now:
        await now.depots.wait_for_any(5)
        ino = now.create(b"stream").ino
        with trio.fail_after(15):
            for at in range(40):
                await now.files.write(ino, at * mib, bytes(mib))
        now.files.commit_stored()
