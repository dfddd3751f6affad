"""Sealed segments and a source of them with faults, for the tests of what reads through the clean cache."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ibpfs.cache.clean import BLOCK, CleanCache
from ibpfs.errors import DataError
from ibpfs.exnode_store.keys import VolumeKeys, make_keys
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.sealing import AES_256_GCM, PLAIN_XXH3, SliceForm, seal

ORIGIN = b"volume-for-tests"


@dataclass(frozen=True)
class Served:
    data: bytes
    replica: int
    label: str

    @property
    def givers(self) -> tuple[int]:
        return (self.replica,)


@dataclass
class FakeFiles:
    """Segments that can be read past their depot, as replica 1 has them, once they were `offered` and opened; not
    blocks that are `absent` from the kernel's memory."""

    source: "FakeSource"
    offered: set[int] = field(default_factory=set)
    opened: set[int] = field(default_factory=set)
    absent: set[int] = field(default_factory=set)

    async def open(self, segment: int) -> bool:
        await trio.lowlevel.checkpoint()
        is_new = segment in self.offered - self.opened
        self.opened |= {segment} & self.offered
        return is_new

    def read_now(self, segment: int, start: int, stop: int) -> Served | None:
        touched = set(range(start // BLOCK, (stop - 1) // BLOCK + 1))
        if segment not in self.opened or touched & self.absent:
            return None
        return Served(self.source.bytes_of(1, segment, start, stop), 1, "the own depot")

    def has(self, segment: int, start: int, stop: int) -> bool:
        """By the first and the last byte, as the real ones."""
        return segment in self.opened and not {start // BLOCK, (stop - 1) // BLOCK} & self.absent

    def forget(self, segment: int) -> None:
        self.opened.discard(segment)

    def close_unused(self) -> None:
        pass

    def close(self) -> None:
        self.opened.clear()


@dataclass
class FakeSource:
    """Segments with two replicas each, 1 and 2. It keeps the contract in test_blocks.py; faults are set by tests."""

    segments: dict[int, bytearray] = field(default_factory=dict)
    damage: dict[int, set[tuple[int, int]]] = field(default_factory=dict)  # replica -> (segment, flipped byte)
    dead: set[int] = field(default_factory=set)
    short: set[int] = field(default_factory=set)
    loads: list[tuple[int, int, int]] = field(default_factory=list)
    reports: list[tuple[int, str]] = field(default_factory=list)
    far: bool = False
    depots: dict[int, frozenset[int]] = field(default_factory=dict)  # segment -> who holds it, if not 1 and 2
    longest: int = 1 << 40  # what is longer never comes
    gate: trio.Event | None = None
    busy: int = 0
    peak: int = 0

    def __post_init__(self) -> None:
        self.own_files = FakeFiles(self)

    async def load(self, segment: int, start: int, stop: int, *, avoid: frozenset[int] = frozenset()) -> Served:
        self.loads.append((segment, start, stop))
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            if stop - start > self.longest:
                await trio.sleep_forever()
            elif self.gate is None:
                await trio.lowlevel.checkpoint()
            else:
                await self.gate.wait()
        finally:
            self.busy -= 1
        suspect = {replica for replica, _ in self.reports}
        for replica in sorted({1, 2} - avoid - self.dead, key=lambda one: (one in suspect, one)):
            if stop <= len(self.segments.get(segment, b"")):
                self.own_files.absent -= set(range(start // BLOCK, (stop - 1) // BLOCK + 1))
                data = self.bytes_of(replica, segment, start, stop)
                return Served(data, replica, f"depot ibp://d{replica} allocation")
        raise DataError(f"segment {segment}: no replica answers")

    def bytes_of(self, replica: int, segment: int, start: int, stop: int) -> bytes:
        data = bytearray(self.segments[segment][start:stop])
        for where, at in self.damage.get(replica, ()):
            if where == segment and start <= at < stop:
                data[at - start] ^= 1
        return bytes(data[:-1] if replica in self.short else data)

    def report(self, replica: int, reason: str) -> None:
        self.reports.append((replica, reason))

    async def blame(self, givers: Sequence[int], reason: str) -> frozenset[int]:
        for replica in givers:
            self.report(replica, reason)
        return frozenset(givers)

    def is_far(self, segment: int) -> bool:
        return self.far

    def holders(self, segment: int) -> frozenset[int]:
        return self.depots.get(segment, frozenset({1, 2}))


class Library:
    """Writes slices into the source's segments."""

    def __init__(self) -> None:
        self.keys: VolumeKeys = make_keys()
        self.source = FakeSource()
        self._rows = 0

    def length(self, segment: int) -> int:
        return len(self.source.segments.get(segment, b""))

    def write(
        self, data: bytes, *, segment: int = 1, function: int = AES_256_GCM, frame_size: int = 64 * 1024
    ) -> SliceRef:
        form = SliceForm(os.urandom(16), ORIGIN, 1, function, frame_size, len(data))
        self._rows += 1
        stored = self.source.segments.setdefault(segment, bytearray())
        ref = SliceRef(self._rows, form, segment, len(stored))
        key = b"" if function == PLAIN_XXH3 else self.keys.slice_key(1, form.slice_id)
        stored += b"".join(seal(form, key, data))
        return ref


async def until_cached(cache: CleanCache, segment: int, start: int, stop: int) -> None:
    """Return when the bytes are in the cache; its disk is written by threads, which cannot be waited for."""
    with trio.fail_after(10):
        while not cache.covers(segment, start, stop):
            await trio.sleep(0.001)
