"""Bringing what is stored under the policies that files have been given: retag, move, drop, spread."""

import logging
from collections import Counter
from collections.abc import Callable

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.placement import FAILED, choose_depots, choose_surplus
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.policy_walks import PolicyWalks
from ibpfs.exnode_store.repairing import Shortage
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.warmer import LOOK_EVERY, Warmer

_log = logging.getLogger(__name__)

#: Told (done, in all, what is done).
Told = Callable[[int, int, str], None]
#: Segments that are settled before others get the warmer's turn.
_AT_ONCE = 20


class Settling:
    """One per open volume; takes turns with the warmer."""

    def __init__(
        self, walks: PolicyWalks, ledger: Ledger, depots: DepotSet, transfer: Transfer, warmer: Warmer
    ) -> None:
        self.walks = walks
        self.policies = transfer.policies
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._warmer = warmer

    async def run(self) -> None:
        """Go on with what was begun, until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY)
            await self.go_on()

    async def go_on(self, told: Told = lambda *_: None) -> bool:
        """Do what can be done now; False when some of it waits for depots or room."""
        try:
            await self.walk()
            while self.walks.to_settle() is not None:
                if not await self._settle_some(told):
                    return False
        except (NoSpace, OSError) as error:
            _log.info("a change of policy waits: %s", error)
            return False
        return True

    async def walk(self) -> None:
        while self.walks.step():
            await trio.lowlevel.checkpoint()

    async def _settle_some(self, told: Told) -> bool:
        await self._transfer.close_old(every=True)
        async with self._warmer.turn:
            for _ in range(_AT_ONCE):
                span = self.walks.to_settle()
                if span is None:
                    return True
                told(span[0], span[1], "moving what is stored")
                segment = self.walks.next_segment(*span)
                try:
                    if segment is not None:
                        await self._settle(segment)
                except DataError as error:
                    _log.info("segment %d: stays under its policy: %s", segment, error)
                except (DepotError, DepotUnreachable) as error:
                    _log.info("segment %d: its change of policy waits: %s", segment, error)
                    return False
                self.walks.settled(segment)
        return True

    async def _settle(self, segment: int) -> None:
        wanted, now = self.walks.wanted(segment), self._ledger.policy_of(segment)
        if len(set(wanted.values())) == 1 and (policy := next(iter(wanted.values()))) != now:
            self.walks.retag(segment, policy)
        else:
            for policy in sorted(set(wanted.values()) - {now}):
                rows = {row for row, number in wanted.items() if number == policy}
                await self._warmer.move_slices(segment, rows, self._transfer.policy(policy))
        if not self._ledger.segment_length(segment):
            return
        asked, coded = self._transfer.policy(self._ledger.policy_of(segment)), self._ledger.coded(segment)
        if coded is not None and asked.code != str(coded.code):
            await self._warmer.recoding.uncode(segment)  # the warmer stores it in the new code by and by
        if self._ledger.coded(segment) is None:
            await self._spread(segment, asked)

    async def _spread(self, segment: int, policy: Policy) -> None:
        """Move copies that share a failure domain while there is another one, then drop those that are too many."""
        held = {one.depot for one in self._ledger.replicas(segment)}
        domains = [depot.domain(policy.labels) for depot in self._depots if depot.id in held and depot.role == "active"]
        crowd = Counter(value for domain in domains for value in domain)
        others = [depot.candidate(policy.labels) for depot in self._depots if depot.id not in held]
        for number in choose_depots(others, 1, self._ledger.segment_length(segment), domains):
            fresh = self._depots.get(number).domain(policy.labels)
            if fresh and max(crowd.values(), default=0) > 1 + max(crowd[value] for value in fresh):
                await self._warmer.augment(Shortage(segment, self._ledger.segment_length(segment), 1))
        self.drop_surplus(segment, policy)

    def drop_surplus(self, segment: int, policy: Policy) -> None:
        """Let go of sound copies that the policy does not ask for; not of what is shared: links may name any."""
        if self._ledger.is_held(segment):
            return
        sound = [one for one in self._ledger.replicas(segment) if not one.suspect]
        known = {depot.id: depot for depot in self._depots}
        held = [
            (one.id, depot.role == "active" and depot.state != FAILED, depot.domain(policy.labels))
            for one in sound
            if (depot := known.get(one.depot)) is not None
        ]
        surplus = set(choose_surplus(held, policy.copies))
        for replica in sound:
            if replica.id in surplus:
                self._ledger.drop_replica(replica)
