"""Records read for strangers, from depots of strangers."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio
import trio.testing

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.server.reach import Places
from ibpfs.exnode_store.sharing.links import Locator, Place
from ibpfs.exnode_store.sharing.record_log import make_entry
from ibpfs.gateway import records as module
from ibpfs.gateway.records import NoShare, Records
from ibpfs.gateway.relay import LOADS_PER_DEPOT, Relay, TooBusy
from tests.depot.conftest import DepotProcess

from .conftest import GatewayProcess
from .sharing import make_share
from .test_app import ask

HERE = [Places.parse("127.0.0.0/8")]
KEY = Key("key", "1")


class Counting(Relay):
    """Counts loads."""

    def __init__(self) -> None:
        super().__init__(HERE)
        self.loads = 0

    async def load(
        self, depot: Address, key: Key, offset: int, length: int, pin: bytes | None = None
    ) -> bytearray:
        self.loads += 1
        return await super().load(depot, key, offset, length, pin)


@pytest.fixture
def silent() -> Iterator[Address]:
    """A depot that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as door:
        yield Address("127.0.0.1", door.getsockname()[1])


def locator_at(address: Address) -> Locator:
    return Locator(os.urandom(10), int(time.time()) + 600, (Place(address, KEY),))


def test_a_silent_depot_does_not_keep_others_waiting(
    gateway: GatewayProcess, depot: DepotProcess, silent: Address
) -> None:
    share = make_share(depot.address, {"file": b"x"})
    begun = threading.Barrier(9)

    def wait_for_it() -> None:
        with socket.create_connection(("127.0.0.1", int(gateway.url.rstrip("/").rpartition(":")[2]))) as line:
            line.sendall(f"GET /record/{locator_at(silent).render()} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            begun.wait()
            stop.wait()

    stop = threading.Event()
    threads = [threading.Thread(target=wait_for_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        assert ask(gateway, "GET", f"/record/{share.link.locator.render()}")[0] == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_link_opens_though_one_of_its_depots_is_silent(
    gateway: GatewayProcess, depot: DepotProcess, silent: Address
) -> None:
    """As one is whose machine was switched off: its record is had from the other."""
    locator = make_share(depot.address, {"file": b"x"}).link.locator
    for places in ((Place(silent, KEY), *locator.places), (*locator.places, Place(silent, KEY)),
                   (Place(silent, KEY), Place(silent, KEY), *locator.places)):  # fmt: skip
        status, _, body = ask(gateway, "GET", f"/record/{replace(locator, places=places).render()}")
        assert (status, body[:4]) == (200, b"IBPr")
    here, gone = locator.places[0], Place(locator.places[0].address, KEY)
    assert ask(gateway, "GET", f"/record/{replace(locator, places=(gone, here)).render()}")[0] == 200
    assert ask(gateway, "GET", f"/record/{replace(locator, places=(gone, gone)).render()}")[0] == 404


def test_a_copy_that_missed_an_extension_is_not_believed(
    gateway: GatewayProcess, depot: DepotProcess
) -> None:
    share = make_share(depot.address, {"file": b"x"}, hold=-5)
    public = replace(share.public, expires=int(time.time()) + 600)
    longer = make_entry(share.signer, 2, public, b"", bytes(32), bytes(12))

    async def store() -> Place:
        async with DepotClient(share.depot) as client:
            caps = await client.allocate(10_000, 600)
            await client.store(caps.write.wire_key, [longer])
            return Place(share.depot, caps.read.wire_key)

    newer, (stale,) = trio.run(store), share.link.locator.places
    for places, status in (((stale, newer), 200), ((newer, stale), 200), ((stale,), 410)):
        assert ask(gateway, "GET", f"/record/{replace(share.link.locator, places=places).render()}")[0] == status


def test_one_machine_has_not_all_loads(silent: Address) -> None:
    async def crowd() -> None:
        async with Relay(HERE).closing() as relay, trio.open_nursery() as nursery:
            for _ in range(LOADS_PER_DEPOT):
                nursery.start_soon(relay.load, silent, KEY, 0, 1)
            await trio.testing.wait_all_tasks_blocked(0.2)
            with pytest.raises(TooBusy):
                await relay.load(Address("127.0.0.1", 1), KEY, 0, 1)  # whatever the port
            nursery.cancel_scope.cancel()

    trio.run(crowd)


def test_who_asks_for_the_same_record_waits_for_one_answer(depot: DepotProcess) -> None:
    locator = make_share(depot.address, {"file": b"x"}).link.locator

    async def reads(count: int) -> int:
        relay = Counting()
        async with relay.closing():
            records = Records(relay)
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(records.newest, locator)
            return relay.loads

    assert trio.run(reads, 1) == trio.run(reads, 5) > 0


def test_memory_for_records_has_a_limit(depot: DepotProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    locator = make_share(depot.address, {"file": b"x"}).link.locator

    async def read() -> None:
        async with Relay(HERE).closing() as relay:
            records = Records(relay)
            with monkeypatch.context() as less:
                less.setattr(module, "_BYTES_AT_ONCE", 100)
                with pytest.raises(NoShare, match="busy"):
                    await records.newest(locator)
            assert (await records.newest(locator)).public.share == locator.share

    trio.run(read)
