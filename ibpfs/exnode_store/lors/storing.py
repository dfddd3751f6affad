"""Putting bytes into new allocations: a depot for each piece, and the upload of a file."""

import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability, CapabilitySet
from ibpfs.depot.later import Buffer
from ibpfs.depot.wire import DepotError, DepotUnreachable, Reliability
from ibpfs.errors import DataError, IbpfsError, NoSpace, UsageError
from ibpfs.exnode_store.documents.conditioning import (
    CHECKSUM_BLOCK,
    add_checksums,
    checksum_function,
    checksum_length,
)
from ibpfs.exnode_store.documents.exnode import ExNode, Mapping, Metadata
from ibpfs.exnode_store.documents.lifetimes import MICRO
from ibpfs.exnode_store.lors.fetching import PIECE
from ibpfs.exnode_store.lors.plans import Range, fragments
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel, with_grace

DAY: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Wishes:
    """How bytes are to be kept. `block`: file bytes per allocation; `lease` in seconds; `streams` at a time."""

    copies: int = 1
    block: int = 4 * 1024 * 1024
    lease: int = DAY
    reliability: Reliability = Reliability.STABLE
    checksum: bool = False
    streams: int = 8


@dataclass(frozen=True, slots=True)
class Allocated:
    address: Address
    capabilities: CapabilitySet
    start: int
    end: int


class Placer:
    """Finds a depot for every piece; gives everything back when the run fails."""

    def __init__(self, depots: Depots, addresses: Sequence[Address], wishes: Wishes) -> None:
        if not addresses:
            raise UsageError("no depot is given; name some with --depot or --depots-file")
        self._depots = depots
        self._addresses = list(addresses)
        self._wishes = wishes
        self._made: list[Capability] = []
        self._troubles: dict[Address, IbpfsError] = {}  # by place, the latest last

    async def put(
        self, turn: int, length: int, taken: set[Address], fill: Callable[[CapabilitySet], Awaitable[None]]
    ) -> Allocated:
        """Allocate `length` bytes on the next depot that is not `taken` and lets `fill` store them."""
        while True:
            address = self._next(turn, taken)
            if address is None:
                raise self._why_none(length, taken)
            taken.add(address.place)
            try:
                return await self._put_on(address, length, fill)
            except (DepotError, DepotUnreachable) as error:
                self._depots.note(address, error)
                self._troubles.pop(address.place, None)
                self._troubles[address.place] = error
            except IbpfsError:
                taken.discard(address.place)
                raise

    def _next(self, turn: int, taken: set[Address]) -> Address | None:
        shift = turn % len(self._addresses)
        turned = self._addresses[shift:] + self._addresses[:shift]
        free = [address for address in turned if address.place not in taken]
        return min(free, key=lambda address: self._depots.rank(address)[0], default=None)

    def _why_none(self, length: int, taken: set[Address]) -> IbpfsError:
        for place, trouble in reversed(self._troubles.items()):
            if place in taken:
                if isinstance(trouble, DepotError):
                    return NoSpace(f"no other depot that is given takes {length} bytes; {place}: {trouble}")
                return trouble
        return NoSpace("every depot that is given has these bytes already; name others")

    async def _put_on(
        self, address: Address, length: int, fill: Callable[[CapabilitySet], Awaitable[None]]
    ) -> Allocated:
        now = int(time.time())
        made, lease = await with_grace(self._allocate(address, length))
        try:
            await fill(made)
        except IbpfsError:
            self._made.remove(made.manage)
            await self._depots.release([made.manage])
            raise
        return Allocated(address, made, now * MICRO, (now + lease) * MICRO)

    async def _allocate(self, address: Address, length: int) -> tuple[CapabilitySet, int]:
        made, lease = await self._depots.allocate(address, length, self._wishes.lease, self._wishes.reliability)
        self._made.append(made.manage)
        return made, lease

    async def give_back(self) -> None:
        await self._depots.release(self._made)


