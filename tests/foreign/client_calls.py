"""Every call of the client against a depot that is not ours, one line of a table each.

    python tests/foreign/client_calls.py ibp://HOST:PORT [ibp://OTHER:PORT]

The second depot is the target of copies; without it they go to the first. "no" = the depot says that it does not
offer this. Exits with 1 when a call fails in any other way than by what the depot does not offer.
"""

import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilityKind, CapabilitySet, Key
from ibpfs.depot.client import APPEND, DepotClient, ShortLoad
from ibpfs.depot.wire import (
    AllocationKind,
    Checksum,
    DepotError,
    LeaseTooLong,
    NoRoom,
    NotOffered,
    Reliability,
)
from ibpfs.depot.wire.digests import DigestType
from ibpfs.errors import IbpfsError

Case = Callable[[DepotClient, DepotClient], Awaitable[str | None]]
CASES: list[Case] = []
MIB = 1 << 20
LEASE = 600


def case(function: Case) -> Case:
    CASES.append(function)
    return function


def keys(caps: CapabilitySet) -> tuple[Key, Key, Key]:
    return caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key


async def holding(client: DepotClient, data: bytes, size: int = 0) -> CapabilitySet:
    caps = await client.allocate(size or len(data), LEASE)
    await client.store(caps.write.wire_key, [data])
    return caps


async def refused(call: Awaitable[object]) -> DepotError:
    try:
        await call
    except DepotError as error:
        return error
    raise AssertionError("not refused")


@case
async def status(client: DepotClient, _: DepotClient) -> str:
    report = await client.status()
    assert 0 < report.free_bytes <= report.total_bytes
    return f"{report.version!r}, longest lease {report.max_lease} s"


@case
async def allocate_stable_and_volatile(client: DepotClient, _: DepotClient) -> None:
    for reliability in Reliability:
        caps = await client.allocate(1000, LEASE, reliability=reliability)
        now = await client.probe(caps.manage.wire_key)
        assert (now.read_count, now.size, now.max_size, now.reliability) == (1, 0, 1000, reliability)
        assert now.seconds_left is not None
        assert LEASE - 60 < now.seconds_left <= LEASE


@case
async def allocate_for_ever(client: DepotClient, _: DepotClient) -> str:
    try:
        caps = await client.allocate(10, None)
    except LeaseTooLong:
        return "refused with LeaseTooLong"
    left = (await client.probe(caps.manage.wire_key)).seconds_left
    return "granted" if left is None else f"shortened to {left:.0f} s"


@case
async def allocate_too_long(client: DepotClient, _: DepotClient) -> None:
    longest = (await client.status()).max_lease
    assert longest is not None
    assert isinstance(await refused(client.allocate(10, longest + 1000)), LeaseTooLong)
    await client.allocate(10, longest)


@case
async def allocate_too_much(client: DepotClient, _: DepotClient) -> None:
    assert isinstance(await refused(client.allocate(1 << 50, LEASE)), NoRoom)


@case
async def store_appends_and_load(client: DepotClient, _: DepotClient) -> None:
    read, write, manage = keys(await client.allocate(6 * MIB, LEASE))
    data = os.urandom(5_000_001)
    assert await client.store(write, [b"he", b"ad"]) == 4
    assert await client.store(write, [memoryview(data)]) == len(data)
    assert await client.load(read, 0, 4 + len(data)) == b"head" + data
    assert await client.load(read, 100_000, 3) == (b"head" + data)[100_000:100_003]
    assert (await client.probe(manage)).size == 4 + len(data)


@case
async def load_past_the_end(client: DepotClient, _: DepotClient) -> None:
    caps = await holding(client, b"0123456789", 1000)
    for offset, length in ((0, 20), (5, 6), (10, 1), (500, 1)):
        assert isinstance(await refused(client.load(caps.read.wire_key, offset, length)), ShortLoad)
    assert await client.load(caps.read.wire_key, 9, 1) == b"9"


@case
async def store_past_the_maximum(client: DepotClient, _: DepotClient) -> None:
    caps = await holding(client, b"12", 10)
    assert isinstance(await refused(client.store(caps.write.wire_key, [bytes(9)])), NoRoom)
    assert isinstance(await refused(client.store(caps.write.wire_key, [bytes(MIB)])), NoRoom)
    await client.store(caps.write.wire_key, [b"345"])
    assert await client.load(caps.read.wire_key, 0, 5) == b"12345"


