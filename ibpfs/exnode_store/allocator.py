"""Getting room for segments: allocations on as many depots as a policy asks copies for, leased for long (I4)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ibpfs.depot.capability import CapabilitySet, Key
from ibpfs.depot.client import PERMANENT
from ibpfs.depot.wire import DepotError, DepotUnreachable, LeaseTooLong
from ibpfs.errors import IbpfsError, NoSpace
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica
from ibpfs.exnode_store.placement import FAILED, choose_depots

#: Four of the longest slices fit, with their tags.
SEGMENT_SIZE = 16 * 1024 * 1024 + 8 * 1024
#: Seconds an open segment takes appends.
SEGMENT_AGE = 60.0
#: An allocation's first lease; extended once it stands in the ledger as pending (I4).
SHORT_LEASE = 600
#: What a policy asks for where a depot does not lease permanently: the depot's longest, but no more than this.
LONG_LEASE = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Policy:
    """A row of table policies."""

    id: int
    copies: int
    min_copies: int


@dataclass(eq=False)
class OpenSegment:
    """A segment that takes appends. `row` is None until its first commit."""

    policy: int
    size: int
    replicas: list[tuple[Depot, NewReplica]]
    opened_at: float
    length: int = 0
    row: int | None = None
    sound: bool = True  # False: some append was not acknowledged everywhere
    lost: list[int] = field(default_factory=list)  # depots whose replica missed an append

    def fits(self, length: int) -> bool:
        young = trio.current_time() - self.opened_at < SEGMENT_AGE
        return self.sound and young and self.length + length <= self.size


class Allocator:
    """Allocates and leases; the ledger knows of every allocation before its lease is long."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots

    async def open(self, policy: Policy, length: int) -> OpenSegment:
        """Allocate on as many depots as the policy asks copies for, at least min_copies; lease them for long."""
        size = SEGMENT_SIZE
        got: list[tuple[Depot, CapabilitySet]] = []
        tried: set[int] = set()
        trouble: IbpfsError | None = None
        while len(got) < policy.copies:
            candidates = [depot.candidate() for depot in self._depots if depot.id not in tried]
            room = [one for one in candidates if one.state != FAILED and one.free_bytes < size]
            if not any(one.free_bytes >= size for one in candidates if one.state != FAILED) and room:
                size = max(length, min(size, max(one.free_bytes for one in room)))
            chosen = choose_depots(candidates, policy.copies - len(got), size)
            if not chosen:
                break
            for number in chosen:
                tried.add(number)
                depot = self._depots.get(number)
                try:
                    got.append((depot, await self._allocate(depot, size)))
                except (DepotError, DepotUnreachable) as error:
                    trouble = error
        if len(got) < policy.min_copies:
            self._orphan(got)
            raise self._why_not(length, trouble)
        return await self._lease(policy, size, got)

    async def _allocate(self, depot: Depot, size: int) -> CapabilitySet:
        caps = await depot.call(lambda: depot.client.allocate(size, self._first_lease(depot)))
        depot.free_bytes -= size
        return caps

    def _first_lease(self, depot: Depot) -> int:
        longest = depot.status.max_lease if depot.status else None
        return SHORT_LEASE if longest is None else min(SHORT_LEASE, longest)

    def _why_not(self, length: int, trouble: IbpfsError | None) -> IbpfsError:
        answering = [depot for depot in self._depots if depot.candidate().state != FAILED and depot.status]
        if answering and all(depot.free_bytes < length for depot in answering):
            return NoSpace("the depots have no room")
        if trouble is not None:
            return trouble
        refusal = next((depot.refusal for depot in self._depots if depot.refusal), "")
        return DepotUnreachable(refusal or "not enough depots answer")

    def _orphan(self, got: Sequence[tuple[Depot, CapabilitySet]]) -> None:
        rows = self._ledger.add_pending([(d.id, c.read.wire_key, c.write.wire_key, c.manage.wire_key) for d, c in got])
        self._ledger.abandon_pending(rows)

    async def _lease(self, policy: Policy, size: int, got: Sequence[tuple[Depot, CapabilitySet]]) -> OpenSegment:
        keys = [(d.id, c.read.wire_key, c.write.wire_key, c.manage.wire_key) for d, c in got]
        rows = self._ledger.add_pending(keys)
        await self._db.sync()  # I4: what is leased for long must be known after a power cut
        replicas: list[tuple[Depot, NewReplica]] = []
        try:
            for row, (depot, caps) in zip(rows, got, strict=True):
                end = await self.extend(depot, caps.manage.wire_key, size)
                wire = caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key
                replicas.append((depot, NewReplica(row, depot.id, *wire, end, time.time())))
        except (DepotError, DepotUnreachable):
            self._ledger.abandon_pending(rows)
            raise
        for depot, _ in replicas:
            depot.busy += 1
        return OpenSegment(policy.id, size, replicas, trio.current_time())

    async def extend(self, depot: Depot, manage: Key, size: int) -> float | None:
        """Lease an allocation for the policy's time; return the lease's end, None when permanent."""
        longest = depot.status.max_lease if depot.status else None
        if longest is None and depot.embedded:
            try:
                await depot.call(lambda: depot.client.change(manage, max_size=size, duration=PERMANENT))
            except LeaseTooLong:
                pass
            else:
                return None
        duration = LONG_LEASE if longest is None else min(LONG_LEASE, longest)
        await depot.call(lambda: depot.client.change(manage, max_size=size, duration=duration))
        return time.time() + duration