async def append(depots: Depots, write: Capability, parts: Sequence[Buffer]) -> None:
    length = sum(map(len, parts))
    taken = await depots.of(write).store(write.wire_key, parts)
    if taken != length:
        raise DepotUnreachable(f"{Address.of(write)}: took {taken} of {length} bytes")


def described(mapping: Mapping, made: Allocated) -> Mapping:
    caps = made.capabilities
    return replace(
        mapping,
        read=caps.read,
        write=caps.write,
        manage=caps.manage,
        start=made.start,
        end=made.end,
        location=str(made.address) if made.address.path is None else "",
    )


# --- upload


async def upload(
    path: Path,
    depots: Depots,
    addresses: Sequence[Address],
    wishes: Wishes,
    advance: Advance,
    ranges: Sequence[Range] | None = None,
) -> ExNode:
    """Return the exNode of a file that is now on depots, each copy of a fragment on another one; `ranges`: only these.

    Says what the last depot said when none takes a fragment; then everything is given back.
    """
    if wishes.copies > len(addresses) > 0:
        raise UsageError(f"{wishes.copies} copies need {wishes.copies} depots; {len(addresses)} are given")
    placer = Placer(depots, addresses, wishes)
    with path.open("rb") as file:
        try:
            return await _Upload(path, file.fileno(), depots, placer, wishes, advance, ranges).run()
        except BaseException:
            await placer.give_back()
            raise


class _Upload:
    def __init__(
        self, path: Path, descriptor: int, depots: Depots, placer: Placer, wishes: Wishes, advance: Advance,
        ranges: Sequence[Range] | None,
    ) -> None:  # fmt: skip
        self._path, self._descriptor = path, descriptor
        self._depots, self._placer, self._wishes = depots, placer, wishes
        self._before = os.fstat(descriptor)
        whole = [(0, self._before.st_size)]
        self._fragments = [
            (start + begin, start + end)
            for start, stop in (whole if ranges is None else ranges)
            for begin, end in fragments(stop - start, wishes.block)
        ]
        self._taken: list[set[Address]] = [set() for _ in self._fragments]
        self._counter = Counter(sum(stop - start for start, stop in self._fragments) * wishes.copies, advance)
        self._found: dict[tuple[int, int], Mapping] = {}

    async def run(self) -> ExNode:
        jobs = [(number, copy) for number in range(len(self._fragments)) for copy in range(self._wishes.copies)]
        await in_parallel(jobs, self._store, self._wishes.streams)
        after = os.fstat(self._descriptor)
        if (after.st_size, after.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise DataError(f"{self._path}: was changed while it was uploaded")
        return ExNode(
            name=self._path.name,
            size=self._before.st_size,
            created=int(time.time()) * MICRO,
            modified=int(self._before.st_mtime) * MICRO,
            mappings=tuple(self._found[job] for job in jobs),
            metadata=(Metadata("duration", "double", float(self._wishes.lease)),),
            fields={"id": str(uuid.uuid4())},
        )

    async def _store(self, job: tuple[int, int]) -> None:
        number, copy = job
        start, stop = self._fragments[number]
        checksum = self._wishes.checksum
        length = checksum_length(stop - start) if checksum else stop - start

        async def fill(made: CapabilitySet) -> None:
            for at in range(start, stop, PIECE):
                data = await self._read(at, min(at + PIECE, stop))
                await append(self._depots, made.write, add_checksums(data) if checksum else [data])

        made = await self._placer.put(number + copy, length, self._taken[number], fill)
        mapping = Mapping(start, stop - start, alloc_length=length)
        if checksum:
            mapping = replace(mapping, function=checksum_function(), clear_block=CHECKSUM_BLOCK)
        self._found[job] = described(mapping, made)
        self._counter.add(stop - start)

    async def _read(self, start: int, stop: int) -> bytes:
        data = await trio.to_thread.run_sync(os.pread, self._descriptor, stop - start, start)
        while data and len(data) < stop - start:
            more = await trio.to_thread.run_sync(
                os.pread, self._descriptor, stop - start - len(data), start + len(data)
            )
            if not more:
                break
            data += more
        if len(data) < stop - start:
            raise DataError(f"{self._path}: became shorter while it was uploaded")
        return data
