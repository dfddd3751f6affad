"""The client's further commands against real depots, and against one that knows none of them."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability, CapabilitySet
from ibpfs.depot.client import APPEND, DepotClient
from ibpfs.depot.server.depot import SteadyClock, open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.wire import (
    AllocationKind,
    CapabilityNotFound,
    Checksum,
    DigestType,
    NoRoom,
    NotOffered,
    PermissionDenied,
)


@pytest.fixture
async def two(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[tuple[DepotClient, DepotClient]]:
    settings = [Settings(store=tmp_path / name, listen=(("127.0.0.1", 0),), capacity=1 << 28) for name in "ab"]
    with open_depot(settings[0], SteadyClock()) as first, open_depot(settings[1], SteadyClock()) as second:
        for depot in (first, second):
            nursery.start_soon(depot.serve)
        async with (
            DepotClient(Address.parse(first.address)) as here,
            DepotClient(Address.parse(second.address)) as there,
        ):
            yield here, there
        nursery.cancel_scope.cancel()


Two = tuple[DepotClient, DepotClient]


async def filled(client: DepotClient, data: bytes, size: int = 1000) -> CapabilitySet:
    caps = await client.allocate(size, 600)
    await client.store(caps.write.wire_key, [data])
    return caps


async def test_fifo(two: Two) -> None:
    client = two[0]
    caps = await client.allocate(10, 600, kind=AllocationKind.FIFO)
    read, write = caps.read.wire_key, caps.write.wire_key
    assert await client.take(read, 4) == b""
    taken: list[bytes] = []

    async def consume() -> None:
        taken.extend([await client.take(read, 4, wait=10) for _ in range(5)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        for n in range(5):
            assert await client.put(write, b"%04d" % n, wait=10) == 4
    assert taken == [b"%04d" % n for n in range(5)]
    await client.put(write, b"0123456789")
    with pytest.raises(NoRoom):
        await client.put(write, b"x")
    assert await client.take(read, 100) == b"0123456789"


async def test_circular_queue(two: Two) -> None:
    client = two[0]
    caps = await client.allocate(10, 600, kind=AllocationKind.CIRCULAR_QUEUE)
    await client.put(caps.write.wire_key, b"abcdef")
    await client.put(caps.write.wire_key, b"ghijklm")
    assert await client.take(caps.read.wire_key, 10) == b"defghijklm"
    assert (await client.probe(caps.manage.wire_key)).kind is AllocationKind.CIRCULAR_QUEUE


async def test_vectors(two: Two) -> None:
    client = two[0]
    caps = await filled(client, b"0123456789")
    assert await client.write_vector(caps.write.wire_key, [(1, 2), (100, 3)], [b"AB", b"CDE"]) == 5
    assert await client.read_vector(caps.read.wire_key, [(100, 3), (0, 4)]) == b"CDE0AB3"


async def test_digests(two: Two) -> None:
    client = two[0]
    checksum = Checksum(DigestType.SHA256, 100)
    caps = await client.allocate(1000, 600, checksum=checksum)
    data = bytes(range(250))
    assert await client.store_checked(caps.write.wire_key, data, Checksum(DigestType.MD5, 33)) == 250
    assert await client.load_checked(caps.read.wire_key, 10, 200, Checksum(DigestType.SHA1, 7)) == data[10:210]
    blocks = [hashlib.sha256(data[at : at + 100]).digest() for at in (0, 100, 200)]
    assert await client.digests(caps.manage.wire_key) == (checksum, blocks)
    assert await client.validate(caps.manage.wire_key) == 0


async def test_aliases(two: Two) -> None:
    client = two[0]
    caps = await filled(client, b"0123456789")
    alias = await client.alias(caps.manage.wire_key, 2, 5)
    assert await client.load(alias.read.wire_key, 0, 5) == b"23456"
    assert (await client.probe_alias(alias.manage.wire_key)).offset == 2
    await client.change_alias(alias.manage.wire_key, caps.manage.wire_key, 3, 4)
    assert await client.load(alias.read.wire_key, 0, 4) == b"3456"
    with pytest.raises(PermissionDenied):
        await client.revoke_alias(alias.manage.wire_key, alias.manage.wire_key)
    await client.revoke_alias(alias.manage.wire_key, caps.manage.wire_key)
    with pytest.raises(CapabilityNotFound):
        await client.load(alias.read.wire_key, 0, 4)


async def test_keys_and_parts(two: Two) -> None:
    client = two[0]
    caps = await filled(client, b"0123456789")
    new = await client.rename(caps.manage.wire_key)
    with pytest.raises(CapabilityNotFound):
        await client.probe(caps.manage.wire_key)
    child = await client.split(new.manage.wire_key, 400, 600)
    assert (await client.probe(new.manage.wire_key)).max_size == 600
    await client.merge(new.manage.wire_key, child.manage.wire_key)
    assert (await client.probe(new.manage.wire_key)).max_size == 1000


async def test_copies(two: Two) -> None:
    here, there = two
    ours, theirs = await filled(here, b"0123456789"), await there.allocate(1000, 600)
    assert await here.copy(ours.read.wire_key, theirs.write, 2, 5) == 5
    assert await here.push(ours.read.wire_key, theirs.write, 0, 1, 2) == 2
    assert await there.load(theirs.read.wire_key, 0, 5) == b"20156"
    assert await here.pull(ours.write.wire_key, theirs.read, APPEND, 1, 3) == 3
    assert await here.load(ours.read.wire_key, 0, 13) == b"0123456789015"


async def test_raw_bytes(two: Two) -> None:
    client = two[0]
    caps = await filled(client, b"0123456789")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    received = b""

    async def third_party() -> None:
        nonlocal received
        async with await listeners[0].accept() as stream:
            received = b"".join([piece async for piece in stream])
        async with await listeners[0].accept() as stream:
            await stream.send_all(b"remote")

    async with listeners[0], trio.open_nursery() as nursery:
        nursery.start_soon(third_party)
        assert await client.deliver(caps.read.wire_key, "127.0.0.1", port, 3, 4) == 4
        assert await client.remote_store(caps.write.wire_key, "127.0.0.1", port, 6) == 6
    assert received == b"3456"
    assert await client.load(caps.read.wire_key, 8, 8) == b"89remote"


async def test_the_depot(two: Two) -> None:
    assert await two[0].resources() == ("1",)
    assert (await two[0].version_text())[0].startswith("ibpfs-depot ")


async def test_what_is_not_offered_is_asked_once(nursery: trio.Nursery) -> None:
    asked: list[bytes] = []

    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            async for piece in stream:
                asked.append(piece)
                await stream.send_all(b"-43 \n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, refuse, listeners)
    address = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
    manage = Capability.parse("ibp://h:1/1%23k/1/MANAGE").wire_key
    async with DepotClient(address) as client:
        for _ in range(3):
            with pytest.raises(NotOffered):
                await client.alias(manage)
        with pytest.raises(NotOffered):
            await client.rename(manage)
        with pytest.raises(NotOffered):
            await client.store_checked(manage, b"x", Checksum(DigestType.MD5, 16))
        refused = len(asked)
        with pytest.raises(NotOffered):  # said by the depot: STORE without digests is another command
            await client.store(manage, [b"x"])
    assert (refused, len(asked)) == (3, 4)
    nursery.cancel_scope.cancel()


async def test_without_digests_is_another_command(nursery: trio.Nursery) -> None:
    """And what every depot has is asked for again: it may have been forbidden for a while."""
    replies = [b"-43 \n", b"1 \n1 3 \n", b"-43 \n-66 0\n", b"1 \n1 3 \n"]

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                await stream.send_all(replies.pop(0))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    key = Capability.parse("ibp://h:1/k/1/WRITE").wire_key
    async with DepotClient(Address("127.0.0.1", listeners[0].socket.getsockname()[1])) as client:
        for _ in range(2):
            with pytest.raises(NotOffered):
                await client.store_checked(key, b"abc", Checksum(DigestType.MD5, 16))
        assert await client.store(key, [b"abc"]) == 3
        with pytest.raises(NotOffered):
            await client.store(key, [b"abc"])
        assert await client.store(key, [b"abc"]) == 3
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("known", [True, False])
async def test_the_oldest_depots_hang_up_instead(nursery: trio.Nursery, known: bool) -> None:
    asked: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            line = await stream.receive_some()
            asked.append(line)
            if line.startswith(b"0 4"):
                await stream.send_all(b"500 0 500 0 864000 1.3.1  \n\0")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    key = Capability.parse("ibp://h:1/k/1/MANAGE").wire_key
    async with DepotClient(Address("127.0.0.1", listeners[0].socket.getsockname()[1])) as client:
        if known:
            await client.status()
        before = len(asked)
        for _ in range(2):
            with pytest.raises(NotOffered):
                await client.write(key, 0, [b"x"])
        with pytest.raises(NotOffered):
            await client.allocate(10, 60, checksum=Checksum(DigestType.MD5, 16))
        with pytest.raises(NotOffered):
            await client.store_checked(key, b"x", Checksum(DigestType.MD5, 16))
    assert len([line for line in asked[before:] if b" 13 " in line]) == 1
    nursery.cancel_scope.cancel()
