"""Renewing leases: when one is due, and what it means when the depot does not renew it. Works without keys."""

import logging
import math
import time

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.exnode_store.allocator import LONG_LEASE, Allocator
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.placement import OK

_log = logging.getLogger(__name__)


def renewal_due(replica: Replica, now: float) -> bool:
    """Whether a lease has run for 50 to 70 % of its time; where in between is the replica's own constant."""
    if replica.lease_end is None:
        return False
    share = 0.5 + 0.2 * (replica.id * 2654435761 % 2**32) / 2**32
    return now >= replica.told_at + share * (replica.lease_end - replica.told_at)


class Renewal:
    """Carries it out."""

    def __init__(self, ledger: Ledger, depots: DepotSet, allocator: Allocator) -> None:
        self._ledger = ledger
        self._depots = depots
        self._allocator = allocator

    async def renew(self, *, every: bool = False) -> None:
        """Renew the leases that are due, or `every` one, on depots that answer."""
        now = time.time()
        for depot in self._depots:
            if depot.state != OK or depot.status is None:
                continue
            for replica in self._ledger.leased_replicas(depot.id, math.inf if every else now):
                if every or renewal_due(replica, now):
                    await self._renew(depot, replica)

    async def _renew(self, depot: Depot, replica: Replica) -> None:
        try:
            status = await depot.call(lambda: depot.client.probe(replica.manage))
            end: float | None = None
            if status.seconds_left is not None:
                end = await self._extend(depot, replica, status.max_size, time.time() + status.seconds_left)
        except CapabilityNotFound:
            self._lost(depot, replica)
        except (DepotError, DepotUnreachable) as error:
            _log.warning("depot %s allocation %s: not renewed: %s", depot.address, replica.read.label, error)
        else:
            self._ledger.renewed(replica, end)

    async def _extend(self, depot: Depot, replica: Replica, size: int, end: float) -> float | None:
        """Lease for longer; what others lease for longer than we would is left as it is."""
        if replica.imported and end > time.time() + LONG_LEASE:
            return end
        return await self._allocator.extend(depot, replica.manage, size)

    def _lost(self, depot: Depot, replica: Replica) -> None:
        now = self._ledger.replica(replica.id)
        if now is None:  # released while we asked
            return
        if not now.suspect:
            _log.warning("depot %s allocation %s is lost: the depot does not know it", depot.address, now.read.label)
        others = [one for one in self._ledger.replicas(now.segment) if one.id != now.id and not one.suspect]
        if others:
            self._ledger.drop_replica(now)
        elif not now.suspect:
            # Perhaps the depot runs on another store than yesterday. Never let go of the last capability.
            self._ledger.suspect(now)
