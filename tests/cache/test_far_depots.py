"""A volume whose depot is far away, counted in round trips: the relay's turns are what somebody waited for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.server.depot import open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.exnode_store.creation import create_volume
from ibpfs_tools.benchmarks.relay import Relay, place

from .stack import Stack, run_stack

MIB = 1024 * 1024
FILE = b"a small file " * 300


@asynccontextmanager
async def far_volume(directory: Path) -> AsyncIterator[tuple[Stack, Relay]]:
    """With one depot, behind a relay."""
    relay = Relay(rtt=0.03, rate=1e9)
    settings = Settings(store=directory / "depot", listen=(("127.0.0.1", 0),), max_lease=None)
    with open_depot(settings, trio.current_time) as depot:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(depot.serve)
            port = await nursery.start(relay.serve, place(depot.address.rpartition("/")[2]))
            paths = VolumePaths(directory / "volume")
            create_volume(paths, depots=[f"ibp://127.0.0.1:{port}"])
            async with run_stack(paths) as stack:
                assert await stack.depots.wait_for_any(10)
                yield stack, relay
            nursery.cancel_scope.cancel()


async def written(stack: Stack, number: int) -> list[int]:
    inos = [stack.create(b"%d" % one).ino for one in range(number)]
    for ino in inos:
        await stack.files.write(ino, 0, FILE)
    return inos


def has_spare(stack: Stack) -> bool:
    return any(one.is_spare for one in stack.transfer._idle)


async def until_spare(stack: Stack) -> None:
    """Return when a segment was made beforehand: then nothing else goes to the depot by itself, but looks at it."""
    with trio.fail_after(30):
        while not has_spare(stack):
            await trio.sleep(0.01)


async def test_many_small_files_are_stored_in_few_round_trips(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, relay):
        await written(stack, 500)
        await stack.files.flush()
        assert relay.turns <= 25  # three to make a segment, one for each batch; a spare, looks at the depot


async def test_names_and_cached_files_take_no_round_trip(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, relay):
        inos = await written(stack, 100)
        await stack.files.flush()
        await until_spare(stack)
        before = relay.turns
        for ino in inos:
            assert await stack.files.read(ino, 0, 10_000) == FILE
        assert relay.turns - before <= 1, "but for a look at the depot"


async def test_a_first_byte_takes_one_round_trip_and_not_a_whole_block(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, relay):
        ino = stack.create(b"large").ino
        for at in range(4):
            await stack.files.write(ino, at * MIB, bytes([at]) * MIB)
        await stack.files.drop()
        await until_spare(stack)
        turns, loaded = relay.turns, relay.bytes_back
        assert await stack.files.read(ino, 2 * MIB, 1) == b"\2"
        assert relay.turns - turns <= 2, "one, and perhaps a look at the depot"
        assert relay.bytes_back - loaded < MIB // 2


async def test_an_fsync_finds_a_segment_that_was_made_beforehand(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, _):
        (ino,) = await written(stack, 1)
        await stack.files.fsync(ino)
        await until_spare(stack)
        (spare,) = [one for one in stack.transfer._idle if one.is_spare]
        for used in [one for one in stack.transfer._idle if not one.is_spare]:
            used.sound = False  # as it is when it is a minute old
        await stack.files.write(ino, 0, FILE)
        await stack.files.fsync(ino)
        assert not spare.is_spare
        assert spare.row is not None


async def test_spares_are_given_back(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, _):
        (ino,) = await written(stack, 1)
        await stack.files.fsync(ino)
        await until_spare(stack)
        (spare,) = [one for one in stack.transfer._idle if one.is_spare]
        await stack.transfer.close_old(every=True)
        assert spare not in stack.transfer._open_segments
        (pending,) = [replica.pending for _, replica in spare.replicas]
        assert stack.db.value("SELECT count(*) FROM pending WHERE id = ?", (pending,)) == 0, "it is an orphan"


async def test_a_sequential_reader_has_many_blocks_under_way(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, relay):
        ino, length = stack.create(b"large").ino, 16 * MIB
        for at in range(0, length, MIB):
            await stack.files.write(ino, at, bytes([at // MIB]) * MIB)
        await stack.files.drop()
        stack.files.opened(ino)
        relay.most = 0
        for at in range(0, length, MIB // 4):
            assert await stack.files.read(ino, at, MIB // 4) == bytes([at // MIB]) * (MIB // 4)
        assert relay.most >= 4, "loads under way at once"
        stack.files.closed(ino)


async def test_an_fsync_that_gave_up_takes_nothing_with_it(tmp_path: Path) -> None:
    async with far_volume(tmp_path) as (stack, relay):
        (ino,) = await written(stack, 1)
        for number in range(3):
            await stack.files.write(ino, number * len(FILE), FILE)
            before = relay.turns
            with trio.move_on_after(30) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stack.files.fsync, ino)
                    while relay.turns == before:
                        await trio.sleep(0.001)
                    nursery.cancel_scope.cancel()
            assert not scope.cancelled_caught
        with trio.fail_after(30):
            await stack.files.fsync(ino)
        assert not stack.files.dirty_bytes
        assert await stack.files.read(ino, 0, 4 * len(FILE)) == 3 * FILE
