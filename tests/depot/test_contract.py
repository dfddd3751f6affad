"""What anything that is a depot does for our client: in this process, over memory streams, over a Unix socket, TCP and
TLS, and at HOST:PORT of a foreign one (IBPFS_FOREIGN_DEPOT).

Where real depots differ in what they answer, what all of them mean is asserted here. What our depot says word for
word, in each setting, is in test_depot_contract, test_queue_contract and test_derived_contract.
"""

import hashlib
import os

import pytest
import trio

from ibpfs.depot.capability import CapabilityKind, CapabilitySet, Key
from ibpfs.depot.client import APPEND, AllocationStatus, DepotClient, ShortLoad
from ibpfs.depot.wire import (
    AllocationKind,
    CapabilityNotFound,
    Checksum,
    DepotError,
    DigestType,
    LeaseTooLong,
    NoRoom,
    Reliability,
)

from .places import AnyDepot, depot, depot_process, optional, place

__all__ = ["depot", "depot_process", "place"]

LEASE = 600
MIB = 1 << 20


def keys(caps: CapabilitySet) -> tuple[Key, Key, Key]:
    return caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key


async def holding(client: DepotClient, data: bytes, size: int = 0) -> CapabilitySet:
    caps = await client.allocate(size or len(data), LEASE)
    assert await client.store(caps.write.wire_key, [data]) == len(data)
    return caps


async def seconds_left(client: DepotClient, manage: Key) -> float:
    left = (await client.probe(manage)).seconds_left
    assert left is not None
    return left


# --- allocations ---


@pytest.mark.parametrize("reliability", Reliability)
async def test_what_was_allocated(depot: AnyDepot, reliability: Reliability) -> None:
    read, write, manage = keys(await depot.client.allocate(1000, LEASE, reliability=reliability))
    now = await depot.client.probe(manage)
    assert (now.read_count, now.size, now.max_size) == (1, 0, 1000)
    assert (now.reliability, now.kind) == (reliability, AllocationKind.BYTE_ARRAY)
    assert now.seconds_left is not None
    assert LEASE - 30 < now.seconds_left <= LEASE
    assert len({read, write, manage}) == 3


async def test_status_counts_what_is_leased(depot: AnyDepot) -> None:
    before = await depot.client.status()
    await depot.client.allocate(64 * MIB, LEASE)
    after = await depot.client.status()
    assert 0 < after.free_bytes <= after.total_bytes == before.total_bytes
    assert after.used_bytes - before.used_bytes == 64 * MIB
    assert after.version or depot.old


async def test_the_longest_lease(depot: AnyDepot) -> None:
    longest = (await depot.client.status()).max_lease
    assert longest is not None
    with pytest.raises(LeaseTooLong):
        await depot.client.allocate(10, longest + 1000)
    manage = (await depot.client.allocate(10, longest)).manage.wire_key
    assert longest - 30 < await seconds_left(depot.client, manage) <= longest
    with pytest.raises(LeaseTooLong):
        await depot.client.change(manage, duration=longest + 1000)


async def test_without_an_end_or_as_long_as_possible(depot: AnyDepot) -> None:
    try:
        manage = (await depot.client.allocate(10, None)).manage.wire_key
    except LeaseTooLong:
        assert (await depot.client.status()).max_lease is not None
        return
    left, longest = (await depot.client.probe(manage)).seconds_left, (await depot.client.status()).max_lease
    assert (left is None) == (longest is None)
    assert left is None or longest is None or longest - 30 < left <= longest


async def test_more_than_there_is(depot: AnyDepot) -> None:
    with pytest.raises(NoRoom):
        await depot.client.allocate(1 << 50, LEASE)
    await depot.client.allocate(10, LEASE)


