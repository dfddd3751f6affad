"""Moving everything off a depot with nothing at risk in between: copy, commit, then release.

That a depot is draining is a state in the store, so that whoever owns the volume next goes on with it.
"""

import logging
from collections.abc import Callable, Mapping

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace, UsageError, VolumeError
from ibpfs.exnode_store.checkpoints.recovery_key import is_last_named
from ibpfs.exnode_store.coded_rows import survivors
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.repairing import Shortage
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.warmer import LOOK_EVERY, Warmer

_log = logging.getLogger(__name__)

#: Told (segments done, segments in all, what is done).
Told = Callable[[int, int, str], None]
#: Replicas that are moved before others get the warmer's turn.
_MOVES = 20
#: Seconds that depots have to answer before they are left out.
_ANSWER = 6.0
#: Seconds that appends have which were begun before the depot was told to take no more.
_UNDER_WAY = 60.0


class Draining:
    """One per open volume; takes turns with the warmer."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, transfer: Transfer, warmer: Warmer) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._warmer = warmer

    async def run(self) -> None:
        """Go on with what was begun, until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY)
            for depot in self._unfinished():
                try:
                    await self._move_some(depot, set())
                except (NoSpace, OSError) as error:
                    _log.info("draining of %s waits: %s", depot.address, error)

    async def go_on(self) -> None:
        """Move what can be moved off the depots that are draining."""
        for depot in self._unfinished():
            stuck = set[int]()
            while await self._move_some(depot, stuck):
                pass

    def _unfinished(self) -> list[Depot]:
        """The depots that something of ours is to be moved off."""
        return [depot for depot in self._depots if depot.role == "draining" and self._ledger.holdings(depot.id).own]

    def begin(self, address: str) -> Depot:
        """Let a depot take no new bytes. UsageError when it is none of the volume's, or the others are too few."""
        depot = self._at(address)
        address = depot.address
        others = sum(other.role == "active" for other in self._depots if other is not depot)
        copies = self._transfer.policies.most_copies
        if others < copies:
            raise UsageError(f"{address}: without it there are {others} depots for {copies} copies; add another first")
        if others < (shards := self._ledger.most_shards):
            raise UsageError(f"{address}: without it there are {others} depots for {shards} shards; add another first,"
                             " or do without the code: ibpfs policy set -R DIR code=none")  # fmt: skip
        checkpoints = self._warmer.checkpoints
        if checkpoints is not None and is_last_named(self._db, checkpoints, depot.id):
            raise UsageError(f"{address}: the last printed recovery string leads to no other depot; first print"
                             " another: ibpfs recovery-key VOLUME")  # fmt: skip
        self._depots.drain(depot)
        return depot

    def _at(self, address: str) -> Depot:
        depot = self._depots.at(address)
        if depot is None:
            raise UsageError(f"{address} is no depot of this volume (see ibpfs depots)")
        return depot

    def label_names(self) -> set[str]:
        """What is known of where depots are, and whose."""
        return {name for depot in self._depots for name in depot.labels}

    def label(self, address: str, labels: Mapping[str, str]) -> None:
        """Say anew where a depot is. UsageError when it is none of the volume's."""
        self._depots.label(self._at(address), labels)

    async def drain(self, address: str, told: Told) -> int:
        """Move all of ours off a depot and release it there; return how many imported replicas stay.

        VolumeError when some cannot be moved now; whoever owns the volume goes on trying.
        """
        if self._depots.at(address) is None and self._depots.was_removed(address):
            return 0
        depot = self.begin(address)
        await self._depots.wait_for_all(_ANSWER)
        total, stuck = self._ledger.holdings(depot.id).own, set[int]()
        deadline = trio.current_time() + _UNDER_WAY
        # What is pending has its first commit under way, and is a segment with that.
        while (held := self._ledger.holdings(depot.id)).own or held.pending:
            told(max(0, total - held.own), total, "moving segments" if held.own else "waiting for writes")
            await self._transfer.close_on(depot.id)
            if await self._move_some(depot, stuck):
                continue
            rest = self._ledger.own_replicas(depot.id)
            if rest and all(one.id in stuck for one in rest):
                raise VolumeError(f"{address}: {len(rest)} segments cannot be moved off it now, for want of other"
                                  " depots that answer, of room or of sound bytes (see ibpfs depots, and the log)")
            if not rest and trio.current_time() > deadline:
                raise VolumeError(f"{address}: {held.pending} allocations on it are still being written to; try again")
            await trio.sleep(0.1)  # some are open, and in use
        if self._warmer.checkpoints is not None:
            await self._warmer.checkpoints.leave(depot.id)
        await self._warmer.release_orphans()
        await self._db.sync()
        return self._ledger.holdings(depot.id).imported

    async def _move_some(self, depot: Depot, stuck: set[int]) -> int:
        """Move some replicas off; return how many were tried. `stuck` are those, by id, that are not, and gets those
        that would not go."""
        async with self._warmer.turn:
            some = self._ledger.movable_replicas(depot.id, len(stuck) + _MOVES)
            movable = [one for one in some if one.id not in stuck]
            for replica in movable:
                try:
                    moved = await self._move(replica)
                except (DepotError, DepotUnreachable, DataError) as error:
                    _log.info("segment %d: not moved off %s: %s", replica.segment, depot.address, error)
                    moved = False
                if not moved:
                    stuck.add(replica.id)
            return len(movable)

    async def _move(self, replica: Replica) -> bool:
        segment = replica.segment
        missing = self._missing(segment)
        if missing <= 0 and not await self._lives_elsewhere(replica):
            missing = 1
        if missing > 0:
            await self._warmer.augment(Shortage(segment, self._ledger.segment_length(segment), missing))
        now = self._ledger.replica(replica.id)
        if now is not None:
            enough = self._has_twin(now) if now.shard is not None else self._missing(segment) <= 0
            if not enough or self._warmer.is_damaged(segment):
                return False
            if not await self._lives_elsewhere(now):
                return False
            self._ledger.drop_replica(now)
        return True

    async def _lives_elsewhere(self, replica: Replica) -> bool:
        """Whether depots that stay say now that they have the segment's bytes, without this replica: one that is away
        may not come back."""
        staying = {depot.id: depot for depot in self._depots if depot.role == "active" and depot.answers}
        coded, held = self._ledger.coded(replica.segment), list[Replica]()
        for one in self._ledger.replicas(replica.segment):
            if one.depot in staying and not one.suspect and await self._is_held(staying[one.depot], one):
                held.append(one)
                if survivors(held, coded) >= 0:
                    return True
        return False

    async def _is_held(self, depot: Depot, replica: Replica) -> bool:
        if not replica.is_managed:
            return False
        try:
            allocation = await depot.call(lambda: depot.client.probe(replica.manage))
        except CapabilityNotFound:
            self._ledger.suspect(replica)
            return False
        except (DepotError, DepotUnreachable):
            return False
        return allocation.size >= self._ledger.stored_length(replica)

    def _has_twin(self, replica: Replica) -> bool:
        """Whether a depot that stays has the same shard."""
        staying = {depot.id for depot in self._depots if depot.role == "active"}
        alike = [one for one in self._ledger.replicas(replica.segment) if one.shard == replica.shard]
        return any(one.depot in staying and not one.suspect for one in alike)

    def _missing(self, segment: int) -> int:
        """Sound replicas that its policy, or its code, asks for and that depots which stay do not have."""
        staying = {depot.id for depot in self._depots if depot.role == "active"}
        sound = [one for one in self._ledger.replicas(segment) if one.depot in staying and not one.suspect]
        if self._ledger.coded(segment) is not None:
            return len(set(self._ledger.shards(segment)) - {one.shard for one in sound})
        return self._ledger.wanted_copies(segment) - len(sound)

    async def remove(self, address: str) -> bool:
        """Take an empty, drained depot out of the volume; False: it was not one of it any more. UsageError if it is
        not empty."""
        depot = self._depots.at(address)
        if depot is None:
            if self._depots.was_removed(address):
                return False
            raise UsageError(f"{address} is no depot of this volume (see ibpfs depots)")
        if depot.embedded:
            raise UsageError(f"{address}: is the volume's own depot and stays; drained, it takes no new bytes")
        if depot.role == "active":
            raise UsageError(f"{address}: is in use; first: ibpfs depots drain VOLUME {depot.address}")
        await self._depots.wait_for_all(_ANSWER)
        if self._warmer.checkpoints is not None:
            await self._warmer.checkpoints.leave(depot.id)
        await self._warmer.release_orphans()
        held = self._ledger.holdings(depot.id)
        if held.own or held.pending or held.imported:
            imported = f", {held.imported} of imported files" if held.imported else ""
            raise UsageError(f"{address}: still holds {held.own + held.imported + held.pending} replicas{imported}")
        if held.orphans and depot.answers:
            raise VolumeError(f"{address}: {held.orphans} allocations are not given back yet; try again")
        self._ledger.forget_orphans_on(depot.id)
        self._depots.remove(depot)
        await self._db.sync()
        return True
