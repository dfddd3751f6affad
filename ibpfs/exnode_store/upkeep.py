"""What keeps a volume alive, done at once and to the end for somebody who waits. Works without keys."""

import time
from collections.abc import Callable
from typing import Any

from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.description import at_risk_bytes, survives_until
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.warmer import Warmer, renewal_due

#: Told (bytes done, bytes in all, what is done).
Told = Callable[[int, int, str], None]
#: Seconds that depots have to answer before they are left out.
_ANSWER = 6.0


class Upkeep:
    """One per open volume; takes turns with the warmer's own looks."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, warmer: Warmer) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._warmer = warmer

    async def warm(self, told: Told, *, every: bool = False) -> dict[str, Any]:
        """Renew what is due (or `every` lease), verify what is suspect, make up copies, release; return a summary."""
        await self._depots.wait_for_all(_ANSWER)
        async with self._warmer.turn:
            began = time.time()
            await self._warmer.renew(every=every)
            await self._make_up(told)
            summary = {"renewed": self._renewed_since(began), "not_renewed": self._due_at(began), **self.state()}
        await self._release()
        await self._db.sync()
        return summary

    async def _make_up(self, told: Told) -> None:
        """Verify and repair until nothing more comes of it."""
        await self._warmer.verify(most=None)
        total = lacking = self._ledger.under_replicated_bytes()
        while lacking:

            def advance() -> None:
                told(max(0, total - self._ledger.under_replicated_bytes()), total, "making up copies")

            await self._warmer.repair(most=None, after_each=advance)
            await self._warmer.verify()  # lets go of what is replaced now, and makes room by that
            before, lacking = lacking, self._ledger.under_replicated_bytes()
            if lacking >= before:
                break

    async def _release(self) -> None:
        left = None
        while self._ledger.orphans_waiting and left != (orphans := len(self._ledger.orphans(limit=100_000))):
            left = orphans
            await self._warmer.release_orphans()

    def _renewed_since(self, began: float) -> int:
        return sum(replica.told_at >= began for replica in self._leased())

    def _due_at(self, began: float) -> int:
        return sum(renewal_due(replica, began) for replica in self._leased())

    def _leased(self) -> list[Replica]:
        return [replica for depot in self._depots for replica in self._ledger.leased_replicas(depot.id)]

    def state(self) -> dict[str, Any]:
        """What status says of copies and leases."""
        now = time.time()
        return {
            "under_replicated_bytes": self._ledger.under_replicated_bytes(),
            "at_risk_bytes": at_risk_bytes(self._db, now),
            "survives_until": survives_until(self._db, now),
        }
