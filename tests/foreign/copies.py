"""Copies between depots of different make: every depot of the list to every other, as a table.

    python tests/foreign/copies.py ibp://HOST:PORT ibp://HOST:PORT ...

Depots of the University of Tennessee remember an address by the host's name alone: on one machine, give each depot
an address of its own (127.0.0.1, 127.0.0.2, ...).
"""

import os
import sys
from collections.abc import Awaitable, Callable

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilitySet
from ibpfs.depot.client import APPEND, DepotClient
from ibpfs.depot.wire import DepotError
from ibpfs.errors import IbpfsError

LEASE, SIZE = 600, 300_000


async def holding(client: DepotClient, data: bytes) -> CapabilitySet:
    caps = await client.allocate(SIZE, LEASE)
    if data:
        await client.store(caps.write.wire_key, [data])
    return caps


async def copy(source: DepotClient, target: DepotClient) -> None:
    data = os.urandom(SIZE)
    here, there = await holding(source, data), await holding(target, b"")
    assert await source.copy(here.read.wire_key, there.write, 1000, 200_000) == 200_000
    assert await source.copy(here.read.wire_key, there.write, 0, 1000) == 1000
    assert await target.load(there.read.wire_key, 0, 201_000) == data[1000:201_000] + data[:1000]


async def push(source: DepotClient, target: DepotClient) -> None:
    here, there = await holding(source, b"0123456789"), await holding(target, b"")
    assert await source.push(here.read.wire_key, there.write, 2, APPEND, 5) == 5
    assert await source.push(here.read.wire_key, there.write, 0, 1, 2) == 2
    assert await target.load(there.read.wire_key, 0, 5) == b"20156"


async def pull(source: DepotClient, target: DepotClient) -> None:
    there, here = await holding(source, b"0123456789"), await holding(target, b"")
    assert await target.pull(here.write.wire_key, there.read, APPEND, 2, 5) == 5
    assert await target.pull(here.write.wire_key, there.read, 1, 0, 2) == 2
    assert await target.load(here.read.wire_key, 0, 5) == b"20156"


async def outcome(way: Callable[[DepotClient, DepotClient], Awaitable[None]], source: Address, target: Address) -> str:
    try:
        with trio.fail_after(60):
            async with DepotClient(source) as first, DepotClient(target) as second:
                await way(first, second)
                return "yes"
    except DepotError as error:
        return f"no ({error.code})"
    except (IbpfsError, AssertionError, trio.TooSlowError) as error:
        return f"FAILED: {type(error).__name__} {error}"


async def main(*places: str) -> None:
    addresses = [Address.parse(place) for place in places]
    print("| from | to | copy | push | pull |\n| --- | --- | --- | --- | --- |")
    for source in addresses:
        for target in addresses:
            if source != target:
                told = [await outcome(way, source, target) for way in (copy, push, pull)]
                print(f"| {source} | {target} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
