"""Depots that do not answer are waited for once in a command or a look at all links, not by each of its calls."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.sharing.placing import Placing, asking_once
from tests.cache.stack import run_stack

from .test_keeping import StartDepot, ask, opened, shared, start, until_it

__all__ = ["start"]

NOBODY = "ibp://127.0.0.1:1"


@asynccontextmanager
async def mute() -> AsyncIterator[str]:
    """The address of a depot that takes what is sent."""

    async def take(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, take, [listener])
        yield f"ibp://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


class Asking:
    """Asks a depot, and counts how often."""

    def __init__(self, placing: Placing) -> None:
        self.placing = placing
        self.count = 0

    async def __call__(self, address: str) -> None:
        with pytest.raises(DepotUnreachable):
            await self.placing.call(address, self._status, 0.2)

    async def _status(self, client: DepotClient) -> Any:
        self.count += 1
        return await client.status()


@pytest.mark.parametrize("is_ours", [True, False])
async def test_one_that_is_mute(tmp_path: Path, is_ours: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with mute() as address:
        paths = VolumePaths(tmp_path / "volume")
        create_volume(paths, depots=[address if is_ours else NOBODY])
        async with run_stack(paths, warming=False) as now:
            asking = Asking(Placing(now.depots))
            for turn in (1, 2):
                with asking_once():
                    for _ in range(3):
                        await asking(address)
                assert asking.count == turn
            with asking_once(skips_stuttering=True):
                await asking(address)
            assert asking.count == (2 if is_ours else 3)  # of the volume's own it is known
            await asking.placing.aclose()
    caplog.clear()


async def test_one_that_is_known_to_be_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[NOBODY])
    async with run_stack(paths, warming=False) as now:
        (depot,) = now.depots
        with suppress(DepotUnreachable):
            await depot.look()
        asking = Asking(Placing(now.depots))
        with asking_once():
            await asking(NOBODY)
        assert asking.count == 0
        await asking(NOBODY)
        assert asking.count == 1
    caplog.clear()


async def test_commands_for_links(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        a.stop()
        await until_it(now, a.address, False)
        depot = now.depots.at(a.address)
        assert depot is not None
        asked: list[str] = []

        async def wait(*_: object, **__: object) -> None:
            asked.append("")
            raise DepotUnreachable("mute")

        for name in ("load", "store", "change", "change_alias", "decr", "revoke_alias", "probe", "probe_alias"):
            monkeypatch.setattr(depot.client, name, wait)
        assert (await ask(one, "share-extend", id=found["id"], seconds=1200))["troubles"] != []
        await one._keeper.tend()
        (told,) = await ask(one, "share-revoke", ids=[found["id"]])
        assert {row["depot"] for row in told["left"]} == {a.address}
        assert asked == []
    caplog.clear()


async def test_one_that_stuttered_is_asked_to_revoke(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a dropped connection, before it was looked at again."""
    a = start("a")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        depot = now.depots.at(a.address)
        assert depot is not None
        depot.silent("closed the connection")
        (told,) = await ask(one, "share-revoke", ids=[found["id"]])
        assert told["left"] == []
    caplog.clear()


async def test_records_are_not_written_where_nobody_is_asked(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    """A depot that was silent in this look, though it answers again."""
    a = start("a")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address])
    async with opened(paths) as (now, one):
        share = one._shares.get((await shared(now, one))["id"])
        share.behind = True

        async def drop(_: DepotClient) -> None:
            raise DepotUnreachable("closed the connection")

        with asking_once():
            with suppress(DepotUnreachable):
                await one._placing.call(a.address, drop)
            await until_it(now, a.address, True)
            await one._keeper.mend(share)
            assert share.behind
        await one._keeper.mend(share)
        assert not share.behind
    caplog.clear()


async def test_what_is_left_is_ended_soon_after_its_depot_answers_again(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        a.stop()
        await until_it(now, a.address, False)
        (told,) = await ask(one, "share-revoke", ids=[found["id"]])
        assert told["left"] != []
        assert not one._keeper.has_more_to_end()
        start("a", a.address)
        with trio.fail_after(60):  # the next look is later
            assert await one._rest(0.01)
        await one._keeper.tend()
        assert (one._shares.names(), one._keeper.has_more_to_end()) == ([], False)
    caplog.clear()