@case
async def a_key_grants_one_right(client: DepotClient, _: DepotClient) -> str:
    read, write, manage = keys(await holding(client, b"12345", 10))
    calls = (client.load(write, 0, 5), client.store(read, [b"x"]), client.probe(Key("1#nosuchkey", "1")))
    codes = [(await refused(call)).code for call in calls]
    assert (await client.probe(manage)).size == 5
    return f"refused with {', '.join(map(str, codes))}"


@case
async def write_at_an_offset(client: DepotClient, _: DepotClient) -> None:
    read, write, _manage = keys(await holding(client, b"0123456789", 1000))
    assert await client.write(write, 3, [b"WXYZ"]) == 4
    assert await client.write(write, 100, [b"HOLE"]) == 4
    assert await client.load(read, 0, 104) == b"012WXYZ789" + bytes(90) + b"HOLE"


@case
async def truncate(client: DepotClient, _: DepotClient) -> None:
    read, _write, manage = keys(await holding(client, b"0123456789", 1000))
    await client.truncate(manage, 4)
    now = await client.probe(manage)
    assert (now.size, now.max_size) == (4, 4)
    assert await client.load(read, 0, 4) == b"0123"


@case
async def lease_and_size(client: DepotClient, _: DepotClient) -> None:
    read, _write, manage = keys(await holding(client, b"0123456789", 1000))
    await client.change(manage, duration=5000)
    now = await client.probe(manage)
    assert now.max_size == 1000
    assert now.seconds_left is not None
    assert 4900 < now.seconds_left <= 5000
    await client.change(manage, max_size=2000)
    now = await client.probe(manage)
    assert now.max_size == 2000
    assert now.seconds_left is not None
    assert 4900 < now.seconds_left <= 5000
    await client.change(manage, max_size=2000, duration=100)
    assert await client.load(read, 0, 10) == b"0123456789"


@case
async def lease_too_long(client: DepotClient, _: DepotClient) -> str:
    longest = (await client.status()).max_lease
    assert longest is not None
    manage = (await client.allocate(10, LEASE)).manage.wire_key
    assert isinstance(await refused(client.change(manage, duration=longest + 1000)), LeaseTooLong)
    left = (await client.probe(manage)).seconds_left
    assert left is not None
    return "" if left <= LEASE else f"refused, yet applied: {left:.0f} s"


@case
async def counts_and_removal(client: DepotClient, _: DepotClient) -> str:
    read, _write, manage = keys(await holding(client, b"0123456789"))
    await client.incr(manage)
    assert (await client.probe(manage)).read_count == 2
    await client.decr(manage)
    assert await client.load(read, 0, 1) == b"0"
    await client.decr(manage)
    return f"afterwards {(await refused(client.load(read, 0, 1))).code}, {(await refused(client.probe(manage))).code}"


@case
async def write_count(client: DepotClient, _: DepotClient) -> str:
    _read, write, manage = keys(await client.allocate(100, LEASE))
    await client.incr(manage, CapabilityKind.WRITE)
    counts = [(await client.probe(manage)).write_count]
    for _number in range(counts[0]):
        await client.decr(manage, CapabilityKind.WRITE)
    try:
        await client.store(write, [b"x"])
    except DepotError as error:
        return f"then refuses writes with {error.code}"
    return "never read-only"


@case
async def fifo(client: DepotClient, _: DepotClient) -> None:
    read, write, manage = keys(await client.allocate(10, LEASE, kind=AllocationKind.FIFO))
    assert await client.put(write, b"abcdef") == 6
    assert (await client.probe(manage)).size == 6
    assert await client.take(read, 4) == b"abcd"
    assert await client.put(write, b"ghijklmn") == 8
    assert isinstance(await refused(client.put(write, b"o")), NoRoom)
    assert await client.take(read, 20, wait=1) == b"efghijklmn"
    assert await client.take(read, 1) == b""


@case
async def circular_queue(client: DepotClient, _: DepotClient) -> None:
    read, write, _manage = keys(await client.allocate(10, LEASE, kind=AllocationKind.CIRCULAR_QUEUE))
    await client.put(write, b"0123456789")
    await client.put(write, b"abc")
    assert await client.take(read, 10) == b"3456789abc"
    assert isinstance(await refused(client.put(write, bytes(11))), NoRoom)


@case
async def buffer(client: DepotClient, _: DepotClient) -> None:
    read, write, _manage = keys(await client.allocate(10, LEASE, kind=AllocationKind.BUFFER))
    await client.put(write, b"0123456789")
    await client.put(write, b"abc")
    assert await client.load(read, 0, 3) == b"abc"


