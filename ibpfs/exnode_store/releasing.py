"""Giving allocations that nobody needs back to their depots (I5)."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Orphan
from ibpfs.exnode_store.segments import LAST_COMMIT

_log = logging.getLogger(__name__)

#: Allocations that one call gives back.
_RELEASES = 64


class Releasing:
    """Orphan row -> synced -> in a checkpoint -> depot -> row deleted."""

    def __init__(
        self, db: Database, ledger: Ledger, depots: DepotSet, releasable: Callable[[], int] = lambda: LAST_COMMIT
    ) -> None:
        """`releasable` tells the last commit whose orphans no checkpoint names."""
        self._db = db
        self._releasable = releasable
        self._ledger = ledger
        self._depots = depots

    async def release_dead(self) -> None:
        """Let go of slices that nothing keeps any more."""
        while self._ledger.release_dead():
            await trio.lowlevel.checkpoint()

    async def release_orphans(self) -> None:
        """Give the orphans that there are now back to their depots; those of silent depots stay for later."""
        answering = [depot for depot in self._depots if depot.answers and depot.status]
        orphans = self._ledger.orphans(1000, [depot.id for depot in answering], self._releasable())
        if not orphans:
            return
        await self._db.sync()
        async with trio.open_nursery() as nursery:
            for depot in answering:
                theirs = [orphan for orphan in orphans if orphan.depot == depot.id]
                nursery.start_soon(self._release_on, depot, theirs)

    async def _release_on(self, depot: Depot, orphans: list[Orphan]) -> None:
        for at in range(0, len(orphans), _RELEASES):
            some = orphans[at : at + _RELEASES]
            try:
                answers = await depot.call(partial(depot.client.decr_all, [orphan.manage for orphan in some]))
            except (DepotError, DepotUnreachable):
                return
            with suppress(DepotError, DepotUnreachable):
                await depot.look()  # what writers may count on is known before it is forgotten that more is to come
            for orphan, refusal in zip(some, answers, strict=True):
                # One that is not known ended by itself, or an earlier release was not noted.
                if refusal is None or isinstance(refusal, CapabilityNotFound):
                    self._ledger.forget_orphan(orphan.id)
                else:
                    label = orphan.manage.label
                    _log.info("depot %s allocation %s: not released yet: %s", depot.address, label, refusal)
