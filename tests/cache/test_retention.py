"""What stays in the spool until all copies stand: what it is good for, and when it goes."""

import os
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from ibpfs.cache import room, spool_file
from ibpfs.cache.room import Limits
from ibpfs.config import VolumePaths
from ibpfs.errors import DataError
from ibpfs.exnode_store import depots
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume

from .stack import Stack, run_depot, run_stack

TEXT = b"kept until all copies stand " * 4000


@pytest.fixture
def volume(tmp_path: Path, request: pytest.FixtureRequest) -> VolumePaths:
    """Two copies of each byte, on depots `one` and `two`."""
    paths = VolumePaths(tmp_path / "volume")
    addresses = [f"unix:{tmp_path}/{name}/depot.sock" for name in ("one", "two")]
    create_volume(paths, depots=addresses, plain=getattr(request, "param", "sealed") == "plain")
    return paths


@asynccontextmanager
async def depot(volume: VolumePaths, name: str, *, wiped: bool = False) -> AsyncIterator[None]:
    directory = volume.root.with_name(name)
    if wiped:
        shutil.rmtree(directory)
    async with run_depot(directory):
        yield


async def answers(stack: Stack, number: int) -> None:
    with trio.fail_after(10):
        while stack.transfer.answering() != number:
            await trio.sleep(0.01)


async def stored(stack: Stack, data: bytes = TEXT, name: bytes = b"file") -> int:
    """A file whose bytes are on depots, and no longer in the clean cache."""
    ino = stack.create(name).ino
    for at in range(0, len(data), 40_000):
        await stack.files.write(ino, at, data[at : at + 40_000])
    await stack.files.drop()
    return ino


async def test_with_all_copies_nothing_is_retained(volume: VolumePaths) -> None:
    async with depot(volume, "one"), depot(volume, "two"), run_stack(volume) as now:
        await answers(now, 2)
        await stored(now)
        assert (now.files.retained_bytes, now.files.spool_bytes) == (0, 0)


