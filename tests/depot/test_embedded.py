"""The keeper of the embedded depot, with real processes."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.embedded import EmbeddedDepot


@asynccontextmanager
async def kept(embedded: EmbeddedDepot, told: list[str]) -> AsyncIterator[None]:
    """The keeper at work, and its process's end waited for."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(embedded.keep, told.append)
        try:
            with trio.fail_after(20):
                await embedded.ready.wait()
            yield
        finally:
            nursery.cancel_scope.cancel()
    if embedded.process is not None and embedded.process.poll() is None:
        embedded.process.terminate()
        await embedded.process.wait()


def open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(str(entry.readlink()))
    return found


async def until_it_answers(embedded: EmbeddedDepot) -> None:
    with trio.fail_after(20):
        while True:
            try:
                async with DepotClient(Address.parse(f"unix:{embedded.socket}")) as client:
                    await client.status()
                return
            except Exception:
                await trio.sleep(0.05)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "depot").mkdir()
    return tmp_path / "depot"


async def test_it_is_started_and_started_again(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    embedded = EmbeddedDepot(store, store.parent / "depot.log")
    async with await trio.open_file(store.parent / "of-the-keeper", "w"), kept(embedded, told):
        await until_it_answers(embedded)
        first = embedded.process
        assert first is not None
        # A process of its own: signals to the mount's terminal are not for it, and no descriptor is inherited.
        assert os.getsid(first.pid) == first.pid
        assert str(store.parent / "depot.log") in open_files(first.pid)
        assert str(store.parent / "of-the-keeper") not in open_files(first.pid)
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
        await until_it_answers(embedded)
        assert embedded.process is not first
    assert len(set(told)) == 1  # the same port again
    assert told[0].startswith("ibp://127.0.0.1:")
    assert "was killed by signal 9" in caplog.text


async def test_another_ones_depot_is_used(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (EmbeddedDepot(store, store.parent / "depot.log") for _ in range(2))
    told: list[str] = []
    async with kept(first, told):
        async with kept(second, told):
            await until_it_answers(second)
            assert second.process is None
        assert len(set(told)) == 1
    assert not caplog.records


async def test_one_that_cannot_be_started_yet_is_started_later(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedded = EmbeddedDepot(store, store.parent / "log" / "depot.log")

    async def make_place() -> None:
        while "cannot be started" not in caplog.text:
            await trio.sleep(0.01)
        (store.parent / "log").mkdir()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_place)
        async with kept(embedded, []):
            await until_it_answers(embedded)
    caplog.clear()