async def test_lease_and_size_are_changed_apart(depot: AnyDepot) -> None:
    client = depot.client
    read, _, manage = keys(await holding(client, b"0123456789", 1000))
    await client.change(manage, duration=5000)
    assert (await client.probe(manage)).max_size == 1000
    assert 4900 < await seconds_left(client, manage) <= 5000
    await client.change(manage, max_size=2000)
    assert (await client.probe(manage)).max_size == 2000
    assert 4900 < await seconds_left(client, manage) <= 5000
    await client.change(manage, max_size=2000, duration=100)
    assert 50 < await seconds_left(client, manage) <= 100
    assert await client.load(read, 0, 10) == b"0123456789"


async def test_a_lease_ends(depot: AnyDepot) -> None:
    caps = await depot.client.allocate(10, 1)
    await depot.client.store(caps.write.wire_key, [b"x"])
    with trio.fail_after(20):
        while not (depot.foreign and await seconds_left(depot.client, caps.manage.wire_key) <= 0):
            try:  # the depot's clock is the subject; some go on for a while after the end
                assert await depot.client.load(caps.read.wire_key, 0, 1) == b"x"
            except CapabilityNotFound:
                return
            await trio.sleep(0.1)


async def test_deleted_when_nobody_reads(depot: AnyDepot) -> None:
    client = depot.client
    read, write, manage = keys(await holding(client, b"0123456789", 100))
    await client.incr(manage)
    assert (await client.probe(manage)).read_count == 2
    await client.decr(manage)
    assert await client.load(read, 0, 1) == b"0"
    await client.decr(manage)
    for gone in (client.load(read, 0, 1), client.probe(manage), client.store(write, [b"x"]), client.decr(manage)):
        with pytest.raises(CapabilityNotFound):
            await gone


async def test_writers_are_counted(depot: AnyDepot) -> None:
    manage = (await depot.client.allocate(10, LEASE)).manage.wire_key
    before = (await depot.client.probe(manage)).write_count
    await depot.client.incr(manage, CapabilityKind.WRITE)
    assert (await depot.client.probe(manage)).write_count == before + 1


async def test_a_key_grants_one_right(depot: AnyDepot) -> None:
    client = depot.client
    read, write, manage = keys(await holding(client, b"12345", 10))
    for refused in (client.load(write, 0, 5), client.store(read, [b"x"]), client.probe(Key("1#nosuchkey", "1"))):
        with pytest.raises(DepotError):
            await refused
    assert (await client.probe(manage)).size == 5
    assert await client.load(read, 0, 5) == b"12345"


# --- bytes ---


async def test_stores_append(depot: AnyDepot) -> None:
    client = depot.client
    read, write, manage = keys(await client.allocate(6 * MIB, LEASE))
    data = os.urandom(3_000_001)
    assert await client.store(write, [b"he", memoryview(b"ad"), b""]) == 4
    assert await client.store(write, [memoryview(data)]) == len(data)
    assert (await client.probe(manage)).size == 4 + len(data)
    assert await client.load(read, 0, 4 + len(data)) == b"head" + data
    assert await client.load(read, 4, len(data)) == data


async def test_any_part_can_be_read(depot: AnyDepot) -> None:
    data = os.urandom(200_000)
    read = (await holding(depot.client, data)).read.wire_key
    for offset, length in ((0, 1), (199_999, 1), (1, 65_535), (65_536, 65_536), (70_000, 130_000), (12_345, 4096)):
        assert await depot.client.load(read, offset, length) == data[offset : offset + length]


async def test_nothing_is_read_past_the_end(depot: AnyDepot) -> None:
    read = (await holding(depot.client, b"0123456789", 1000)).read.wire_key
    for offset, length in ((0, 20), (5, 6), (10, 1), (500, 1)):
        with pytest.raises(ShortLoad):
            await depot.client.load(read, offset, length)
    assert await depot.client.load(read, 9, 1) == b"9"


