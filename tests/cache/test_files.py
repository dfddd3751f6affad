"""Files over a real depot, against a plain model: reads, writes, truncations, flushes, kills."""

import gc
import random
import tracemalloc
from pathlib import Path

import pytest
import trio

from ibpfs.cache.room import Limits
from ibpfs.config import VolumePaths, load_config
from ibpfs.errors import DataError, DeadlineExceeded, NoSpace
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.sealing import MAX_SLICE

from .stack import Stack, run_depot, run_stack

PIECE = 40_000
DATA = random.Random(1).randbytes(30_000)


@pytest.fixture(params=["sealed", "plain"])
def volume(tmp_path: Path, request: pytest.FixtureRequest) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, plain=request.param == "plain")
    return paths


async def check(stack: Stack, ino: int, model: bytearray) -> None:
    assert stack.files.inode(ino).size == len(model)
    assert await stack.files.read(ino, 0, len(model) + 10) == model


def overwrite(model: bytearray, offset: int, data: bytes) -> None:
    if len(model) < offset:
        model.extend(bytes(offset - len(model)))
    model[offset : offset + len(data)] = data


def resize(model: bytearray, size: int) -> None:
    if size < len(model):
        del model[size:]
    else:
        model.extend(bytes(size - len(model)))


async def do_something(stack: Stack, ino: int, model: bytearray, dice: random.Random) -> None:
    what = dice.choice(["write"] * 6 + ["truncate"] * 2 + ["read"] * 3 + ["fsync", "wait", "drop"])
    if what == "write":
        offset, data = dice.randrange(6 * PIECE), dice.randbytes(dice.randrange(1, PIECE))
        await stack.files.write(ino, offset, data)
        overwrite(model, offset, data)
    elif what == "truncate":
        size = dice.randrange(6 * PIECE)
        stack.files.change(ino, AttributeChange(size=size))
        resize(model, size)
    elif what == "read":
        offset, size = dice.randrange(7 * PIECE), dice.randrange(2 * PIECE)
        assert await stack.files.read(ino, offset, size) == model[offset : offset + size]
    elif what == "fsync":
        await stack.files.fsync(ino)
    elif what == "drop":
        await stack.files.drop()
    else:
        stack.flusher.hurry(ino)
        await trio.sleep(dice.random() * 0.003)  # somewhere into a flight


@pytest.mark.parametrize("seed", range(6))
async def test_random_operations_and_kills_agree_with_a_model(
    volume: VolumePaths, seed: int
) -> None:
    dice = random.Random(seed)
    models: dict[int, bytearray] = {}
    async with run_depot(volume.depot):
        for _ in range(6):
            async with run_stack(volume) as now:
                for ino, model in models.items():
                    await check(now, ino, model)
                models[now.create(b"%d" % now.db.seq).ino] = bytearray()
                for _ in range(60):
                    ino = dice.choice(list(models))
                    await do_something(now, ino, models[ino], dice)
                for ino, model in models.items():
                    await check(now, ino, model)
        async with run_stack(volume) as now:
            await now.files.flush()
            assert now.flusher.dirty_bytes == 0
            await now.flusher.delete_spent()
            assert list(volume.spool.iterdir()) == []
            await now.files.drop()
            for ino, model in models.items():
                await check(now, ino, model)
                mapped = now.ledger.extents(ino)
                assert now.files.inode(ino).allocated == mapped.covered <= len(model)


async def test_many_small_files_share_a_segment(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        inos = [now.create(b"%d" % number).ino for number in range(200)]
        for ino in inos:
            await now.files.write(ino, 0, b"%d" % ino * 10)
        await now.files.flush()
        assert now.db.value("SELECT count(*) FROM segments") == 1
        await now.files.drop()
        for ino in inos:
            assert await now.files.read(ino, 0, 1000) == b"%d" % ino * 10


async def test_a_long_write_is_cut_into_slices(volume: VolumePaths) -> None:
    data = random.Random(1).randbytes(3 * MAX_SLICE + 5)
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"long").ino
        for at in range(0, len(data), 1 << 20):
            await now.files.write(ino, at, data[at : at + (1 << 20)])
        await now.files.drop()
        assert await now.files.read(ino, 0, len(data)) == data
        assert now.db.value("SELECT max(length) FROM slices") <= MAX_SLICE


