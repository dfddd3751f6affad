"""Renewing the leases of links until each expires, by whoever has a volume or warm capability open, and ending them
then, by whoever has the volume. Needs no keys."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, ErrorCode, LeaseTooLong
from ibpfs.errors import NotFound
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.pins import OVER
from ibpfs.exnode_store.sharing.lease_rows import SLACK, LeaseRow, LeaseRows
from ibpfs.exnode_store.sharing.placing import Placing
from ibpfs.exnode_store.sharing.share_state import Lease

_log = logging.getLogger(__name__)

#: Parts of what is left of a lease, and of a whole one, after which a depot that did not renew it is asked again.
_PATIENCE, _LEAST_PATIENCE = 0.25, 0.05
#: Seconds by which a lease is longer that was extended.
_EXTENDED = 60.0
#: Seconds; at least.
_SHORTEST = 1.0


async def keep_lease(
    ledger: Ledger, placing: Placing, lease: Lease, expires: float, *, never_shorter: bool = False
) -> float:
    """Lease it until its link expires, or as long as depots do; return the lease's end. `never_shorter`: what is leased
    for longer stays so.

    A window's replica is leased for as long first: no window outlasts it. Raises DepotError, DepotUnreachable;
    CapabilityNotFound also when there is no such replica any more.
    """
    extend = partial(placing.extend, lease, never_shorter=never_shorter)
    if lease.segment is None:
        return await extend(expires)
    parent = next((one for one in ledger.replicas(lease.segment) if one.manage == lease.parent), None)
    if parent is None:
        raise CapabilityNotFound(ErrorCode.CAP_NOT_FOUND, "its replica was let go of")
    end = await keep_replica(ledger, placing, parent, expires)
    if end is None:
        return await extend(expires)
    try:
        return await extend(min(expires, end))
    except LeaseTooLong:  # than the replica's, by the time that passed
        return await extend(min(expires, end - SLACK))


async def keep_replica(ledger: Ledger, placing: Placing, replica: Replica, expires: float) -> float | None:
    """Lease a replica until a link that has a window on it expires; return the lease's end."""
    end = await placing.keep_replica(replica, expires + 2 * SLACK)
    if end != replica.lease_end:
        ledger.renewed(replica, end)
    return end


class LeaseRenewal:
    """One per open store. `is_snapshot`: of one whose links may have been extended since, elsewhere; there nothing is
    ended."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, *, is_snapshot: bool = False) -> None:
        self._ledger = ledger
        self._depots = depots
        self._is_snapshot = is_snapshot
        self._placing = Placing(depots)
        self._rows = LeaseRows(db)
        self._turn = trio.Lock()
        self._later: dict[tuple[str, Lease], float] = {}  # and when what was not renewed is asked for again

    async def renew(self, *, every: bool = False) -> None:
        """Lengthen what is due, or `every` lease, on depots that answer; end what has expired: some do not."""
        async with self._turn:
            now = self._ledger.now()
            rows = self._rows.due(now, every=every) + ([] if self._is_snapshot else self._rows.expired(now))
            self._later = {key: when for key, when in self._later.items() if when > now}
            try:
                async with trio.open_nursery() as nursery:
                    for depot in dict.fromkeys(row.lease.depot for row in rows):
                        nursery.start_soon(self._renew_on, [row for row in rows if row.lease.depot == depot], every)
            finally:
                with trio.CancelScope(shield=True):
                    await self._placing.aclose()

    def due(self, now: float) -> int:
        """How many had half run by then, and were not renewed since."""
        return sum(row.told_at < now for row in self._rows.due(now))

    async def _renew_on(self, rows: Sequence[LeaseRow], every: bool) -> None:
        known = self._depots.at(rows[0].lease.depot)
        for row in rows:
            if known is not None and not known.answers:
                return
            if every or (row.share, row.lease) not in self._later:
                try:
                    # Meanwhile the link may have been extended, or revoked.
                    if (now := self._rows.again(row)) is not None:
                        await self._renew(now)
                except DepotUnreachable as error:
                    self._put_off(rows, error)
                    return

    async def _renew(self, row: LeaseRow) -> None:
        try:
            if row.expires <= self._ledger.now():
                await self._end(row)
                return
            end = await keep_lease(self._ledger, self._placing, row.lease, row.expires, never_shorter=True)
        except CapabilityNotFound as error:
            # A mount opens another window, on the same replica or that which took its place.
            _log.info("%s has ended: %s", _named(row), error)
            self._rows.gone(row)
        except DepotError as error:
            self._put_off([row], error)
        else:
            self._rows.renewed(row, end, self._ledger.now())

    async def _end(self, row: LeaseRow) -> None:
        """But for what has a longer lease than this store knows of, which a backup was put back to: the link's record
        says more of it, to a mount."""
        if self._is_snapshot:
            return
        known = max(row.end, row.expires) - self._ledger.now()
        left = await self._placing.seconds_left(row.lease)
        if left > known + _EXTENDED:
            if row.lease.segment is not None:
                with suppress(NotFound):  # its segment; what was held for the link may have ended with it
                    self._ledger.hold_segments(OVER, row.share, [row.lease.segment], self._ledger.now() + left)
            self._put_off([row], "its lease is longer than its link was to last")
            return
        await self._placing.end(row.lease)
        self._rows.drop(row)

    def _put_off(self, rows: Sequence[LeaseRow], why: object) -> None:
        now = self._ledger.now()
        _log.info("%s: neither renewed nor ended: %s", _named(rows[0]), why)
        for row in rows:
            pause = max(_PATIENCE * (row.end - now), _LEAST_PATIENCE * (row.end - (row.told_at or now)), _SHORTEST)
            self._later[row.share, row.lease] = now + pause


def _named(row: LeaseRow) -> str:
    return f"link {row.share}: depot {row.lease.depot} allocation {row.lease.manage.label}"
