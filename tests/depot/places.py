"""The settings in which the contract of a depot is tried: where it runs, and what lies between it and its client."""

import functools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.server.depot import Depot, SteadyClock, open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.stream import DepotStream
from ibpfs.depot.wire import NotOffered

from .conftest import DepotProcess
from .memory import memory_pair
from .peculiar import PLACE, Crowded, serve_brief, serve_normal, serve_old

Serve = Callable[[Depot, Any], Awaitable[None]]
#: HOST:PORT of a depot that is not ours, to be tried as well.
FOREIGN = os.environ.get("IBPFS_FOREIGN_DEPOT", "")
INSIDE: dict[str, Callable[[], Serve]] = {
    "in process": lambda: serve_normal,
    "memory streams": lambda: serve_normal,
    "old": lambda: serve_old,
    "one command a connection": lambda: serve_brief,
    "crowded": Crowded,
}
SETTINGS = (*INSIDE, "unix socket", "tcp", "tls", *(("foreign",) if FOREIGN else ()))
#: Cut every line and every block somewhere.
PIECES = (1, 2, 5, 700, 100_000)
SILENCE = 20.0
P = ParamSpec("P")


@dataclass
class AnyDepot:
    """`another` makes one more client of it. `old`: knows what the oldest depots know; `foreign`: is not ours."""

    another: Callable[[], DepotClient]
    foreign: bool = False
    old: bool = False

    def __post_init__(self) -> None:
        self.client = self.another()


def optional(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Of a part of the protocol that an old or foreign depot may answer that it does not offer; ours has to."""

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        depot: Any = kwargs["depot"]
        try:
            await test(*args, **kwargs)
        except* NotOffered as answers:
            if not (depot.foreign or depot.old):
                raise
            print(f"{FOREIGN if depot.foreign else 'an old depot'} does not offer this: {answers.exceptions[0]}")

    return run


@pytest.fixture(scope="module")
def depot_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DepotProcess]:
    directory = tmp_path_factory.mktemp("contract")
    process = DepotProcess(directory / "store", "--listen", "127.0.0.1:0", "--unix", str(directory / "sock"),
                           "--capacity", "1G", "--no-permanent")  # fmt: skip
    yield process
    assert process.stop() == 0
    assert " ERROR " not in process.errors.read_text()
    assert " WARNING " not in process.errors.read_text()


@pytest.fixture(params=SETTINGS)
def place(request: pytest.FixtureRequest) -> str:
    """`address` of the depot, or the name of a setting where it has none."""
    setting: str = request.param
    if setting in INSIDE:
        return setting
    if setting == "foreign":
        return f"ibp://{FOREIGN}"
    process: DepotProcess = request.getfixturevalue("depot_process")
    if setting == "unix socket":
        return f"unix:{process.store.parent}/sock"
    return process.address.replace("ibp:", "ibps:") if setting == "tls" else process.address


@pytest.fixture
async def depot(place: str, tmp_path: Path) -> AsyncIterator[AnyDepot]:
    """One depot for a test, with a client that is closed behind it."""
    async with _inside(tmp_path, place) if place in INSIDE else _outside(place) as any_depot, any_depot.client:
        yield any_depot


@asynccontextmanager
async def _outside(place: str) -> AsyncIterator[AnyDepot]:
    address = Address.parse(place)
    yield AnyDepot(lambda: DepotClient(address, silence_limit=SILENCE), place == f"ibp://{FOREIGN}")


@asynccontextmanager
async def _inside(store: Path, place: str) -> AsyncIterator[AnyDepot]:
    with open_depot(Settings(store=store, capacity=1 << 30), SteadyClock()) as served:
        async with trio.open_nursery() as nursery:
            in_memory = place == "memory streams"
            start = partial(nursery.start_soon, INSIDE[place](), served)
            yield AnyDepot(lambda: InnerClient(start, in_memory), old=place == "old")
            nursery.cancel_scope.cancel()


class InnerClient(DepotClient):
    """Of a depot in the same loop."""

    def __init__(self, start: Callable[[Any], None], in_memory: bool) -> None:
        super().__init__(Address(*PLACE), silence_limit=SILENCE)
        self._start = start
        self._in_memory = in_memory

    async def _connect(self) -> DepotStream:
        ends: tuple[Any, Any]
        if self._in_memory:
            ends = memory_pair(PIECES)
        else:
            ends = tuple(map(trio.socket.from_stdlib_socket, socket.socketpair()))  # type: ignore[assignment]
        self._start(ends[1])
        return DepotStream(ends[0], self.address, silence_limit=SILENCE)
