"""Large pieces by the client that a mount uses, one after another over one connection: plain, and through TLS."""

import secrets
import time
from collections.abc import Iterator

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs_tools.benchmarks.depot_operations import MIB, Place, Result

STORE, LOAD, THROUGH_TLS = "store 4 MiB, a mount's client", "load 4 MiB, a mount's client", " through TLS"
_LENGTH = 4 * MIB
_SECONDS = 3600


def run(place: Place, count: int) -> Iterator[Result]:
    for secure, suffix in ((False, ""), (True, THROUGH_TLS)):
        store, load = trio.run(_store_and_load, Address(*place, secure=secure), count)
        yield STORE + suffix, store, "MB/s"
        yield LOAD + suffix, load, "MB/s"


async def _store_and_load(address: Address, count: int) -> tuple[float, float]:
    data = secrets.token_bytes(_LENGTH)
    async with DepotClient(address) as client:
        keys = await client.allocate(count * _LENGTH, _SECONDS)
        began = time.perf_counter()
        for _ in range(count):
            await client.store(keys.write.wire_key, [data])
        stored = time.perf_counter()
        for at in range(count):
            await client.load(keys.read.wire_key, at * _LENGTH, _LENGTH)
        loaded = time.perf_counter()
        await client.decr(keys.manage.wire_key)
    return count * _LENGTH / 1e6 / (stored - began), count * _LENGTH / 1e6 / (loaded - stored)