async def test_a_read_that_no_replica_serves_is_served_from_the_spool(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        async with depot(volume, "one"):
            ino = await stored(now)
            assert now.files.dirty_bytes == 0
            assert now.files.retained_bytes == len(TEXT)
            assert now.files.spool_bytes > len(TEXT)
        assert await now.files.read(ino, 0, len(TEXT)) == TEXT
        assert await now.files.read(ino, 39_990, 20) == TEXT[39_990:40_010]


async def test_bad_bytes_of_the_only_replica_are_made_good_from_the_spool(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        async with depot(volume, "one"):
            ino = await stored(now)
        (allocation,) = [one for one in (volume.root.with_name("one") / "allocations").rglob("*") if one.is_file()]
        raw = bytearray(allocation.read_bytes())
        raw[-2000] ^= 1
        allocation.write_bytes(raw)
        async with depot(volume, "one"):
            await answers(now, 1)
            assert await now.files.read(ino, 0, len(TEXT)) == TEXT


async def test_a_kill_leaves_what_is_retained(volume: VolumePaths) -> None:
    async with depot(volume, "one"), run_stack(volume) as now:
        ino = await stored(now)
    async with run_stack(volume) as now:
        assert (now.recovered, now.files.retained_bytes) == (0, len(TEXT))
        assert await now.files.read(ino, 0, len(TEXT)) == TEXT
    async with run_stack(volume) as now:
        assert await now.files.read(ino, 0, len(TEXT)) == TEXT


async def test_copies_that_were_made_up_just_now_leave_nothing_at_the_end(volume: VolumePaths) -> None:
    """Nor does what was deleted just now."""
    async with depot(volume, "one"), run_stack(volume, warming=False) as now:
        for number in range(6):
            await stored(now, TEXT[: 1000 * (number + 1)], b"%d" % number)
            await now.transfer.close_old(every=True)  # each in a segment of its own
        assert now.files.retained_bytes > 0
        for number in range(5):
            now.files.unlinked(now.names.unlink(1, b"%d" % number))
        with trio.fail_after(10):
            await now.files._reaper.done()
        async with depot(volume, "two"):
            await answers(now, 2)
            await now.warmer.repair(most=None)
            assert now.warmer.under_replicated_bytes == 0
            assert await now.flusher.finish(0.0)
        assert now.files.retained_bytes == now.flusher._spool.records == 0


async def test_bytes_whose_only_depot_is_wiped_go_to_another(volume: VolumePaths) -> None:
    async with run_stack(volume) as now, depot(volume, "two", wiped=False):
        await answers(now, 1)
        ino = await stored(now)
    async with depot(volume, "two", wiped=True), depot(volume, "one"), run_stack(volume) as now:
        await answers(now, 2)
        assert await now.files.read(ino, 0, 100) == TEXT[:100]  # here it is found out
        with trio.fail_after(10):
            while now.files.retained_bytes:
                await trio.sleep(0.01)
            await now.files.drop()
        shutil.rmtree(volume.spool)
        assert await now.files.read(ino, 0, len(TEXT)) == TEXT
        assert now.files.inode(ino).mtime_ns == now.names.inode(ino).mtime_ns


async def test_bytes_whose_only_depot_is_away_for_long_go_to_another(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depots, "FAILED_AFTER", 0.1)
    async with run_stack(volume) as now:
        async with depot(volume, "one"):
            ino = await stored(now)
        before = [replica.depot for replica in now.ledger.replicas(1)]
        assert await now.files.read(ino, 0, 10) == TEXT[:10]
        async with depot(volume, "two"):
            with trio.fail_after(10):
                while now.ledger.replicas(1):  # what is on the first is needed no more
                    await trio.sleep(0.01)
            await now.files.drop()
            assert now.files.retained_bytes == len(TEXT)  # it is the only copy again
            assert await now.files.read(ino, 0, len(TEXT)) == TEXT
            (segment,) = [row for (row,) in now.db.rows("SELECT DISTINCT segment FROM slices")]
            assert [replica.depot for replica in now.ledger.replicas(segment)] != before


async def test_what_has_all_its_copies_goes(volume: VolumePaths) -> None:
    async with depot(volume, "one"), run_stack(volume) as now:
        await stored(now)
        async with depot(volume, "two"):
            await answers(now, 2)
            await now.warmer.repair()
            with trio.fail_after(10):
                while now.files.spool_bytes:
                    await trio.sleep(0.01)
            assert (now.files.retained_bytes, now.warmer.under_replicated_bytes) == (0, 0)


async def test_what_is_deleted_goes(volume: VolumePaths) -> None:
    async with depot(volume, "one"), run_stack(volume) as now:
        await stored(now)
        now.files.unlinked(now.names.unlink(1, b"file"))
        with trio.fail_after(10):
            while now.files.retained_bytes:
                await trio.sleep(0.01)


async def test_the_oldest_goes_when_the_spool_needs_room(volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_file, "FILE_SIZE", 100_000)
    async with run_stack(volume, Limits(spool=1_000_000, deadline=5.0)) as now:
        async with depot(volume, "one"):
            inos = [await stored(now, name=b"%d" % number) for number in range(12)]
            assert now.files.dirty_bytes == 0
            assert len(TEXT) < now.files.retained_bytes <= 1_000_000
        assert await now.files.read(inos[-1], 0, len(TEXT)) == TEXT
        with pytest.raises(DataError):
            await now.files.read(inos[0], 0, len(TEXT))


async def test_no_more_goes_than_a_full_disk_needs(volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_file, "FILE_SIZE", 100_000)
    monkeypatch.setattr(spool_file, "BLOCKS", 0)  # so that each is closed in a thread
    monkeypatch.setattr(room, "_ROOM_CHECK_EVERY", 1)
    close, closed = spool_file.SpoolFile.close, list[spool_file.SpoolFile]()

    def close_slowly(file: spool_file.SpoolFile) -> None:
        time.sleep(0.1)
        close(file)
        closed.append(file)

    monkeypatch.setattr(spool_file.SpoolFile, "close", close_slowly)
    async with run_stack(volume) as now, depot(volume, "one"):
        ino = await stored(now)
        for number in range(8):
            await stored(now, name=b"%d" % number)
        free = lambda _: SimpleNamespace(f_bavail=1 << 30 if closed else 0, f_frsize=4096)  # noqa: E731
        before = len(list(volume.spool.iterdir()))
        now.files._room.look_again()
        monkeypatch.setattr(os, "statvfs", free)
        await now.files.write(ino, 0, b"x")
        assert before > 3
        assert len(list(volume.spool.iterdir())) >= before - 1


async def test_an_overwritten_record_that_outlived_the_younger_one_is_not_taken_for_it(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "FILE_SIZE", 3000)
    async with run_stack(volume) as now:
        ino, other = now.create(b"file").ino, now.create(b"other").ino
        await now.files.write(ino, 0, b"old" * 500)
        await now.files.write(other, 0, b"other" * 500)  # keeps the file of the spool
        await now.files.write(ino, 0, b"new" * 500)
        async with depot(volume, "one"):
            await now.files.drop()
            assert await now.files.read(ino, 0, 1500) == b"new" * 500
            await now.files.drop()
    max(volume.spool.iterdir()).unlink()
    async with run_stack(volume) as now:
        assert await now.files.read(other, 0, 2500) == b"other" * 500
        with pytest.raises(DataError):
            await now.files.read(ino, 0, 1500)


@pytest.mark.parametrize(("volume", "seed"), [("sealed", 0), ("plain", 1)], indirect=["volume"])
async def test_the_spool_alone_has_every_byte_until_there_are_two_copies(volume: VolumePaths, seed: int) -> None:
    dice = random.Random(seed)
    models: dict[int, bytearray] = {}
    async with depot(volume, "one"):
        for _ in range(3):
            async with run_stack(volume) as now:
                await answers(now, 1)
                for number in range(3):
                    models[now.create(b"%d %d" % (now.db.seq, number)).ino] = bytearray()
                for _ in range(60):
                    ino = dice.choice(list(models))
                    await change(now, ino, models[ino], dice)
    async with run_stack(volume) as now:
        await now.flusher.drop_clean()
        for ino, model in models.items():
            assert await now.files.read(ino, 0, len(model) + 1) == model
    async with depot(volume, "one", wiped=True), depot(volume, "two"), run_stack(volume) as now:
        await answers(now, 2)
        await now.warmer.repair()  # finds out
        with trio.fail_after(20):
            while now.files.spool_bytes:
                await trio.sleep(0.01)
        await now.files.drop()
        for ino, model in models.items():
            assert await now.files.read(ino, 0, len(model) + 1) == model


async def change(stack: Stack, ino: int, model: bytearray, dice: random.Random) -> None:
    what = dice.choice(["write"] * 6 + ["truncate"] * 2 + ["fsync", "hurry"])
    if what == "write":
        offset, data = dice.randrange(100_000), dice.randbytes(dice.randrange(1, 20_000))
        await stack.files.write(ino, offset, data)
        model.extend(bytes(max(0, offset - len(model))))
        model[offset : offset + len(data)] = data
    elif what == "truncate":
        size = dice.randrange(100_000)
        stack.files.change(ino, AttributeChange(size=size))
        del model[size:]
        model.extend(bytes(size - len(model)))
    elif what == "fsync":
        await stack.files.fsync(ino)
    else:
        stack.flusher.hurry(ino)
        await trio.sleep(dice.random() * 0.003)
