"""Replicas as sources of bytes: which to ask first, how long, and what is said of one that fails. Knows no file."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.allocator import STRAGGLER_LIMIT
from ibpfs.exnode_store.coded_rows import survivors
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.pace import HedgeBudget
from ibpfs.exnode_store.placement import FAILED, STUTTERING, order_replicas

_log = logging.getLogger(__name__)

#: A load may take that much time, in bytes per second, beside STRAGGLER_LIMIT, when another depot has the bytes, too.
_LEAST_RATE = 256 * 1024
#: Of a load that a reader waits for, so many bytes count where the depot is near: it brings several blocks in the time
#: of one, or is stuck.
_BLOCK = 1024 * 1024
#: Seconds before which no read is asked for twice.
_SOON = 0.01


@dataclass(frozen=True, slots=True)
class Loaded:
    """Stored bytes, and who served them; of a coded segment perhaps several shards did."""

    data: bytes | bytearray
    replica: int
    label: str
    others: tuple[int, ...] = ()

    @property
    def givers(self) -> tuple[int, ...]:
        return (self.replica, *self.others)


class Sources:
    """Knows which replicas there are, and how their depots are."""

    def __init__(self, ledger: Ledger, depots: DepotSet) -> None:
        self._ledger = ledger
        self._depots = depots
        self.hedging = HedgeBudget()

    async def load_from(self, replica: Replica, start: int, stop: int) -> Loaded:
        """Return stored bytes from this replica and no other; of a shard, its own bytes. Raises DepotError,
        DepotUnreachable."""
        depot = self._depots.get(replica.depot)
        data = await depot.load(
            lambda: depot.client.load(replica.read, replica.base + start, stop - start), stop - start
        )
        return Loaded(data, replica.id, self._describe(replica, None))

    def _waited_for(self, replica: Replica, length: int) -> int:
        """How many bytes of so many a depot is given time for while readers wait."""
        return length if self._depots.get(replica.depot).is_far else min(length, _BLOCK)

    @contextmanager
    def _bounded(self, replica: Replica, length: int, *, alone: bool) -> Iterator[None]:
        """A depot that is stuck delays no read that others can serve: DepotUnreachable. `alone`: none can."""
        patience = math.inf if alone else STRAGGLER_LIMIT + length / _LEAST_RATE
        with trio.move_on_after(patience) as scope:
            yield
        if scope.cancelled_caught:
            depot = self._depots.get(replica.depot)
            depot.late()
            raise DepotUnreachable(f"{depot.address}: no answer for {patience:.0f} s")

    async def _hedged(
        self, first: Callable[[], Awaitable[Loaded]], other: Callable[[], Awaitable[Loaded]], patience: float
    ) -> Loaded:
        """From `first`; from the other, too, when that takes longer than so many seconds.

        Whoever answers first is taken, and the other is not waited for: its connection is closed. Raises what `first`
        raises when neither answers.
        """
        found: list[Loaded] = []
        troubles: dict[bool, DepotError | DepotUnreachable | DataError] = {}
        asked = 1

        async def ask(source: Callable[[], Awaitable[Loaded]], *, is_first: bool) -> None:
            try:
                found.append(await source())
            except (DepotError, DepotUnreachable, DataError) as error:
                troubles[is_first] = error
            if found or len(troubles) == asked:
                nursery.cancel_scope.cancel()

        async def ask_other() -> None:
            nonlocal asked
            await trio.sleep(max(_SOON, patience))
            if self.hedging.take():
                asked = 2
                await ask(other, is_first=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask(first, is_first=True))
            nursery.start_soon(ask_other)
        if found:
            return found[0]
        raise troubles[True]

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

    def holders(self, segment: int) -> frozenset[int]:
        """The depots that have something of the segment."""
        return frozenset(replica.depot for replica in self._ledger.replicas(segment))

    def is_own(self, segment: int, giver: int | None = None) -> bool:
        """Whether the volume's own depot has all of it, for all that is known sound, and answers; of bytes that have
        come, whether that replica was the one that gave them."""
        sound = [
            self._depots.find(replica.depot)
            for replica in self._ledger.replicas(segment)
            if not replica.suspect and giver in (None, replica.id)
        ]
        own = any(depot is not None and depot.embedded and depot.answers for depot in sound)
        return own and self._ledger.coded(segment) is None

    def is_lost(self, segment: int) -> bool:
        """Whether too few replicas are left that can be read: others are suspect, or their depots away for long."""
        known = {depot.id: depot for depot in self._depots}
        left = [
            one
            for one in self._ledger.replicas(segment)
            if not one.suspect and one.depot in known and not known[one.depot].is_away
        ]
        return survivors(left, self._ledger.coded(segment)) < 0

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
