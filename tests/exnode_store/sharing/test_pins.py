"""Depots whose certificates a link names, spoken to over TLS: another one gets nothing, and the next copy is taken."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.server.certificate import fingerprint
from ibpfs.depot.server.reach import Places
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store.lors.work import Depots, connected
from ibpfs.exnode_store.sealing import seal
from ibpfs.exnode_store.sharing.contents import Content, Copy, Run
from ibpfs.exnode_store.sharing.fetching import STRANGER, Unavailable, fetch_part
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place
from ibpfs.exnode_store.sharing.notation import to_json
from ibpfs.exnode_store.sharing.reading import open_record, read_record
from ibpfs.exnode_store.sharing.receiving import Receiver
from ibpfs.exnode_store.sharing.staging import Staged, stage
from ibpfs.gateway.relay import Relay
from tests.test_pinned_depots import a_depot

from .test_notation import CONTENT, PART, PLAIN, SLICE
from .test_reading import CLEAR, PUBLIC, SECRET, SHARE, SIGNED, entry

_STORED = b"".join(seal(SLICE.form, SLICE.key, CLEAR))
WRONG = bytes(32)


@dataclass
class Two:
    """Two depots with a copy each; their certificates."""

    content: Content
    pins: dict[Address, bytes]

    @property
    def addresses(self) -> list[Address]:
        return list(self.pins)

    def with_wrong(self, *numbers: int) -> dict[Address, bytes]:
        return {one: WRONG if number in numbers else pin for number, (one, pin) in enumerate(self.pins.items())}


async def _stored(address: Address, data: bytes) -> Key:
    async with DepotClient(address) as client:
        caps = await client.allocate(10_000, 600)
        await client.store(caps.write.wire_key, [data])
        return caps.read.wire_key


@asynccontextmanager
async def two(directory: Path) -> AsyncIterator[Two]:
    async with a_depot(directory / "one") as first, a_depot(directory / "two") as second:
        addresses = [replace(Address.parse(one), secure=True) for one in (first, second)]
        copies = tuple([Copy(one, await _stored(one, _STORED)) for one in addresses])
        entries = (replace(PLAIN, sha256=None),)
        content = replace(CONTENT, sender=SIGNED, runs=(Run(len(_STORED), copies),), entries=entries)
        pins = [fingerprint(directory / name) for name in ("one", "two")]
        yield Two(content, dict(zip(addresses, pins, strict=True)))


async def received(depots: Depots, content: Content, target: Path) -> bytes:
    await Receiver(depots, content, lambda *_: None, 2).receive(target, overwrite=False, resume=True)
    return target.read_bytes()


async def test_the_next_copy_is_taken(tmp_path: Path) -> None:
    async with two(tmp_path) as now:
        first, second = now.addresses
        for number, pins in enumerate((now.pins, now.with_wrong(0), now.with_wrong(1))):
            async with connected(pins=pins) as depots:
                assert await received(depots, now.content, tmp_path / str(number)) == CLEAR
                for turn in range(4):
                    assert await fetch_part(depots, now.content, PART, turn) == CLEAR
                assert list(depots.strangers) == [[], [first], [second]][number]
        async with connected(pins=now.with_wrong(0, 1)) as depots:
            with pytest.raises(Unavailable) as found:
                await fetch_part(depots, now.content, PART)
        assert str(found.value).count(STRANGER) == 2
        assert "\n" not in str(found.value)


async def test_no_capability_is_told_to_a_stranger(tmp_path: Path) -> None:
    """Nothing is sent before the certificate was compared: also not to one without TLS."""
    async with two(tmp_path) as now, trio.open_nursery() as nursery:
        heard = bytearray()

        async def listen(stream: trio.SocketStream) -> None:
            async with stream:
                async for data in stream:
                    heard.extend(data)
                    await stream.send_all(b"1 100 what is no TLS\n")

        (listener,) = await nursery.start(partial(trio.serve_tcp, listen, 0, host="127.0.0.1"))
        port: int = listener.socket.getsockname()[1]
        liar = Address("127.0.0.1", port, secure=True)
        copies = now.content.runs[0].copies
        content = replace(now.content, runs=(Run(len(_STORED), (Copy(liar, copies[0].read), copies[1])),))
        async with connected(pins={**now.pins, liar: WRONG}) as depots:
            for turn in range(2):
                assert await fetch_part(depots, content, PART, turn) == CLEAR
            assert list(depots.strangers) == [liar]
        assert heard
        assert copies[0].read.key.encode() not in heard
        nursery.cancel_scope.cancel()


async def test_opened_with_the_record(tmp_path: Path) -> None:
    async with two(tmp_path) as now:
        public = replace(PUBLIC, depots=tuple(now.addresses), pins=now.pins)
        key = await _stored(now.addresses[0], entry(clear=to_json(now.content), public=public))
        link = Link(Locator(SHARE, 1 << 33, (Place(now.addresses[0], key),)), Fragment(SECRET))
        async with connected() as depots:
            found = open_record(await read_record(depots, link.locator), link, lambda wrapped: wrapped, lambda: "")
        assert found.pins == now.pins


async def test_staged(tmp_path: Path) -> None:
    async with two(tmp_path) as now, a_depot(tmp_path / "near") as text:
        near = replace(Address.parse(text), secure=True)
        async with connected(pins=now.with_wrong(0)) as depots:
            made = await stage(depots, now.content, "abc", near, 600, lambda *_: None, 2)
        assert made.pin == fingerprint(tmp_path / "near")
        made.save(tmp_path / "note")
        again = Staged.load(tmp_path / "note")
        assert again == made
        content = replace(made.on(now.content), pins={**made.on(now.content).pins, **now.with_wrong(0, 1)})
        assert content.pins[near] == made.pin
        async with connected(pins=content.pins) as depots:
            assert await fetch_part(depots, content, PART) == CLEAR


async def test_relayed(tmp_path: Path) -> None:
    async with two(tmp_path) as now, Relay([Places.parse("127.0.0.0/8")]).closing() as relay:
        first = now.addresses[0]
        key = now.content.runs[0].copies[0].read
        for _ in range(2):
            with pytest.raises(DepotUnreachable):
                await relay.load(first, key, 0, len(_STORED), WRONG)
            assert await relay.load(first, key, 0, len(_STORED), now.pins[first]) == _STORED
