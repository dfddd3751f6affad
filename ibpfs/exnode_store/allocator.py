"""Getting room for segments: allocations on as many depots as a policy asks copies for, leased for long (I4)."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from ibpfs.depot.capability import CapabilitySet, Key
from ibpfs.depot.client import PERMANENT
from ibpfs.depot.wire import DepotError, DepotUnreachable, LeaseTooLong
from ibpfs.errors import IbpfsError, NoSpace
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica
from ibpfs.exnode_store.placement import FAILED, OK, choose_depots
from ibpfs.exnode_store.policies import Policy

T = TypeVar("T")

#: Four of the longest slices fit, with their tags.
SEGMENT_SIZE = 16 * 1024 * 1024 + 8 * 1024
#: Seconds an open segment takes appends.
SEGMENT_AGE = 60.0
#: Seconds that one which nobody has used yet is kept for whoever comes.
SPARE_AGE = 600.0
#: An allocation's first lease; extended once it stands in the ledger as pending (I4).
SHORT_LEASE = 600
#: Seconds that the others are waited for when as many depots have answered as have to.
STRAGGLER_LIMIT = 2.0
#: Depots tell whole seconds, and some pass on the way.
_ROUNDING = 2
#: What a policy asks for where a depot does not lease permanently: the depot's longest, but no more than this.
LONG_LEASE = 30 * 24 * 3600


@dataclass(eq=False)
class OpenSegment:
    """A segment that takes appends. `row` is None until its first commit; `opened_at`: when the first append came."""

    policy: int
    size: int
    replicas: list[tuple[Depot, NewReplica]]
    opened_at: float
    length: int = 0
    row: int | None = None
    sound: bool = True  # False: some append was not acknowledged everywhere
    lost: list[int] = field(default_factory=list)  # depots whose replica missed an append
    uncommitted: int = 0  # appends whose commit waits for others

    @property
    def is_spare(self) -> bool:
        """Made beforehand, and not used yet."""
        return not self.length

    @property
    def slow_depots(self) -> int:
        return sum(depot.is_slow for depot, _ in self.replicas)

    @property
    def appends(self) -> int:
        """How many go to one of its depots now, to other segments too."""
        return max((depot.records.stores.flying for depot, _ in self.replicas), default=0)

    def fits(self, length: int) -> bool:
        young = trio.current_time() - self.opened_at < (SPARE_AGE if self.is_spare else SEGMENT_AGE)
        return self.sound and young and self.length + length <= self.size

    def is_at_hand(self, policy: Policy, length: int) -> bool:
        """Whether it would take an append of `policy` as soon as the one before ends, which will be soon."""
        is_near = not any(depot.is_far or depot.is_slow for depot, _ in self.replicas)
        return self.policy == policy.id and self.fits(length) and is_near


def pick(
    idle: Sequence[OpenSegment], policy: Policy, length: int, slow_depots: Callable[[Policy], int]
) -> OpenSegment | None:
    """The segment to append to, which is taken into use by that.

    One on depots that are not slow, one that is used already, one whose depots are least in use, the latest; none when
    a new one would be on fewer slow depots.
    """
    fitting = [one for one in reversed(idle) if one.policy == policy.id and one.fits(length)]
    if not fitting:
        return None
    segment = fitting[0]
    if len(fitting) > 1:
        segment = min(fitting, key=lambda one: (one.slow_depots, one.is_spare, one.appends))
    if segment.slow_depots and segment.slow_depots > slow_depots(policy):
        return None
    if segment.is_spare:
        segment.opened_at = trio.current_time()
    return segment


class Allocator:
    """Allocates and leases; the ledger knows of every allocation before its lease is long."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots

    async def open(self, policy: Policy, length: int) -> OpenSegment:
        """Allocate on as many depots as the policy asks copies for, at least min_copies; lease them for long."""
        self._db.check_syncs()  # before depots are asked for what could not be kept
        asked: list[Depot] = []
        try:
            return await self._open(policy, length, asked)
        finally:
            for depot in asked:
                depot.busy -= 1

    async def _open(self, policy: Policy, length: int, asked: list[Depot]) -> OpenSegment:
        """`asked` gets the depots that are asked: they count as busy, so that who opens another segment meanwhile takes
        others."""
        size = SEGMENT_SIZE
        got: list[tuple[Depot, CapabilitySet]] = []
        trouble: IbpfsError | None = None
        while len(got) < policy.copies:
            candidates = [depot.candidate(policy.labels) for depot in self._depots if depot not in asked]
            room = [one for one in candidates if one.state != FAILED and one.free_bytes < size]
            if not any(one.free_bytes >= size for one in candidates if one.state != FAILED) and room:
                size = max(length, min(size, max(one.free_bytes for one in room)))
            taken = [depot.domain(policy.labels) for depot, _ in got]
            chosen = [self._depots.get(n) for n in choose_depots(candidates, policy.copies - len(got), size, taken)]
            if not chosen:
                break
            asked += chosen
            for depot in chosen:
                depot.busy += 1
            found, refusal = await _ask_all(chosen, partial(self._allocate, size), policy.min_copies - len(got))
            got += [(depot, found[depot.id]) for depot in chosen if depot.id in found]
            trouble = refusal or trouble
        if len(got) < policy.min_copies:
            self._orphan(got)
            raise self._why_not(length, trouble)
        return await self._lease(policy, size, got)

    def slow_depots(self, policy: Policy) -> int:
        """Of the depots that a segment opened now would lie on; all where there would be too few."""
        candidates = [depot.candidate(policy.labels) for depot in self._depots]
        slow = {one.depot for one in candidates if one.state != OK}
        chosen = choose_depots(candidates, policy.copies, SEGMENT_SIZE)
        return sum(number in slow for number in chosen) if len(chosen) == policy.copies else policy.copies

    async def _allocate(self, size: int, depot: Depot) -> CapabilitySet:
        with depot.taking(size):
            return await depot.call(lambda: depot.client.allocate(size, self._first_lease(depot)))

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
        rows = dict(zip([depot.id for depot, _ in got], self._ledger.add_pending(keys), strict=True))
        try:
            ends = await self._extend_all(policy, size, got)
        except BaseException:
            self._ledger.abandon_pending(list(rows.values()))
            raise
        self._ledger.abandon_pending([row for number, row in rows.items() if number not in ends])
        replicas: list[tuple[Depot, NewReplica]] = []
        for depot, caps in got:
            if depot.id in ends:
                wire = caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key
                new = NewReplica(rows[depot.id], depot.id, *wire, ends[depot.id], self._ledger.now())
                replicas.append((depot, new))
                depot.busy += 1
        return OpenSegment(policy.id, size, replicas, trio.current_time())

    async def _extend_all(
        self, policy: Policy, size: int, got: Sequence[tuple[Depot, CapabilitySet]]
    ) -> dict[int, float | None]:
        """Lease allocations that are pending for long; return the leases' ends by depot, at least min_copies."""
        await self._db.sync()  # I4: what is leased for long must be known after a power cut
        manage = {depot.id: caps.manage.wire_key for depot, caps in got}

        async def extend(depot: Depot) -> float | None:
            return await self.extend(depot, manage[depot.id], size)

        ends, trouble = await _ask_all([depot for depot, _ in got], extend, policy.min_copies)
        if len(ends) < policy.min_copies:
            raise trouble or DepotUnreachable("depots do not answer")
        return ends

    async def extend(self, depot: Depot, manage: Key, size: int, *, asking: bool = False) -> float | None:
        """Lease an allocation for the policy's time; return the lease's end, None when permanent.

        With `asking`, or as long as it was not seen to lease as it says, as the depot then tells it.
        """
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
        if depot.keeps_word and not asking:
            return self._ledger.now() + duration
        return await self._as_told(depot, manage, duration)

    async def _as_told(self, depot: Depot, manage: Key, duration: int) -> float | None:
        left = (await depot.call(lambda: depot.client.probe(manage))).seconds_left
        if left is None:
            return None
        depot.keeps_word = left >= 0.9 * duration - _ROUNDING
        return self._ledger.now() + (duration if left >= duration - _ROUNDING else left)


async def _ask_all(
    depots: Sequence[Depot], ask: Callable[[Depot], Awaitable[T]], enough: int
) -> tuple[dict[int, T], IbpfsError | None]:
    """Ask all at once; return their answers, and the last refusal.

    Once `enough` have answered, the others are waited for so much longer only: a stuck depot delays nobody.
    """
    answers: dict[int, T] = {}
    refusals: dict[int, IbpfsError] = {}

    async def one(depot: Depot) -> None:
        try:
            answers[depot.id] = await ask(depot)
        except (DepotError, DepotUnreachable) as error:
            refusals[depot.id] = error
        if len(answers) >= enough:
            scope.deadline = min(scope.deadline, trio.current_time() + STRAGGLER_LIMIT)

    with trio.CancelScope(deadline=math.inf if enough > 0 else trio.current_time() + STRAGGLER_LIMIT) as scope:
        async with trio.open_nursery() as nursery:
            for depot in depots:
                nursery.start_soon(one, depot)
    for depot in depots:
        if depot.id not in answers and depot.id not in refusals:
            depot.late()
    return answers, next(reversed(refusals.values()), None)
