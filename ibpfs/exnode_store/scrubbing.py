"""Verifying every replica over a period, in the background, from its stored digests. Works without keys.

What was verified when is in the ledger, so that a new owner goes on where the last one ended.
"""

import logging
from typing import Any

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import NoSpace, UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.schema import CLOSED
from ibpfs.exnode_store.scrub_plan import DEFAULT_PERIOD, FASTEST, Extent, Unverified, in_order, pace, start_of
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import Verification

_log = logging.getLogger(__name__)

#: Replicas that one look into the ledger finds, of each kind.
_AT_ONCE = 50
#: Seconds between looks into the ledger while nothing is due.
_IDLE = 60.0
#: Seconds after which a replica that could not be looked at is tried again.
_RETRY = 600.0
#: Seconds that are spent on a volume that is not mounted, at a time.
_CATCH_UP = 120.0
_SHORTEST_PERIOD = 1.0
_FACT = "scrub_period"

_FROM = (
    "FROM replicas r JOIN segments s ON s.id = r.segment LEFT JOIN coded c ON c.segment = s.id"
    " WHERE s.state = ? AND s.length > 0 AND r.suspect = 0 AND r.id NOT IN (SELECT replica FROM imported)"
)
#: Bytes of replica `r`.
_LENGTH = "coalesce(c.shard_length, s.length)"


class Scrubbing:
    """One per open volume."""

    def __init__(
        self, db: Database, ledger: Ledger, depots: DepotSet, transfer: Transfer, verification: Verification
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._verification = verification
        self._last: float | None = None  # when the last look was, or would have been at this pace
        self._changed = trio.Event()
        self._stuck: dict[int, float] = {}  # replicas that could not be looked at, and when

    @property
    def period(self) -> float | None:
        """Seconds within which every replica is verified once; None: never."""
        said = self._db.facts.get(_FACT, str(DEFAULT_PERIOD))
        return float(said) if float(said) > 0 else None

    async def set_period(self, seconds: float | None) -> None:
        """None: no more of it. UsageError when it is too short."""
        if seconds is not None and seconds < _SHORTEST_PERIOD:
            raise UsageError("copies cannot be verified more often than every second")
        with self._db.transaction() as db:
            db.set_fact(_FACT, str(seconds or 0))
        await self._db.sync()
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        await self._depots.wait_for_all(_IDLE)
        while True:
            with trio.move_on_after(await self._look()):
                await self._changed.wait()

    async def catch_up(self) -> int:
        """Verify what has come due since somebody last did, of a volume that is not always in use; return how many.

        Not for long, as whoever wants to mount it has to wait.
        """
        count = 0
        with trio.move_on_after(_CATCH_UP):
            while await self._look() == 0.0:
                count += 1
        return count

    async def _look(self) -> float:
        """Verify the next replica if its time has come; return for how long there is nothing to do."""
        period = self.period
        if period is None:
            return _IDLE
        now = self._ledger.now()
        found = in_order(self._unverified(), now, period)
        if not found:
            return min(_IDLE, period / 20)
        one = found[0]
        rate = pace(self._extent(now - period), period)
        start = max(start_of(one, self._last_look(now, period), rate), now - period)
        if start > now:
            return min(_IDLE, start - now)
        self._last = start
        await self._verify(one)
        return 0.0

    def _last_look(self, now: float, period: float) -> float:
        if self._last is None or self._last > now:  # the clock was set back
            latest = self._db.value("SELECT max(verified_at) FROM replicas WHERE verified_at <= ?", (now,))
            self._last = max(latest or 0.0, now - period)
        return self._last

    async def _verify(self, one: Unverified) -> None:
        replica = self._ledger.replica(one.replica)
        if replica is None:
            return
        try:
            fault = await self._verification.fault(replica, self._slowly)
            if self._ledger.replica(replica.id) is None:  # released while it was looked at
                return
            if fault:
                self._transfer.report(replica.id, fault)  # the warmer takes it from here
            else:
                self._ledger.verified(replica)
        except (DepotError, DepotUnreachable, NoSpace, OSError) as error:
            _log.info("segment %d: allocation %s is not verified: %s", replica.segment, replica.read.label, error)
            self._stuck[one.replica] = trio.current_time()

    @staticmethod
    async def _slowly(length: int) -> None:
        await trio.sleep(length / FASTEST)

    def _unverified(self) -> list[Unverified]:
        """The first few of each kind: of endangered segments, never verified, verified longest ago; at hand now."""
        answering = [depot.id for depot in self._depots if depot.answers]
        marks = ", ".join("?" * len(answering))
        again = trio.current_time() - _RETRY
        self._stuck = {number: since for number, since in self._stuck.items() if since > again}
        short = {segment: missing for segment, _, missing, _ in self._ledger.shortages()[:_AT_ONCE]}
        segments = ", ".join(map(str, short)) or "NULL"
        found: dict[int, Unverified] = {}
        for which in (
            f"r.segment IN ({segments})",
            "r.verified_at IS NULL ORDER BY r.id",
            "r.verified_at IS NOT NULL ORDER BY r.verified_at",
        ):
            rows = self._db.rows(
                f"SELECT r.id, {_LENGTH}, coalesce(r.verified_at, s.created_at), s.id {_FROM} AND r.depot IN ({marks})"
                f" AND {which} LIMIT ?",
                (CLOSED, *answering, _AT_ONCE),
            )
            for number, length, since, segment in rows:
                found[number] = Unverified(number, length, since, short.get(segment, 0))
        return [one for one in found.values() if one.replica not in self._stuck]

    def _extent(self, overdue_since: float) -> Extent:
        total, overdue = self._db.rows(
            f"SELECT coalesce(sum({_LENGTH}), 0), coalesce(sum(CASE WHEN coalesce(r.verified_at, s.created_at) < ?"
            f" THEN {_LENGTH} END), 0) {_FROM}",
            (overdue_since, CLOSED),
        )[0]
        return Extent(total, overdue)

    def state(self) -> dict[str, Any]:
        """How far it is: of the stored bytes of all copies, how many were verified within the period."""
        now, period = self._ledger.now(), self.period
        total, verified, oldest = self._db.rows(
            f"SELECT coalesce(sum({_LENGTH}), 0), coalesce(sum(CASE WHEN r.verified_at > ? THEN {_LENGTH} END), 0),"
            f" min(coalesce(r.verified_at, s.created_at)) {_FROM}",
            (now - (period or 0), CLOSED),
        )[0]
        return {"period": period, "total_bytes": total, "verified_bytes": verified, "unverified_since": oldest}
