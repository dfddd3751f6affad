"""What a long STORE takes of the disk before it has ended, and gives back when it is abandoned."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server.allocation import HEADER_BYTES, PERMANENT
from ibpfs.depot.server.landing import Landing
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.syncing import SyncThreads, Unsynced
from ibpfs.depot.wire.protocol import Reliability

MIB = 1 << 20


class Bench:
    """A store with one empty allocation of 16 MiB."""

    def __init__(self, directory: Path) -> None:
        self.unsynced = Unsynced()
        rules = LeaseRules(None, permanent=True)
        self.store = AllocationStore(directory, rules=rules, grace=100.0, clock=lambda: 1.7e9, capacity=None)
        keys = self.store.allocate(16 * MIB, PERMANENT, Reliability.STABLE, self.unsynced, counted=False)
        self.target = self.store.target(CapabilityKind.WRITE, keys.write)
        (self.file,) = [path for path in (directory / "allocations").rglob("*") if path.is_file()]

    def land(self, length: int) -> Landing:
        return Landing(self.store, self.target, [(self.target.allocation.size, length)], appends=True)

    @property
    def taken(self) -> int:
        return self.file.stat().st_blocks * 512


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "store")
    yield bench
    bench.unsynced.close()


def test_a_long_store_has_blocks_before_its_bytes_come(bench: Bench) -> None:
    """Asked of the file system that the tests run on, whichever it is: what lays none out fails here."""
    landing = bench.land(10 * MIB)
    landing.write(memoryview(b"first"))
    assert bench.file.stat().st_size == HEADER_BYTES + 5
    assert 4 * MIB <= bench.taken < 5 * MIB
    for _ in range(5):
        landing.write(memoryview(bytes(MIB)))
    assert 7 * MIB <= bench.taken < 8 * MIB
    landing.abandon()
    assert bench.taken <= 2 * HEADER_BYTES


async def test_what_has_landed_is_no_longer_than_it_should_be(bench: Bench) -> None:
    landing = bench.land(5 * MIB)
    landing.write(memoryview(b"x" * 5 * MIB))
    with SyncThreads() as syncs:
        await landing.commit(bench.unsynced, syncs)
    assert bench.file.stat().st_size == HEADER_BYTES + 5 * MIB
    assert bench.taken <= HEADER_BYTES + 6 * MIB
    assert bench.file.read_bytes()[HEADER_BYTES:] == b"x" * 5 * MIB


def test_a_short_one_takes_what_it_brings(bench: Bench) -> None:
    landing = bench.land(5000)
    landing.write(memoryview(b"first"))
    os.fsync(landing.fd)
    assert bench.taken <= 4 * HEADER_BYTES
    landing.abandon()
