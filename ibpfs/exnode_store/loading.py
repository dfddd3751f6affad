"""Loading sealed bytes from the best replica, the next one, or two of them at once.

A depot that fails, refuses, is late or lies is answered with the next replica at the same offset. Knows no file and no
key of it.
"""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from ibpfs.depot.client import ShortLoad
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, Unreadable
from ibpfs.errors import DataError
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.own_files import OwnFiles
from ibpfs.exnode_store.shard_loading import ShardLoading
from ibpfs.exnode_store.sources import Loaded

__all__ = ["Loaded", "Loading"]

_log = logging.getLogger(__name__)


class Loading(ShardLoading):
    """Loads, however a segment is stored."""

    def __init__(self, ledger: Ledger, depots: DepotSet) -> None:
        super().__init__(ledger, depots)
        self.own_files = OwnFiles(ledger, depots)

    async def load(self, segment: int, start: int, stop: int, *, avoid: frozenset[int] = frozenset()) -> Loaded:
        """Return stored bytes [start, stop) of a segment from its best replica, trying the others in turn.

        While a depot has only just gone silent it is tried again until the caller's deadline; when every depot that
        holds the segment is failed, DataError comes at once.
        """
        refused: set[int] = set()
        self.hedging.read()
        while True:
            known, coded = self._ledger.replicas(segment), self._ledger.coded(segment)
            replicas = [one for one in known if one.id not in avoid]
            try:
                if coded is not None:
                    return await self._load_coded(coded, replicas, start, stop)
                return await self._load_copy(replicas, start, stop, refused)
            except DataError as error:
                trouble = error
            if coded != self._ledger.coded(segment):  # shards took the place of copies meanwhile, or these of those
                continue
            if not self._worth_waiting(replicas):
                raise DataError(f"segment {segment}: {trouble}") from trouble
            await trio.sleep(0.1)

    async def _load_copy(self, replicas: Sequence[Replica], start: int, stop: int, refused: set[int]) -> Loaded:
        """One try with each whole copy; `refused` are those of which that has been told. DataError."""
        trouble = "; ".join(map(self._why_untried, replicas)) or "it has no replica that can be tried"
        order = self._order(replicas)
        for replica in order:
            others = order[order.index(replica) + 1 :]
            try:
                length = self._waited_for(replica, stop - start)
                with self._bounded(replica, length, alone=not any(map(self.is_at_hand, others))):
                    return await self._load_hedged(replica, others, start, stop)
            except (CapabilityNotFound, ShortLoad, Unreadable) as error:
                trouble = self._describe(replica, error)
                self.report(replica.id, str(error))
            except (DepotError, DepotUnreachable) as error:
                trouble = self._describe(replica, error)
                # Each refusal once; a silent depot was logged when it went silent; what was released meanwhile has
                # moved, and nobody need look.
                known = replica.id in refused or self._ledger.replica(replica.id) is None
                if isinstance(error, DepotError) and not known:
                    refused.add(replica.id)
                    _log.warning("segment %d: %s", replica.segment, trouble)
        raise DataError(trouble)

    async def _load_hedged(self, first: Replica, others: Sequence[Replica], start: int, stop: int) -> Loaded:
        """From `first`; from another one, too, when that takes longer than nearly all loads of its depot did."""
        other = next((one for one in others if self.is_at_hand(one)), None)
        if other is None:  # what is usual need not be known then: 13 us of the 105 that a load of a frame takes
            return await self.load_from(first, start, stop)
        patience = self._depots.get(first.depot).records.loads.expected(stop - start)
        if patience is None:
            return await self.load_from(first, start, stop)
        ask = partial(self.load_from, start=start, stop=stop)
        return await self._hedged(partial(ask, first), partial(ask, other), patience)