async def test_what_is_so_already_moves_ctime_and_commits_nothing(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"file", 0o100640).ino
        await now.files.write(ino, 0, b"bytes")
        before, seq = now.files.change(ino, AttributeChange(mtime_ns=5)), now.db.seq
        changed = now.files.change(ino, AttributeChange(mode=0o640, uid=0, gid=0))
        assert now.db.seq == seq
        assert (changed.mtime_ns, changed.mode) == (5, before.mode)
        assert before.ctime_ns < changed.ctime_ns == now.files.inode(ino).ctime_ns
        await now.files.flush()
        stored = now.names.inode(ino)
        assert (stored.mtime_ns, stored.ctime_ns) == (5, changed.ctime_ns)


@pytest.mark.parametrize(
    "change",
    [AttributeChange(mode=0o4700), AttributeChange(uid=0), AttributeChange(gid=1), AttributeChange(mtime_ns=1)],
    ids=["mode", "same owner of a set-id file", "group", "time"],
)
async def test_what_is_not_so_yet_is_committed_at_once(volume: VolumePaths, change: AttributeChange) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"file", 0o104750).ino
        await now.files.write(ino, 0, b"bytes")
        seq = now.db.seq
        changed, stored = now.files.change(ino, change), now.names.inode(ino)
        assert stored.version == changed.version
        assert (stored.mode, stored.gid, stored.mtime_ns) == (changed.mode, changed.gid, changed.mtime_ns)
        assert now.db.seq == seq + 1
        assert bool(stored.mode & 0o4000) == (change.uid is None and change.gid is None)