@case
async def vectors(client: DepotClient, _: DepotClient) -> None:
    read, write, _manage = keys(await client.allocate(1000, LEASE))
    assert await client.write_vector(write, [(0, 4), (200, 4)], [b"VVVV", b"vvvv"]) == 8
    assert await client.read_vector(read, [(0, 3), (198, 4)]) == b"VVV\0\0vv"


@case
async def digests_on_the_wire(client: DepotClient, _: DepotClient) -> None:
    read, write, _manage = keys(await client.allocate(1000, LEASE))
    for number, kind in enumerate((DigestType.MD5, DigestType.SHA256, DigestType.SHA1, DigestType.SHA512)):
        data = bytes([number]) * 40
        assert await client.store_checked(write, data, Checksum(kind, 16)) == 40
        assert await client.load_checked(read, number * 40, 40, Checksum(kind, 16)) == data


@case
async def digests_on_disk(client: DepotClient, _: DepotClient) -> str:
    checksum = Checksum(DigestType.MD5, 64)
    caps = await client.allocate(1000, LEASE, checksum=checksum)
    await client.store(caps.write.wire_key, [bytes(200)])
    assert await client.validate(caps.manage.wire_key) == 0
    kept, digests = await client.digests(caps.manage.wire_key)
    assert kept == checksum
    return f"{len(digests)} digests"


@case
async def rename(client: DepotClient, _: DepotClient) -> None:
    old = await holding(client, b"12345")
    new = await client.rename(old.manage.wire_key)
    assert await client.load(new.read.wire_key, 0, 5) == b"12345"
    await refused(client.load(old.read.wire_key, 0, 5))


@case
async def split_and_merge(client: DepotClient, _: DepotClient) -> None:
    master = await holding(client, b"12345", 1000)
    child = await client.split(master.manage.wire_key, 400, LEASE)
    assert (await client.probe(master.manage.wire_key)).max_size == 600
    await client.store(child.write.wire_key, [b"child"])
    await client.merge(master.manage.wire_key, child.manage.wire_key)
    assert (await client.probe(master.manage.wire_key)).max_size == 1000
    await refused(client.load(child.read.wire_key, 0, 5))
    assert await client.load(master.read.wire_key, 0, 5) == b"12345"


@case
async def alias(client: DepotClient, _: DepotClient) -> None:
    master = await holding(client, b"0123456789")
    alias = await client.alias(master.manage.wire_key, 2, 5)
    assert await client.load(alias.read.wire_key, 1, 3) == b"345"
    seen = await client.probe_alias(alias.manage.wire_key)
    assert (seen.offset, seen.length) == (2, 5)
    await client.change_alias(alias.manage.wire_key, master.manage.wire_key, 4, 5, 100)
    assert await client.load(alias.read.wire_key, 0, 5) == b"45678"
    await client.revoke_alias(alias.manage.wire_key, master.manage.wire_key)
    await refused(client.load(alias.read.wire_key, 0, 1))
    assert await client.load(master.read.wire_key, 0, 1) == b"0"


@case
async def copy_inside(client: DepotClient, _: DepotClient) -> str:
    return await copied(client, client)


@case
async def copy_to_the_other(client: DepotClient, other: DepotClient) -> str:
    return await copied(client, other)


@case
async def copy_from_the_other(client: DepotClient, other: DepotClient) -> str:
    return await copied(other, client)


async def copied(source: DepotClient, target: DepotClient) -> str:
    data = os.urandom(300_000)
    caps, there = await holding(source, data), await target.allocate(len(data), LEASE)
    assert await source.copy(caps.read.wire_key, there.write, 1000, 200_000) == 200_000
    assert await target.load(there.read.wire_key, 0, 200_000) == data[1000:201_000]
    assert await source.copy(caps.read.wire_key, there.write, 0, 1000) == 1000
    if (await target.probe(there.manage.wire_key)).size < 201_000:
        assert await target.load(there.read.wire_key, 0, 2000) == data[:1000] + data[2000:3000]
        return "A second copy overwrites the first instead of being appended"
    assert await target.load(there.read.wire_key, 0, 201_000) == data[1000:201_000] + data[:1000]
    return ""


