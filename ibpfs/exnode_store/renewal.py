"""Renewing leases: when one is due, and what it means when the depot does not renew it. Works without keys."""

import logging
import math
import struct
from collections import deque

import trio
import xxhash

from ibpfs.depot.clock import SteadyClock
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, ErrorCode, error_for
from ibpfs.exnode_store.allocator import LONG_LEASE, Allocator
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica

_log = logging.getLogger(__name__)

#: Where in its time a lease is renewed: between these parts of it.
_EARLIEST, _LATEST = 0.5, 0.7
_DRAWN = struct.Struct("<qd")
#: Part of what is left of a lease after which a refused renewal is asked for again; and of a whole one, at least.
_PATIENCE, _LEAST_PATIENCE = 0.25, 0.05
_DRIFTS = 20


def renewal_share(replica: Replica) -> float:
    """The part of its time that a lease runs before it is renewed.

    Drawn anew for each lease: two replicas whose leases happen to end together do not stay in step. Not thrown, but
    hashed from the row, so that whoever looks at it, after a restart too, comes to the same.
    """
    drawn = xxhash.xxh3_64_intdigest(_DRAWN.pack(replica.id, replica.told_at)) / 2**64
    return _EARLIEST + (_LATEST - _EARLIEST) * drawn


def renewal_due(replica: Replica, now: float, told_before: float = -math.inf) -> bool:
    """Whether a lease has run for 50 to 70 % of its time; or nobody knows, as its end was told by another clock."""
    if replica.lease_end is None:
        return False
    if replica.told_at > now or replica.told_at < told_before:
        return True
    return now >= replica.told_at + renewal_share(replica) * (replica.lease_end - replica.told_at)


def next_try(replica: Replica, now: float) -> float:
    """When a renewal that was refused is asked for again: more often towards the end, for all the time it is kept."""
    if replica.lease_end is None:
        return now
    whole = replica.lease_end - replica.told_at
    return now + max(_PATIENCE * (replica.lease_end - now), _LEAST_PATIENCE * whole)


def is_longer(before: float, after: float, longest: float) -> bool:
    """Whether a lease, in seconds left, was renewed; depots tell whole seconds."""
    return after > before or after >= longest - 2