async def test_nothing_is_written_past_the_maximum(depot: AnyDepot) -> None:
    client = depot.client
    read, write, manage = keys(await holding(client, b"12", 10))
    for size in (9, MIB):  # refused before, and while, the data come
        with pytest.raises(NoRoom):
            await client.store(write, [bytes(size)])
    await client.store(write, [b"345"])
    assert (await client.probe(manage)).size == 5
    assert await client.load(read, 0, 5) == b"12345"


@optional
async def test_written_at_an_offset(depot: AnyDepot) -> None:
    client = depot.client
    read, write, _ = keys(await holding(client, b"0123456789", 1000))
    assert await client.write(write, 3, [b"WX", b"YZ"]) == 4
    assert await client.write(write, 100, [b"HOLE"]) == 4
    assert await client.load(read, 0, 104) == b"012WXYZ789" + bytes(90) + b"HOLE"
    with pytest.raises(NoRoom):
        await client.write(write, 998, [b"long"])


@optional
async def test_truncated(depot: AnyDepot) -> None:
    client = depot.client
    read, _, manage = keys(await holding(client, b"0123456789", 1000))
    await client.truncate(manage, 4)
    now = await client.probe(manage)
    assert (now.size, now.max_size) == (4, 4)
    assert await client.load(read, 0, 4) == b"0123"


@optional
async def test_vectors(depot: AnyDepot) -> None:
    client = depot.client
    read, write, _ = keys(await client.allocate(1000, LEASE))
    assert await client.write_vector(write, [(0, 4), (200, 4)], [b"VV", b"VVvv", b"vv"]) == 8
    assert await client.read_vector(read, [(0, 3), (198, 4), (0, 1)]) == b"VVV\0\0vvV"
    many = [(number % 200, 1) for number in range(4000)]
    assert await client.read_vector(read, many) == (b"VVVV" + bytes(196)) * 20


# --- digests ---


@optional
@pytest.mark.parametrize("kind", DigestType)
async def test_digests_on_the_wire(depot: AnyDepot, kind: DigestType) -> None:
    client = depot.client
    read, write, _ = keys(await client.allocate(1000, LEASE))
    data = os.urandom(333)
    assert await client.store_checked(write, data, Checksum(kind, 16)) == 333
    assert await client.load_checked(read, 33, 300, Checksum(kind, 100)) == data[33:]


@optional
async def test_digests_on_disk(depot: AnyDepot) -> None:
    client = depot.client
    checksum = Checksum(DigestType.MD5, 64)
    _, write, manage = keys(await client.allocate(1000, LEASE, checksum=checksum))
    data = os.urandom(200)
    await client.store(write, [data])
    assert await client.validate(manage) == 0
    blocks = [hashlib.md5(data[at : at + 64]).digest() for at in range(0, 200, 64)]
    assert await client.digests(manage) == (checksum, blocks)


# --- queues ---


@optional
async def test_fifo(depot: AnyDepot) -> None:
    client = depot.client
    read, write, manage = keys(await client.allocate(10, LEASE, kind=AllocationKind.FIFO))
    assert (await client.probe(manage)).kind is AllocationKind.FIFO
    assert await client.take(read, 4) == b""
    assert await client.put(write, b"abcdef") == 6
    assert (await client.probe(manage)).size == 6
    assert await client.take(read, 4) == b"abcd"
    assert await client.put(write, b"ghijklmn") == 8
    with pytest.raises(NoRoom):
        await client.put(write, b"o")
    assert await client.take(read, 20, wait=1) == b"efghijklmn"
    assert await client.take(read, 1) == b""


@optional
async def test_reader_and_writer_wait_for_each_other(depot: AnyDepot) -> None:
    if depot.foreign:  # the one that has FIFOs forgets to wake writers, and repeats bytes, when both ends move
        return
    read, write, _ = keys(await depot.client.allocate(8, LEASE, kind=AllocationKind.FIFO))
    records = [b"%04d" % number for number in range(20)]
    taken: list[bytes] = []

    async def consume() -> None:
        async with depot.another() as reader:
            taken.extend([await reader.take(read, 4, wait=10) for _ in records])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        for record in records:
            assert await depot.client.put(write, record, wait=10) == 4
    assert taken == records