async def test_an_unlinked_file_is_released_on_the_depot(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        inode = now.create(b"gone")
        await now.files.write(inode.ino, 0, bytes(100_000))
        await now.files.flush()
        now.files.unlinked(now.names.unlink(1, b"gone"))
        with trio.fail_after(10):
            while now.ledger.orphans() or now.db.value("SELECT count(*) FROM segments"):
                await now.transfer.close_old(every=True)  # some carrier may still hold the segment at first
                await trio.sleep(0.05)
        assert [one for one in (volume.depot / "allocations").rglob("*") if one.is_file()] == []


async def test_an_open_unlinked_file_stays_readable(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        inode = now.create(b"open")
        now.files.opened(inode.ino)
        await now.files.write(inode.ino, 0, b"still here")
        now.files.unlinked(now.names.unlink(1, b"open"))
        await now.files.flush()
        assert await now.files.read(inode.ino, 0, 100) == b"still here"
        now.files.closed(inode.ino)
        with trio.fail_after(5):
            while now.db.value("SELECT count(*) FROM inodes WHERE ino = ?", (inode.ino,)):
                await trio.sleep(0.01)


async def test_truncating_to_the_end_of_the_world_and_back_costs_nothing(
    volume: VolumePaths
) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"huge").ino
        now.files.change(ino, AttributeChange(size=999_999_999_999_999))
        assert await now.files.read(ino, 500_000_000_000_000, 5) == bytes(5)
        await now.files.write(ino, 999_999_999_999_990, b"end")
        await now.files.drop()
        assert await now.files.read(ino, 999_999_999_999_990, 5) == b"end\0\0"
        assert now.files.inode(ino).allocated == 3


async def test_a_truncation_that_a_kill_left_with_nothing_to_settle_it_is_finished(volume: VolumePaths) -> None:
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            ino = now.create(b"file").ino
            await now.files.write(ino, 0, DATA[:30_000])
            await now.files.flush()
            version = now.files.inode(ino).version
            now.ledger.truncate(ino, 10_000, version + 1, spooled=True)
            assert now.ledger.voids(ino) == [(version + 1, 10_000)]
        async with run_stack(volume) as now:
            with trio.fail_after(10):
                while now.ledger.voids(ino):
                    await trio.sleep(0.01)
            await check(now, ino, bytearray(DATA[:10_000]))
            await now.files.write(ino, 20_000, b"new")
            await now.files.flush()
            await check(now, ino, bytearray(DATA[:10_000] + bytes(10_000) + b"new"))


async def test_without_a_depot_writes_wait_in_the_spool(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"patient").ino
        await now.files.write(ino, 0, b"patience")
        with trio.move_on_after(1.5) as scope:
            await now.files.fsync(ino)
        assert scope.cancelled_caught
        assert await now.files.read(ino, 0, 100) == b"patience"
    async with run_depot(volume.depot), run_stack(volume) as now:
        assert now.recovered == 8
        await now.files.flush()
        await now.files.drop()
        assert await now.files.read(ino, 0, 100) == b"patience"


async def test_what_flew_in_vain_does_not_stay_in_memory(volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even until cycles are looked for, which is seldom."""
    monkeypatch.setattr("ibpfs.cache.flusher._BACKOFF", (0.01, 0.01))
    async with run_stack(volume) as now:
        await now.files.write(now.create(b"file").ino, 0, bytes(1 << 20))
        now.flusher.hurry(now.names.lookup(1, b"file").ino)
        gc.disable()
        tracemalloc.start()
        try:
            with trio.fail_after(60):
                while now.flusher._failures < 40:
                    await trio.sleep(0.01)
            assert tracemalloc.get_traced_memory()[0] < 10 << 20
        finally:
            tracemalloc.stop()
            gc.enable()


async def test_a_full_depot_is_no_space_and_loses_nothing(volume: VolumePaths) -> None:
    data = bytes(1 << 20)
    async with run_depot(volume.depot, capacity=20 << 20), run_stack(volume) as now:
        assert await now.depots.wait_for_any(5)
        ino = now.create(b"fat").ino
        written = 0
        with pytest.raises(NoSpace):
            for at in range(0, 64 << 20, len(data)):
                await now.files.write(ino, at, data)
                written = at + len(data)
        assert written >= 12 << 20
        with trio.fail_after(20):
            await now.files.flush()
        assert now.files.inode(ino).size == written


async def test_the_dirty_bound_makes_writes_wait_then_fail(volume: VolumePaths) -> None:
    async with run_stack(volume, Limits(dirty=1 << 20, spool=(1 << 20) + 4096, deadline=0.5)) as now:
        ino = now.create(b"bounded").ino
        with pytest.raises(DeadlineExceeded):
            for at in range(0, 4 << 20, 1 << 18):
                await now.files.write(ino, at, bytes(1 << 18))
        assert now.flusher.dirty_bytes == 1 << 20


async def test_changed_bytes_on_the_depot_are_never_returned(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"precious").ino
        await now.files.write(ino, 0, bytes(300_000))
        await now.files.drop()
        flip(volume.depot)
        with pytest.raises(DataError, match="allocation"):
            await now.files.read(ino, 0, 300_000)


def flip(depot: Path) -> None:
    (file,) = [one for one in (depot / "allocations").rglob("*") if one.is_file()]
    raw = bytearray(file.read_bytes())
    raw[-150_000] ^= 1
    with file.open("r+b") as out:
        out.write(raw)


async def test_what_posix_fallocate_writes_is_one_run(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"reserved").ino
        await now.files.write(ino, 0, b"head")
        for offset in range(4095, 40 * 4096, 4096):
            assert await now.files.write(ino, offset, b"\0") == 1
        await now.files.drop()
        assert await now.files.read(ino, 0, 1 << 20) == b"head" + bytes(40 * 4096 - 4)
        assert now.files.inode(ino).allocated == 40 * 4096
        assert now.db.value("SELECT count(*) FROM slices") <= 2


async def test_who_loads_ahead_gets_a_turn_while_a_stream_is_read(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now, trio.open_nursery() as nursery:
        await now.depots.wait_for_any(5)
        ino, data = now.create(b"stream").ino, random.Random(3).randbytes(MAX_SLICE)
        await now.files.write(ino, 0, data)
        await now.files.flush()
        await now.files.drop()
        await now.files.read(ino, 0, MAX_SLICE)
        for (segment,) in now.db.rows("SELECT id FROM segments"):
            await now.transfer.own_files.open(segment)
        at_hand = now.files.read_now(ino, 0, MAX_SLICE)
        assert at_hand == (None if load_config(volume).plain else data)
        now.files._reader._blocks.ahead += 1  # of a load that does not end
        turns: list[int] = []

        async def turn() -> None:
            turns.append(1)

        nursery.start_soon(turn)
        assert now.files.read_now(ino, 0, MAX_SLICE) is None
        for _ in range(2):  # in the first turn it may come last
            assert await now.files.read(ino, 0, MAX_SLICE) == data
        assert turns
