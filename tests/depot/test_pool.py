"""The pool: how many connections there are, and which are kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ibpfs.depot.address import Address
from ibpfs.depot.pool import ConnectionPool
from ibpfs.depot.stream import DepotStream
from ibpfs.depot.wire import DepotUnreachable


@asynccontextmanager
async def listening(tmp_path: Path) -> AsyncIterator[tuple[Address, list[trio.socket.SocketType]]]:
    """Something that accepts, and the ends it accepted."""
    path = tmp_path / "s"
    accepted: list[trio.socket.SocketType] = []
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(16)

        async def accept() -> None:
            while True:
                accepted.append((await listener.accept())[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield Address(path=str(path)), accepted
            nursery.cancel_scope.cancel()
    for sock in accepted:
        sock.close()


async def test_a_connection_comes_back_and_is_used_again(tmp_path: Path) -> None:
    async with listening(tmp_path) as (address, accepted):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        async with pool.connection() as (first, new):
            assert new
        async with pool.connection() as (second, new):
            assert second is first
            assert not new
        async with pool.connection(fresh=True) as (third, new):
            assert third is not first
            assert new
        await wait_all_tasks_blocked()
        assert len(accepted) == 2
        pool.close()


async def test_who_wants_one_more_waits(tmp_path: Path) -> None:
    most = 0

    async def use(pool: ConnectionPool) -> None:
        nonlocal most
        async with pool.connection():
            most = max(most, len(pool._busy))
            await wait_all_tasks_blocked()

    async with listening(tmp_path) as (address, accepted):
        pool = ConnectionPool(partial(DepotStream.connect, address), 3)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(use, pool)
        await wait_all_tasks_blocked()
        assert most == 3
        assert len(accepted) == 3
        pool.close()


async def test_after_an_exception_it_is_not_kept(tmp_path: Path) -> None:
    async with listening(tmp_path) as (address, accepted):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        with pytest.raises(ZeroDivisionError):
            async with pool.connection():
                raise ZeroDivisionError
        await wait_all_tasks_blocked()
        assert await accepted[0].recv(1) == b""
        async with pool.connection() as (_, new):
            assert new
        pool.close()


@pytest.mark.parametrize("said", [b"", b"-66 0.1\n"])
async def test_what_the_depot_closed_meanwhile_is_thrown_away(tmp_path: Path, said: bytes) -> None:
    async with listening(tmp_path) as (address, accepted):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        async with pool.connection():
            pass
        await wait_all_tasks_blocked()
        if said:
            await accepted[0].send(said)
        accepted[0].close()
        async with pool.connection() as (_, new):
            assert new
        pool.close()


async def test_what_lies_idle_too_long_is_closed(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with listening(tmp_path) as (address, accepted):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        async with pool.connection(), pool.connection():
            pass
        await trio.sleep(51)
        async with pool.connection() as (_, new):
            assert not new
        assert len(pool._idle) == 1
        pool.close()
        await wait_all_tasks_blocked()
        assert [await sock.recv(1) for sock in accepted] == [b"", b""]


async def test_dropped_connections_are_not_kept_and_a_closed_pool_gives_none(tmp_path: Path) -> None:
    async with listening(tmp_path) as (address, _):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        async with pool.connection() as (first, _new):
            pool.drop()
        async with pool.connection() as (second, new):
            assert new
            assert second is not first
        pool.close()
        with pytest.raises(DepotUnreachable):
            async with pool.connection():
                pass


async def test_a_depot_of_one_command_per_connection(tmp_path: Path) -> None:
    async with listening(tmp_path) as (address, _):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        pool.keep_connections(False)
        async with pool.connection() as (first, _new):
            pass
        async with pool.connection() as (second, new):
            assert new
            assert second is not first


async def test_what_was_kept_before_that_was_known(tmp_path: Path) -> None:
    async with listening(tmp_path) as (address, accepted):
        pool = ConnectionPool(partial(DepotStream.connect, address))
        async with pool.connection():
            pass
        pool.keep_connections(False)
        async with pool.connection() as (_, new):
            assert new
        await wait_all_tasks_blocked()
        assert await accepted[0].recv(1) == b""