@optional
async def test_circular_queue(depot: AnyDepot) -> None:
    client = depot.client
    read, write, _ = keys(await client.allocate(10, LEASE, kind=AllocationKind.CIRCULAR_QUEUE))
    await client.put(write, b"0123456789")
    await client.put(write, b"abc")
    assert await client.take(read, 10) == b"3456789abc"
    with pytest.raises(NoRoom):
        await client.put(write, bytes(11))


@optional
async def test_buffer(depot: AnyDepot) -> None:
    client = depot.client
    read, write, _ = keys(await client.allocate(10, LEASE, kind=AllocationKind.BUFFER))
    await client.put(write, b"0123456789")
    await client.put(write, b"abc")
    assert await client.load(read, 0, 3) == b"abc"


# --- keys, parts, aliases ---


@optional
async def test_new_keys(depot: AnyDepot) -> None:
    client = depot.client
    old = keys(await holding(client, b"12345", 10))
    read, write, manage = keys(await client.rename(old[2]))
    assert await client.load(read, 0, 5) == b"12345"
    for ended in (client.load(old[0], 0, 5), client.store(old[1], [b"x"]), client.probe(old[2])):
        with pytest.raises(CapabilityNotFound):
            await ended
    await client.store(write, [b"678"])
    assert (await client.probe(manage)).size == 8


@optional
async def test_split_and_merge(depot: AnyDepot) -> None:
    client = depot.client
    read, _, manage = keys(await holding(client, b"12345", 1000))
    child = keys(await client.split(manage, 400, LEASE))
    assert (await client.probe(manage)).max_size == 600
    await client.store(child[1], [b"child"])
    assert await client.load(child[0], 0, 5) == b"child"
    await client.merge(manage, child[2])
    assert (await client.probe(manage)).max_size == 1000
    with pytest.raises(CapabilityNotFound):
        await client.load(child[0], 0, 5)
    assert await client.load(read, 0, 5) == b"12345"


@optional
async def test_alias(depot: AnyDepot) -> None:
    client = depot.client
    read, _, manage = keys(await holding(client, b"0123456789"))
    alias = keys(await client.alias(manage, 2, 5))
    assert await client.load(alias[0], 1, 3) == b"345"
    with pytest.raises(DepotError):
        await client.load(alias[0], 3, 3)
    seen = await client.probe_alias(alias[2])
    assert (seen.offset, seen.length) == (2, 5)
    await client.change_alias(alias[2], manage, 4, 5, 100)
    assert await client.load(alias[0], 0, 5) == b"45678"
    await client.revoke_alias(alias[2], manage)
    with pytest.raises(CapabilityNotFound):
        await client.load(alias[0], 0, 1)
    assert await client.load(read, 0, 1) == b"0"


# --- copies, and raw bytes to and from others ---


async def test_copied(depot: AnyDepot) -> None:
    client = depot.client
    data = os.urandom(300_000)
    caps, target = await holding(client, data), await client.allocate(len(data), LEASE)
    assert await client.copy(caps.read.wire_key, target.write, 1000, 200_000) == 200_000
    assert await client.load(target.read.wire_key, 0, 200_000) == data[1000:201_000]
    if not depot.foreign:  # some begin at the beginning again
        assert await client.copy(caps.read.wire_key, target.write, 0, 1000) == 1000
        assert await client.load(target.read.wire_key, 200_000, 1000) == data[:1000]


