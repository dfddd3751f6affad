"""The warmer: tasks that keep files alive (renew leases, make up missing replicas) and release what nobody needs.

Works without keys. What each does is in `renewal`, `repairing`, `recoding`, `packing` and `releasing`; here is when.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from ibpfs.errors import NoSpace
from ibpfs.exnode_store.allocator import Allocator
from ibpfs.exnode_store.checkpoints.keeper import Checkpoints
from ibpfs.exnode_store.checkpoints.logs import Logs
from ibpfs.exnode_store.compaction import plan_packing
from ibpfs.exnode_store.copying import Copying
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.packing import MOVE_PER_LOOK, Packing
from ibpfs.exnode_store.recoding import Recoding
from ibpfs.exnode_store.releasing import Releasing
from ibpfs.exnode_store.renewal import Renewal
from ibpfs.exnode_store.repairing import REPAIR_RATE, Repairing
from ibpfs.exnode_store.scrubbing import Scrubbing
from ibpfs.exnode_store.sharing.lease_renewal import LeaseRenewal
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import Verification

_log = logging.getLogger(__name__)

RELEASE_EVERY = 1.0
LOOK_EVERY = 5.0
#: Segments that one look makes into shards; the rest is for the next.
_CODED_PER_LOOK = 4


@contextmanager
def _later() -> Iterator[None]:
    """A local disk that is full is no reason to end: the work is taken up again with the next look."""
    try:
        yield
    except* (NoSpace, OSError) as group:  # of several depots at once, perhaps
        _log.info("upkeep of the volume waits: %s", group.exceptions[0])


class Warmer:
    """Runs beside the flusher in whoever owns the volume."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, transfer: Transfer,
                 checkpoints: Checkpoints | None = None, logs: Logs | None = None) -> None:  # fmt: skip
        """`logs`: those of a volume whose checkpoints, and links, are made by somebody else."""
        self.checkpoints = checkpoints
        self.logs = logs if checkpoints is None else checkpoints.logs
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        allocator = Allocator(db, ledger, depots)
        self._verification = Verification(db, ledger, transfer)
        self._releasing = Releasing(db, ledger, depots, *([checkpoints.releasable] if checkpoints else []))
        self.renewal = Renewal(ledger, depots, allocator)
        self.links = LeaseRenewal(db, ledger, depots, is_snapshot=logs is not None)
        copying = Copying(db, ledger, allocator)
        self._repairing = Repairing(ledger, depots, transfer, copying, self._verification, self.renewal)
        self.recoding = Recoding(ledger, depots, transfer, self._verification, copying)
        self._packing = Packing(ledger, transfer, self._verification)
        self.scrubbing = Scrubbing(db, ledger, depots, transfer, self._verification)
        self.turn = trio.Lock()  # held by whoever verifies and repairs: two would make copies twice
        # What whoever has the turn may ask for at once.
        self.release_orphans = self._releasing.release_orphans
        self.release_dead = self._releasing.release_dead
        self.verify, self.repair, self.augment = self._repairing.verify, self._repairing.repair, self._repairing.augment
        self.pack, self.move_slices = self._packing.pack, self._packing.move_slices

    async def renew(self, *, every: bool = False) -> None:
        """Renew the leases that are due, or `every` one, on depots that answer."""
        await self.renewal.renew(every=every)
        if self.logs is not None:
            await self.logs.renew(every=every)
        await self.links.renew(every=every)

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._release_for_ever)
            nursery.start_soon(self.renew_for_ever)
            nursery.start_soon(self._keep_copies)
            nursery.start_soon(self.scrubbing.run)

    async def _release_for_ever(self) -> None:
        while True:
            with _later():
                await self.release_dead()
                if self._ledger.orphans_waiting:
                    await self.release_orphans()
            await trio.sleep(RELEASE_EVERY)

    async def renew_for_ever(self) -> None:
        """Until cancelled; a repair that takes long delays no renewal."""
        await self._depots.wait_for_all(LOOK_EVERY)
        while True:
            with _later():
                await self.renew()  # first leases that ended while nobody was here, before anyone reads
            await trio.sleep(self._pause())

    async def _keep_copies(self) -> None:
        await self._depots.wait_for_all(LOOK_EVERY)
        while True:
            pause = self._pause()
            await trio.sleep(pause)
            with _later():
                async with self.turn:
                    await self.verify()
                    await self.repair(budget=pause * REPAIR_RATE)
                    await self.recoding.code_some(_CODED_PER_LOOK)
                await self.pack(MOVE_PER_LOOK)

    def _pause(self) -> float:
        """Short leases are looked at more often: between 50 and 70 % of each there has to be a look."""
        longest = [depot.status.max_lease for depot in self._depots if depot.status and depot.status.max_lease]
        return min([LOOK_EVERY, *(lease / 10 for lease in longest)])

    def is_damaged(self, segment: int) -> bool:
        """Whether a slice of it was found to be sound nowhere: no replica of it is let go."""
        return segment in self._verification.damaged

    async def pack_all(self, progress: Callable[[int, int], None]) -> int:
        """Pack until there is nothing worth it, and release what that frees; return the stored bytes moved."""
        await self._transfer.close_old(every=True)
        live = {segment: live for segment, _, _, live in self._ledger.packing()}
        total, done = sum(live[segment] for segment in plan_packing(self._ledger.packing())), 0
        while moved := await self.pack(MOVE_PER_LOOK):
            done += moved
            progress(min(done, total), total)
            await self._transfer.close_old(every=True)
        await self.release_orphans()
        return done

    @property
    def has_ending(self) -> bool:
        """Whether replicas whose renewal was refused are still to be replaced."""
        return bool(self.renewal.ending(1))

    @property
    def under_replicated_bytes(self) -> int:
        """Stored bytes of segments that have fewer sound replicas than their policy asks for."""
        return self._ledger.under_replicated_bytes()
