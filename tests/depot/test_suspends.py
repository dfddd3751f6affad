"""After a suspend connections to depots are made anew."""

import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.server.depot import open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.suspends import LOOK_EVERY, slept, watch_suspends
from ibpfs.depot.wire import DepotUnreachable


async def test_each_suspend_is_noticed_once(autojump_clock: MockClock) -> None:
    readings = iter([5.0, 5.0, 5.2, 3605.2, 3605.2, 3604.9, 3700.0])
    dropped: list[float] = []

    with pytest.raises(RuntimeError):  # of the iterator's end
        await watch_suspends(lambda: dropped.append(trio.current_time()), lambda: next(readings))
    assert [round((at - dropped[0]) / LOOK_EVERY) for at in dropped] == [0, 3]


def test_the_clock_stands_still_while_the_machine_is_awake() -> None:
    assert abs(slept() - slept()) < 0.1


async def test_a_command_under_way_ends_and_the_next_one_works(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its connection is dead: the depot's machine, or what lies between, has forgotten it. Silence alone would say so
    only after a minute."""
    asleep = 0.0
    mute = socket.create_server(("127.0.0.1", 0))
    place = Address("127.0.0.1", mute.getsockname()[1])
    async with DepotClient(place) as client, trio.open_nursery() as nursery:
        nursery.start_soon(watch_suspends, client.drop_connections, lambda: asleep)
        began = trio.current_time()

        async def resume() -> None:
            nonlocal asleep
            await trio.sleep(5)
            asleep += 3600

        nursery.start_soon(resume)
        with pytest.raises(DepotUnreachable, match="the connection was dropped"):
            await client.status()
        assert trio.current_time() - began < 5 + 2 * LOOK_EVERY
        mute.close()
        settings = Settings(store=tmp_path, listen=((place.host, place.port),), capacity=1 << 20)
        with open_depot(settings, trio.current_time) as depot:
            nursery.start_soon(depot.serve)
            assert (await client.status()).total_bytes == 1 << 20
            nursery.cancel_scope.cancel()