@optional
async def test_pushed_and_pulled(depot: AnyDepot) -> None:
    client = depot.client
    caps, target = await holding(client, b"0123456789", 100), await client.allocate(100, LEASE)
    assert await client.push(caps.read.wire_key, target.write, 2, APPEND, 5) == 5
    assert await client.push(caps.read.wire_key, target.write, 0, 1, 2) == 2
    assert await client.load(target.read.wire_key, 0, 5) == b"20156"
    assert await client.pull(caps.write.wire_key, target.read, APPEND, 2, 3) == 3
    assert await client.pull(caps.write.wire_key, target.read, 0, 0, 1) == 1
    assert await client.load(caps.read.wire_key, 0, 13) == b"2123456789156"


@optional
async def test_raw_bytes(depot: AnyDepot) -> None:
    read, write, _ = keys(await holding(depot.client, b"0123456789", 100))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    heard: list[bytes] = []

    async def third_party() -> None:
        async with await listener.accept() as stream:
            heard.append(b"".join([bytes(piece) async for piece in stream]))
        async with await listener.accept() as stream:
            await stream.send_all(b"abcde")

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(third_party)
        port = listener.socket.getsockname()[1]
        try:
            assert await depot.client.deliver(read, "127.0.0.1", port, 1, 5) == 5
            assert await depot.client.remote_store(write, "127.0.0.1", port, 5) == 5
        finally:
            nursery.cancel_scope.cancel()
    assert heard == [b"12345"]
    assert await depot.client.load(read, 0, 15) == b"0123456789abcde"


# --- the depot; many at once ---


@optional
async def test_the_depot_tells_of_itself(depot: AnyDepot) -> None:
    assert await depot.client.resources()
    assert await depot.client.version_text()


async def test_many_at_once(depot: AnyDepot) -> None:
    shared = await depot.client.allocate(MIB, LEASE)

    async def one(client: DepotClient, number: int) -> None:
        mine = keys(await holding(client, b"%1000d" % number))
        assert await client.load(mine[0], 0, 1000) == b"%1000d" % number
        if not depot.foreign:  # some lose appends that come at the same time
            await client.store(shared.write.wire_key, [b"%10d" % number])
        await client.decr(mine[2])

    async with depot.another() as other, trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(one, (depot.client, other)[number % 2], number)
    if not depot.foreign:
        together = await depot.client.load(shared.read.wire_key, 0, 300)
        assert sorted(map(int, together.decode().split())) == list(range(30))


async def test_many_are_asked_for_and_given_back_at_once(depot: AnyDepot) -> None:
    client = depot.client
    manages = [(await client.allocate(10, LEASE)).manage.wire_key for _ in range(70)]
    assert len([one for one in await client.probe_all(manages) if isinstance(one, AllocationStatus)]) == 70
    assert await client.decr_all(manages) == [None] * 70
    assert all(isinstance(one, CapabilityNotFound) for one in await client.probe_all(manages))
    assert all(isinstance(one, CapabilityNotFound) for one in await client.decr_all(manages[:3]))


async def test_read_while_it_grows(depot: AnyDepot) -> None:
    """A reader sees whole appends, in order, as far as the size says."""
    read, write, manage = keys(await depot.client.allocate(MIB, LEASE))
    pieces = [bytes([number]) * 5000 for number in range(20)]

    async def follow() -> None:
        async with depot.another() as reader:
            size = 0
            while size < 100_000:
                size = (await reader.probe(manage)).size
                assert size % 5000 == 0
                assert not size or await reader.load(read, 0, size) == b"".join(pieces)[:size]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for piece in pieces:
            await depot.client.store(write, [piece])


async def test_who_hangs_up_inside_a_store_leaves_nothing(depot: AnyDepot) -> None:
    read, write, manage = keys(await holding(depot.client, b"kept", 64 * MIB))
    async with depot.another() as other:
        with trio.move_on_after(0.02):
            await other.store(write, [bytes(48 * MIB)])
    await depot.client.store(write, [b" too"])
    size = (await depot.client.probe(manage)).size
    assert size in (8, 8 + 48 * MIB)
    assert (await depot.client.load(read, size - 4, 4), await depot.client.load(read, 0, 4)) == (b" too", b"kept")