class Renewal:
    """Carries it out. One depot that is slow delays no renewal on another."""

    def __init__(self, ledger: Ledger, depots: DepotSet, allocator: Allocator) -> None:
        self._ledger = ledger
        self._depots = depots
        self._allocator = allocator
        self._turn = trio.Lock()
        self._clock_set_at = -math.inf
        #: Replicas whose renewal was refused, and when that is asked for again: they last until their lease ends.
        self.refused: dict[int, float] = {}
        self.refusals: dict[int, str] = {}  # and what was said, by depot
        #: By how much leases end earlier than the ledger has it, of the last ones that depots were asked about.
        self.drifts: deque[float] = deque(maxlen=_DRIFTS)

    async def renew(self, *, every: bool = False) -> None:
        """Renew the leases that are due, or `every` one, on depots that answer."""
        self._follow_clock()
        async with self._turn, trio.open_nursery() as nursery:
            for depot in self._depots:
                if depot.answers and depot.status is not None:
                    nursery.start_soon(self._renew_on, depot, every)

    def _follow_clock(self) -> None:
        clock = self._ledger.now
        if isinstance(clock, SteadyClock) and clock.follow():
            self._clock_set_at = clock()
            _log.info("the clock was set: all leases are asked about anew")

    async def _renew_on(self, depot: Depot, every: bool) -> None:
        now = self._ledger.now()
        for replica in self._ledger.leased_replicas(depot.id, math.inf if every else now, self._clock_set_at):
            if not depot.answers:
                return
            due = renewal_due(replica, now, self._clock_set_at) and self.refused.get(replica.id, now) <= now
            if every or due:
                await self._renew(depot, replica)
        if not (depot.renews or any(one.id in self.refused for one in self._ledger.leased_replicas(depot.id, now))):
            depot.renews = True
            self.refusals.pop(depot.id, None)

    async def _renew(self, depot: Depot, replica: Replica) -> None:
        try:
            end = await self._new_end(depot, replica)
        except CapabilityNotFound:
            self._lost(depot, replica)
        except DepotUnreachable as error:  # that is told of the depot
            _log.info("depot %s allocation %s: not renewed yet: %s", depot.address, replica.read.label, error)
        except DepotError as error:
            self._was_refused(depot, replica, error)
        else:
            self.refused.pop(replica.id, None)
            self._ledger.renewed(replica, end)

    async def _new_end(self, depot: Depot, replica: Replica) -> float | None:
        """Renew one lease; return its end as the depot then tells it, None for one without. Raises CapabilityNotFound
        only when the depot neither knows nor renews it."""
        size, left = self._ledger.stored_length(replica), 0.0
        try:
            status = await depot.call(lambda: depot.client.probe(replica.manage))
        except CapabilityNotFound:
            # Some depots renew what has ended and answer no questions about it.
            if replica.imported or not size:
                raise
        else:
            if status.seconds_left is None:
                return None
            size, left = status.max_size, status.seconds_left
            self.note_drift(replica, left)
        if left > LONG_LEASE:  # what others, or a link, lease for longer than we would is left as it is
            return self._ledger.now() + left
        longest = min(LONG_LEASE, (depot.status and depot.status.max_lease) or LONG_LEASE)
        end = await self._allocator.extend(depot, replica.manage, size, asking=True)
        if end is not None and not is_longer(left, end - self._ledger.now(), longest):
            raise error_for(ErrorCode.LONG_DURATION)
        return end

    def note_drift(self, replica: Replica, left: float) -> None:
        """A depot tells how many seconds are left of a lease. Of one that has ended that says nothing."""
        if replica.lease_end is not None and left > 0:
            self.drifts.append(replica.lease_end - self._ledger.now() - left)

    def _was_refused(self, depot: Depot, replica: Replica, error: DepotError) -> None:
        now = self._ledger.now()
        depot.renews = False
        self.refusals[depot.id] = str(error)
        if replica.id not in self.refused:
            _log.warning("depot %s allocation %s: not renewed: %s", depot.address, replica.read.label, error)
        self.refused[replica.id] = next_try(replica, now)
        if replica.lease_end is not None and replica.lease_end <= now and self._has_others(replica):
            _log.info("depot %s allocation %s: its lease is over", depot.address, replica.read.label)
            self._forget(replica)

    def _has_others(self, replica: Replica) -> bool:
        """Whether there are as many sound replicas like it (copies, or the same shard) as are wanted without it."""
        alike = [one for one in self._ledger.replicas(replica.segment) if one.shard == replica.shard]
        others = [one for one in alike if one.id != replica.id and not one.suspect]
        return sum(one.id not in self.refused for one in others) >= self._ledger.wanted_alike(replica.segment)

    def _forget(self, replica: Replica) -> None:
        self.refused.pop(replica.id, None)
        now = self._ledger.replica(replica.id)
        if now is not None:  # not released while we asked
            self._ledger.drop_replica(now)

    def _lost(self, depot: Depot, replica: Replica) -> None:
        now = self._ledger.replica(replica.id)
        if now is None:  # released while we asked
            return
        # What was replaced in time has ended, as was to be expected.
        level = logging.INFO if replica.id in self.refused and self._has_others(replica) else logging.WARNING
        if not now.suspect:
            _log.log(level, "depot %s allocation %s is lost: the depot does not know it", depot.address, now.read.label)
        if self._ledger.spare(now.segment, without=now) >= 0:
            self._forget(now)
        elif not now.suspect:
            # Perhaps the depot runs on another store than yesterday. Never let go of the last capability.
            self._ledger.suspect(now)

    def ending(self, most: int) -> list[Replica]:
        """Some of the replicas whose renewal was refused and whose segments lack others that last."""
        found: list[Replica] = []
        for number in list(self.refused):
            replica = self._ledger.replica(number)
            if replica is None:
                self.refused.pop(number, None)
            elif not self._has_others(replica) and len(found) < most:
                found.append(replica)
        return found