@case
async def push_to_the_other(client: DepotClient, other: DepotClient) -> None:
    caps, there = await holding(client, b"0123456789"), await other.allocate(100, LEASE)
    assert await client.push(caps.read.wire_key, there.write, 2, APPEND, 5) == 5
    assert await client.push(caps.read.wire_key, there.write, 0, 1, 2) == 2
    assert await other.load(there.read.wire_key, 0, 5) == b"20156"


@case
async def pull_from_the_other(client: DepotClient, other: DepotClient) -> None:
    source, here = await holding(other, b"0123456789"), await client.allocate(100, LEASE)
    assert await client.pull(here.write.wire_key, source.read, APPEND, 2, 5) == 5
    assert await client.pull(here.write.wire_key, source.read, 1, 0, 2) == 2
    assert await client.load(here.read.wire_key, 0, 5) == b"20156"


def third_party(say: bytes) -> tuple[socket.socket, Callable[[], bytes]]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def talk() -> bytes:
        with listener, listener.accept()[0] as peer:
            peer.settimeout(20)
            peer.sendall(say)
            return b"" if say else peer.makefile("rb").read()

    return listener, talk


@case
async def deliver(client: DepotClient, _: DepotClient) -> None:
    caps = await holding(client, b"0123456789")
    listener, talk = third_party(b"")
    heard: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_a_thread, talk, heard)
        call = partial(client.deliver, caps.read.wire_key, "127.0.0.1", listener.getsockname()[1], 1, 5)
        assert await unless_refused(call, listener) == 5
    assert heard == [b"12345"]


@case
async def remote_store(client: DepotClient, _: DepotClient) -> None:
    caps = await client.allocate(100, LEASE)
    listener, talk = third_party(b"0123456789")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_a_thread, talk, [])
        call = partial(client.remote_store, caps.write.wire_key, "127.0.0.1", listener.getsockname()[1], 10)
        assert await unless_refused(call, listener) == 10
    assert await client.load(caps.read.wire_key, 0, 10) == b"0123456789"


async def in_a_thread(talk: Callable[[], bytes], heard: list[bytes]) -> None:
    heard.append(await trio.to_thread.run_sync(talk))


async def unless_refused(call: Callable[[], Awaitable[int]], listener: socket.socket) -> int:
    """The thread that waits for the depot is let go when the depot will not come."""
    try:
        return await call()
    except IbpfsError:
        with socket.create_connection(listener.getsockname()):
            raise


@case
async def resources_and_version(client: DepotClient, _: DepotClient) -> str:
    rids = await client.resources()
    assert rids
    return f"{len(await client.version_text())} lines"


@case
async def fifty_at_once(client: DepotClient, _: DepotClient) -> None:
    async def one(number: int) -> None:
        caps = await holding(client, b"%1000d" % number)
        assert await client.load(caps.read.wire_key, 0, 1000) == b"%1000d" % number
        await client.decr(caps.manage.wire_key)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)


@case
async def fifty_appends_at_once(client: DepotClient, _: DepotClient) -> str:
    read, write, manage = keys(await client.allocate(MIB, LEASE))
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(client.store, write, [b"%10d" % number])
    size = (await client.probe(manage)).size
    numbers = sorted(map(int, (await client.load(read, 0, size)).decode().split()))
    return "" if numbers == list(range(50)) else f"But {50 - len(numbers)} of 50 overwrite each other"


async def run(case: Case, first: Address, second: Address) -> tuple[bool, str]:
    try:
        with trio.fail_after(60):
            async with DepotClient(first) as client, DepotClient(second) as other:
                await client.status()  # learns which version it speaks
                await other.status()
                return True, f"yes. {await case(client, other) or ''}".rstrip(". ")
    except NotOffered as error:
        return True, f"no ({error.code})"
    except BaseException as error:  # a nursery may have wrapped it
        inner = error
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if isinstance(inner, NotOffered):
            return True, f"no ({inner.code})"
        line = ""
        trace = inner.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == __file__:
                line = f", line {trace.tb_lineno}"
            trace = trace.tb_next
        return False, f"FAILED: {type(inner).__name__}: {inner}{line}"


async def main(first: str, second: str | None = None) -> int:
    failed = 0
    only = os.environ.get("ONLY", "")
    for case in CASES:
        if only and only != case.__name__:
            continue
        good, text = await run(case, Address.parse(first), Address.parse(second or first))
        failed += not good
        print(f"| {case.__name__.replace('_', ' ')} | {text} |", flush=True)
    print(f"{len(CASES) - failed} as they should be, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(trio.run(main, *sys.argv[1:]))
