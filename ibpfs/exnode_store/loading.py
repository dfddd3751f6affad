"""Loading sealed bytes from the best replica, the next one, or two of them at once.

A depot that fails, refuses, is late or lies is answered with the next replica at the same offset. Knows no file and no
key of it.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ibpfs.depot.client import ShortLoad
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, Unreadable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.allocator import STRAGGLER_LIMIT
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.pace import HedgeBudget
from ibpfs.exnode_store.placement import FAILED, STUTTERING, order_replicas

_log = logging.getLogger(__name__)

#: A load may take that much time, in bytes per second, beside STRAGGLER_LIMIT, when another depot has the bytes, too.
_LEAST_RATE = 256 * 1024
#: Seconds before which no read is asked for twice.
_SOON = 0.01


@dataclass(frozen=True, slots=True)
class Loaded:
    """Stored bytes, and who served them."""

    data: bytes | bytearray
    replica: int
    label: str


class Loading:
    """Loads. Knows which replicas there are, and how their depots are."""

    def __init__(self, ledger: Ledger, depots: DepotSet) -> None:
        self._ledger = ledger
        self._depots = depots
        self.hedging = HedgeBudget()

    async def load(self, segment: int, start: int, stop: int, *, avoid: frozenset[int] = frozenset()) -> Loaded:
        """Return stored bytes [start, stop) of a segment from its best replica, trying the others in turn.

        While a depot has only just gone silent it is tried again until the caller's deadline; when every depot that
        holds the segment is failed, DataError comes at once.
        """
        refused: set[int] = set()
        self.hedging.read()
        while True:
            replicas = [one for one in self._ledger.replicas(segment) if one.id not in avoid]
            trouble = "; ".join(map(self._why_untried, replicas)) or "it has no replica that can be tried"
            order = self._order(replicas)
            for replica in order:
                try:
                    with self._bounded(order, replica, stop - start):
                        return await self._load_hedged(replica, order, start, stop)
                except (CapabilityNotFound, ShortLoad, Unreadable) as error:
                    trouble = self._describe(replica, error)
                    self.report(replica.id, str(error))
                except (DepotError, DepotUnreachable) as error:
                    trouble = self._describe(replica, error)
                    # Each refusal once; a silent depot was logged when it went silent; what was released meanwhile
                    # has moved, and nobody need look.
                    known = replica.id in refused or self._ledger.replica(replica.id) is None
                    if isinstance(error, DepotError) and not known:
                        refused.add(replica.id)
                        _log.warning("segment %d: %s", segment, trouble)
            if not self._worth_waiting(replicas):
                raise DataError(f"segment {segment}: {trouble}")
            await trio.sleep(0.1)

    @contextmanager
    def _bounded(self, order: Sequence[Replica], replica: Replica, length: int) -> Iterator[None]:
        """A depot that is stuck delays no read that another one can serve: DepotUnreachable."""
        others = order[order.index(replica) + 1 :]
        patience = STRAGGLER_LIMIT + length / _LEAST_RATE if any(map(self.is_at_hand, others)) else math.inf
        with trio.move_on_after(patience) as scope:
            yield
        if scope.cancelled_caught:
            depot = self._depots.get(replica.depot)
            depot.late()
            raise DepotUnreachable(f"{depot.address}: no answer for {patience:.0f} s")

    async def _load_hedged(self, first: Replica, order: Sequence[Replica], start: int, stop: int) -> Loaded:
        """From `first`; from another one, too, when that takes longer than nearly all loads of its depot did.

        Whoever answers first is taken, and the other is not waited for: its connection is closed. Raises what `first`
        raises when neither answers.
        """
        patience = self._depots.get(first.depot).records.loads.expected(stop - start)
        other = next((one for one in order[order.index(first) + 1 :] if self.is_at_hand(one)), None)
        if patience is None or other is None:
            return await self.load_from(first, start, stop)
        found: list[Loaded] = []
        troubles: dict[int, DepotError | DepotUnreachable] = {}
        asked = 1

        async def ask(replica: Replica) -> None:
            try:
                found.append(await self.load_from(replica, start, stop))
            except (DepotError, DepotUnreachable) as error:
                troubles[replica.id] = error
            if found or len(troubles) == asked:
                nursery.cancel_scope.cancel()

        async def ask_another() -> None:
            nonlocal asked
            await trio.sleep(max(_SOON, patience))
            if self.hedging.take():
                asked = 2
                await ask(other)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, first)
            nursery.start_soon(ask_another)
        if found:
            return found[0]
        raise troubles[first.id]

    def _order(self, replicas: Sequence[Replica]) -> list[Replica]:
        by_id = {replica.id: replica for replica in replicas}
        known = {depot.id: depot for depot in self._depots}
        ranked = [
            (one.id, known[one.depot].state, one.suspect, known[one.depot].latency)
            for one in replicas
            if one.depot in known and known[one.depot].state != FAILED
        ]
        return [by_id[number] for number in order_replicas(ranked)]

    def _why_untried(self, replica: Replica) -> str:
        depot = self._depots.find(replica.depot)
        if depot is None:
            return f"depot {replica.depot} is no longer one of this volume's"
        return f"allocation {replica.read.label}: depot {depot.trouble or depot.address}"

    def _worth_waiting(self, replicas: Sequence[Replica]) -> bool:
        known = {depot.id: depot for depot in self._depots}
        return any(one.depot in known and known[one.depot].state == STUTTERING
            and not known[one.depot].answers
            for one in replicas)

    async def load_from(self, replica: Replica, start: int, stop: int) -> Loaded:
        """Return stored bytes from this replica and no other. Raises DepotError, DepotUnreachable."""
        depot = self._depots.get(replica.depot)
        data = await depot.load(
            lambda: depot.client.load(replica.read, replica.base + start, stop - start), stop - start
        )
        return Loaded(data, replica.id, self._describe(replica, None))

    def _describe(self, replica: Replica, error: Exception | None) -> str:
        depot = self._depots.get(replica.depot)
        text = f"depot {depot.address} allocation {replica.read.label}"
        return text if error is None else f"{text}: {error}"

    def is_at_hand(self, replica: Replica) -> bool:
        """Whether its depot answers."""
        depot = self._depots.find(replica.depot)
        return depot is not None and depot.answers

    def is_far(self, segment: int) -> bool:
        """Whether no depot that has the segment and answers is near."""
        depots = [self._depots.find(replica.depot) for replica in self._ledger.replicas(segment)]
        return all(depot is None or not depot.answers or depot.is_far for depot in depots)

    def is_lost(self, segment: int) -> bool:
        """Whether no replica is left that can be read: each is suspect, or its depot has been away for long."""
        known = {depot.id: depot for depot in self._depots}
        return not any(
            not one.suspect and one.depot in known and not known[one.depot].is_away
            for one in self._ledger.replicas(segment)
        )

    def report(self, replica: int, reason: str) -> None:
        """Bytes of this replica were wrong or missing: it is suspect until it is verified, the last to be tried."""
        row = self._ledger.replica(replica)
        if row is None or row.suspect:
            return
        _log.warning("segment %d: %s: %s", row.segment, self._describe(row, None), reason)
        try:
            self._ledger.suspect(row)
        except (NoSpace, OSError) as error:  # no reason not to read another one
            _log.info("segment %d: that is not noted: %s", row.segment, error)
