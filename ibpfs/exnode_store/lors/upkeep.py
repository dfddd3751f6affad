"""Looking after what an exNode names: asking depots (ls), renewing leases (refresh), taking replicas away (trim)."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability
from ibpfs.depot.client import AllocationStatus
from ibpfs.depot.wire import DepotError, DepotUnreachable, LeaseTooLong
from ibpfs.errors import IbpfsError, UsageError
from ibpfs.exnode_store.documents.exnode import ExNode, Mapping
from ibpfs.exnode_store.documents.lifetimes import MICRO
from ibpfs.exnode_store.lors.plans import holes
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel

#: Seconds in which a renewed lease may fall short of what was asked for, by the way and by rounding.
_SLACK = 2.0


@dataclass(frozen=True, slots=True)
class Health:
    """What a depot said of a mapping. `alive` None: nobody answered. `seconds_left` None: permanent, or not known."""

    alive: bool | None
    seconds_left: float | None = None
    permanent: bool = False
    trouble: str = ""


async def examine(exnode: ExNode, depots: Depots, advance: Advance, streams: int = 8) -> list[Health]:
    """Ask for every mapping, in their order."""
    found: dict[int, Health] = {}
    counter = Counter(len(exnode.mappings), advance)

    async def one(number: int) -> None:
        found[number] = await _examine_one(exnode.mappings[number], depots)
        counter.add(1)

    await in_parallel(range(len(exnode.mappings)), one, streams)
    return [found[number] for number in range(len(exnode.mappings))]


async def _examine_one(mapping: Mapping, depots: Depots) -> Health:
    try:
        if mapping.manage is not None:
            return _judge(mapping, await depots.of(mapping.manage).probe(mapping.manage.wire_key))
        if mapping.read is not None:
            await depots.of(mapping.read).load(mapping.read.wire_key, 0, min(1, mapping.alloc_length))
            return Health(True)
    except DepotError as error:
        return Health(False, trouble=str(error))
    except DepotUnreachable as error:
        return Health(None, trouble=str(error))
    return Health(None, trouble="the document has neither read nor manage capability")


def _judge(mapping: Mapping, status: AllocationStatus) -> Health:
    left = status.seconds_left
    needed = mapping.alloc_length if mapping.conditioned else mapping.length
    if not mapping.doubtful and status.size < mapping.alloc_offset + needed:
        return Health(False, left, left is None, f"holds only {status.size} bytes")
    return Health(True, left, left is None)


# --- refresh


@dataclass(frozen=True, slots=True)
class Renewal:
    """`failed`: by mapping number, what was wrong. `shorter`: depots that lease for less than asked, and how long."""

    exnode: ExNode
    renewed: int
    failed: dict[int, str]
    shorter: dict[Address, int]


async def refresh(exnode: ExNode, depots: Depots, lease: int, advance: Advance, streams: int = 8) -> Renewal:
    """Lease every allocation for `lease` seconds from now; none is shortened. What cannot be renewed is told."""
    if not any(mapping.manage for mapping in exnode.mappings) and exnode.mappings:
        raise UsageError("this exNode has no manage capabilities: who made it can refresh it")
    return await _Refresh(exnode, depots, lease, advance).run(streams)


class _Refresh:
    def __init__(self, exnode: ExNode, depots: Depots, lease: int, advance: Advance) -> None:
        self._exnode, self._depots, self._lease = exnode, depots, lease
        self._users: dict[Capability | None, list[int]] = {}
        for number, mapping in enumerate(exnode.mappings):
            self._users.setdefault(mapping.manage, []).append(number)
        self._counter = Counter(len(exnode.mappings), advance)
        self._ends: dict[int, int | None] = {}
        self._failed: dict[int, str] = {}
        self._shorter: dict[Address, int] = {}

    async def run(self, streams: int) -> Renewal:
        await in_parallel(list(self._users), self._renew, streams)
        mappings = [
            replace(mapping, end=self._ends[number]) if number in self._ends else mapping
            for number, mapping in enumerate(self._exnode.mappings)
        ]
        exnode = replace(self._exnode, mappings=tuple(mappings))
        return Renewal(exnode, len(self._ends), dict(sorted(self._failed.items())), self._shorter)

    async def _renew(self, manage: Capability | None) -> None:
        numbers = self._users[manage]
        try:
            end = await self._extend(manage)
        except (DepotError, DepotUnreachable, UsageError) as error:
            self._failed.update({number: _named(manage, error) for number in numbers})
        else:
            self._ends.update(dict.fromkeys(numbers, end))
        self._counter.add(len(numbers))

    async def _extend(self, manage: Capability | None) -> int | None:
        """Return the lease's end, None = permanent."""
        if manage is None:
            raise UsageError("the document has no manage capability")
        client = self._depots.of(manage)
        now = await client.probe(manage.wire_key)
        if now.seconds_left is None:
            return None
        if now.seconds_left + _SLACK >= self._lease:
            return int(time.time() + now.seconds_left) * MICRO
        lease = self._lease
        try:
            await client.change(manage.wire_key, max_size=now.max_size, duration=lease)
        except LeaseTooLong:
            longest = await self._depots.longest_lease(Address.of(manage))
            if not longest or longest >= lease:
                raise
            lease = self._shorter[Address.of(manage)] = longest
            await client.change(manage.wire_key, max_size=now.max_size, duration=lease)
        return int(time.time() + lease) * MICRO


def _named(manage: Capability | None, error: IbpfsError) -> str:
    return str(error) if manage is None else f"{Address.of(manage)} allocation {manage.label}: {error}"


# --- trim


def without(exnode: ExNode, gone: Collection[int], *, force: bool = False) -> ExNode:
    """Return the exNode without some mappings; UsageError when bytes would be lost that it has, unless `force`."""
    unknown = [number for number in gone if not 0 <= number < len(exnode.mappings)]
    if unknown:
        raise UsageError(f"there is no mapping {unknown[0]}; the last one is {len(exnode.mappings) - 1}")
    lost = holes(exnode.mappings, exnode.size, without=gone)
    if not force and lost != holes(exnode.mappings, exnode.size):
        raise UsageError(f"bytes {lost[0][0]} to {lost[0][1]} would be lost; --force does it all the same")
    kept = tuple(mapping for number, mapping in enumerate(exnode.mappings) if number not in gone)
    return replace(exnode, mappings=kept)


def releasable(exnode: ExNode, gone: Collection[int], kept: ExNode) -> list[Capability]:
    """Return the manage capabilities of mappings that go, of allocations that no other mapping uses."""
    used = {mapping.manage for mapping in kept.mappings}
    manages: Sequence[Capability | None] = [exnode.mappings[number].manage for number in sorted(gone)]
    return [manage for manage in dict.fromkeys(manages) if manage is not None and manage not in used]
