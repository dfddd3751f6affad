"""A depot that is slow gets less and holds up nothing; a read that is late is asked for elsewhere as well.

IBPFS_STUTTERING_MIB sets how much is written (96), IBPFS_STUTTERING_RATE what a depot takes, in MiB a second (16): the
figure that is printed, and not compared, is that of the depots where these are the limit and not the machine.
"""

import os
from pathlib import Path

import trio
import trio.testing

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.creation import create_volume
from tests.cache.stack import Stack, run_stack

from .relay import Relay, relayed_depots

MIB = 1024 * 1024
SIZE, RATE = int(os.environ.get("IBPFS_STUTTERING_MIB", "96")), float(os.environ.get("IBPFS_STUTTERING_RATE", "16"))


def make(root: Path, relays: list[Relay], copies: int) -> VolumePaths:
    paths = VolumePaths(root)
    create_volume(paths, depots=[relay.address for relay in relays], copies=copies)
    return paths


async def written(now: Stack, name: bytes, data: bytes) -> int:
    ino = now.create(name).ino
    for at in range(0, len(data), MIB):
        await now.files.write(ino, at, data[at : at + MIB])
    await now.files.flush()
    return ino


async def test_a_depot_at_a_tenth_of_the_speed_gets_less_than_its_share(tmp_path: Path) -> None:
    async with relayed_depots(tmp_path, 4) as relays:
        for relay in relays:
            relay.rate = RATE * MIB
        relays[1].rate = RATE / 10 * MIB
        async with run_stack(make(tmp_path / "volume", relays, copies=1)) as now:
            await now.depots.wait_for_all(5)
            began = trio.current_time()
            await written(now, b"file", bytes(SIZE * MIB))
            took = trio.current_time() - began
            states = [depot.state for depot in now.depots]
    stored = [relay.stored for relay in relays]
    print(f"{SIZE / took:.1f} MiB/s of {3.1 * RATE:.1f}; stored", [f"{one / MIB:.1f}" for one in stored], states)
    assert stored[1] < 0.15 * sum(stored)  # static striping: 0.25
    assert min(stored[:1] + stored[2:]) > stored[1]


async def test_a_late_read_is_asked_for_elsewhere_and_the_first_answer_is_taken(tmp_path: Path) -> None:
    data = os.urandom(4 * MIB)
    async with relayed_depots(tmp_path, 2) as relays, run_stack(make(tmp_path / "volume", relays, copies=2)) as now:
        await now.depots.wait_for_all(5)
        ino = await written(now, b"file", data)
        assert await now.flusher.finish(5)
        for _ in range(60):  # so that it is known what is usual, and some reads are saved up
            await now.transfer.load(1, 0, 65536)
        assert now.transfer.hedging.reads == 60
        before = now.transfer.hedging.hedged
        serving = now.transfer._order(now.ledger.replicas(1))[0]
        relay = next(one for one in relays if one.address == now.depots.get(serving.depot).address)
        relay.stick()
        loaded = await now.transfer.load(1, 0, 65536)
        assert loaded.replica != serving.id
        assert now.transfer.hedging.hedged == before + 1
        assert now.depots.get(serving.depot).answers  # late, and no more than that
        relay.go_on()
        # The connection of the read that was given up was closed: nothing of its answer is taken for another's.
        client = now.depots.get(serving.depot).client
        for at in range(0, MIB, 65536):
            assert await client.load(serving.read, at, 1000) == loaded_from(relay.depot, at)
        await now.files.drop()
        assert await now.files.read(ino, 0, len(data)) == data


async def test_a_run_of_blocks_waits_for_a_stuck_depot_no_longer_than_one_block(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1.0
    async with relayed_depots(tmp_path, 2) as relays, run_stack(make(tmp_path / "volume", relays, copies=2)) as now:
        await now.depots.wait_for_all(5)
        await written(now, b"file", os.urandom(12 * MIB))
        assert await now.flusher.finish(5)
        segment = max((row for (row,) in now.db.rows("SELECT id FROM segments")), key=now.ledger.segment_length)
        length = min(5 * MIB, now.ledger.segment_length(segment))
        assert length > 3 * MIB
        serving = now.transfer._order(now.ledger.replicas(segment))[0]
        relay = next(one for one in relays if one.address == now.depots.get(serving.depot).address)
        relay.stick()
        found: list[int] = []

        async def load() -> None:
            found.append((await now.transfer.load(segment, 0, length)).replica)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await trio.sleep(0.05)
            mock_clock.jump(6.5)
            with trio.move_on_after(4):
                while not found:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert len(found) == 1
        assert found != [serving.id]
        relay.go_on()


def loaded_from(depot: Path, at: int) -> bytes:
    """1,000 stored bytes of the only allocation of a depot."""
    (allocation,) = [one for one in (depot / "allocations").rglob("*") if one.is_file()]
    return allocation.read_bytes()[4096 + at :][:1000]


async def test_one_of_two_copies_is_slow_and_no_read_waits_for_it(tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    async with relayed_depots(tmp_path, 2) as relays, run_stack(make(tmp_path / "volume", relays, copies=2)) as now:
        await now.depots.wait_for_all(5)
        ino = await written(now, b"file", data)
        serving = now.transfer._order(now.ledger.replicas(1))[0]
        relay = next(one for one in relays if one.address == now.depots.get(serving.depot).address)
        relay.rate = 0.2 * MIB
        await now.files.drop()
        with trio.fail_after(20):  # of 40 s that the slow one would take alone
            assert await now.files.read(ino, 0, len(data)) == data
        relay.go_on()
