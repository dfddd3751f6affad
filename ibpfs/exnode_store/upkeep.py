"""What keeps a volume alive, done at once and to the end for somebody who waits. Works without keys."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.description import at_risk_bytes, survives_until
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.renewal import renewal_due
from ibpfs.exnode_store.settling import Settling
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import Verification
from ibpfs.exnode_store.warm_capability import Merge, write_warm_capability
from ibpfs.exnode_store.warmer import Warmer

_log = logging.getLogger(__name__)

#: Told (bytes done, bytes in all, what is done).
Told = Callable[[int, int, str], None]
#: Segments that are made into shards before it is looked which are next.
_CODED_AT_ONCE = 4
#: Seconds that depots have to answer before they are left out.
_ANSWER = 6.0


@dataclass
class _Count:
    """Of replicas that were looked at; `done` in bytes."""

    sound: int = 0
    bad: int = 0
    unknown: int = 0
    done: int = 0


class Upkeep:
    """One per open volume; takes turns with the warmer's own looks."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, transfer: Transfer, warmer: Warmer,
                 draining: Draining | None) -> None:  # fmt: skip
        """`draining` None: somebody else's volume, of which nothing is given back."""
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._warmer = warmer
        self._draining = draining
        self._verification = Verification(db, ledger, transfer)

    async def warm(self, told: Told, *, every: bool = False) -> dict[str, Any]:
        """Renew what is due (or `every` lease), verify what is suspect, make up copies, release; return a summary."""
        began = self._ledger.now()
        await self._depots.wait_for_all(_ANSWER)
        async with self._warmer.turn:
            await self._warmer.renew(every=every)
            renewed = {"renewed": self._renewed_since(began), "not_renewed": self._due_at(began)}
        renewed["verified"] = await self._warmer.scrubbing.catch_up()
        async with self._warmer.turn:
            await self._make_up(told)
        if self._draining is not None:
            await self._code(told)
            await self._draining.go_on()
        await self._release()
        await self._db.sync()
        return renewed | self.state()

    async def settle(self, settling: Settling, told: Told) -> bool:
        """Bring what is stored under the policies of its files, with all copies; False when some of it has to wait."""
        await self._depots.wait_for_all(_ANSWER)
        done = await settling.go_on(told)
        async with self._warmer.turn:
            await self._make_up(told)
        await self._code(told)
        await self._release()
        await self._db.sync()
        return done and not self._ledger.under_replicated_bytes()

    async def merge(self, path: Path, told: Told) -> dict[str, Any]:
        """Take home what another machine added to a warm capability, and write that anew; return a summary."""
        await self._depots.wait_for_all(_ANSWER)
        async with self._warmer.turn:
            merged = Merge(self._db, self._ledger, self._depots).take(path)
            await self._make_up(told)
        await self._release()
        return asdict(merged) | await self.write_capability(path) | self.state()

    async def write_capability(self, path: Path) -> dict[str, Any]:
        """Write a warm capability; return how much is in it."""
        await self._transfer.close_old(every=True)  # only what is closed can be copied
        await self._db.sync()
        return await trio.to_thread.run_sync(write_warm_capability, self._db.path, path, dict(self._db.facts))

    async def repair(self, told: Told) -> dict[str, Any]:
        """Compare every replica with its stored digest, and replace what is not as it should be; return a summary."""
        await self._depots.wait_for_all(_ANSWER)
        async with self._warmer.turn:
            count = await self._verify_all(told)
            lacking = self._ledger.under_replicated_bytes()
            await self._make_up(told)
            state = self.state()
        await self._release()
        await self._db.sync()
        found = {"sound": count.sound, "bad": count.bad, "not_verified": count.unknown}
        return {**found, "repaired_bytes": max(0, lacking - state["under_replicated_bytes"]), **state}

    async def _verify_all(self, told: Told) -> _Count:
        """Look at all replicas, on all depots at the same time."""
        count = _Count()
        theirs = [self._ledger.own_replicas(depot.id) for depot in self._depots]
        total = sum(self._ledger.stored_length(replica) for some in theirs for replica in some)

        async def look_at(replicas: Sequence[Replica]) -> None:
            for replica in replicas:
                await self._verify(replica, count)
                count.done += self._ledger.stored_length(replica)
                told(min(count.done, total), total, "verifying copies")

        async with trio.open_nursery() as nursery:
            for some in theirs:
                nursery.start_soon(look_at, some)
        return count

    async def _verify(self, replica: Replica, count: _Count) -> None:
        try:
            if not self._transfer.is_at_hand(replica):
                raise DepotUnreachable("its depot does not answer")
            fault = await self._verification.fault(replica)
        except (DepotError, DepotUnreachable) as error:
            _log.info("segment %d: allocation %s is not verified: %s", replica.segment, replica.read.label, error)
            count.unknown += 1
            return
        if self._ledger.replica(replica.id) is None:  # released while it was looked at
            return
        if fault:
            count.bad += 1
            self._transfer.report(replica.id, fault)
        else:
            count.sound += 1
            self._ledger.verified(replica)

    async def _make_up(self, told: Told) -> None:
        """Verify and repair until nothing more comes of it."""
        await self._warmer.verify(most=None)
        if self._warmer.has_ending:
            await self._warmer.repair(most=None)
        total = lacking = self._ledger.under_replicated_bytes()
        if lacking:
            await self._transfer.close_old(every=True)  # copies are made of closed segments only
        while lacking:

            def advance() -> None:
                told(max(0, total - self._ledger.under_replicated_bytes()), total, "making up copies")

            await self._warmer.repair(most=None, after_each=advance)
            await self._warmer.verify()  # lets go of what is replaced now, and makes room by that
            before, lacking = lacking, self._ledger.under_replicated_bytes()
            if lacking >= before:
                break

    async def _code(self, told: Told) -> None:
        """Make shards of what is large and is to be stored so; repairs have their turn in between."""
        done = _CODED_AT_ONCE
        if self._transfer.policies.codes(used=False):
            await self._transfer.close_old(every=True)
        total, made = self._warmer.recoding.waiting(), 0
        while done:
            async with self._warmer.turn:
                done = await self._warmer.recoding.code_some(_CODED_AT_ONCE)
            made += done
            told(made, max(made, total), "making shards")

    async def _release(self) -> None:
        if self._draining is None:
            return
        await self._transfer.trim()
        await self._warmer.release_dead()
        if self._warmer.checkpoints is not None:
            await self._warmer.checkpoints.try_make()  # what is released must be named by none
        left = None
        while self._ledger.orphans_waiting and left != (orphans := len(self._ledger.orphans(limit=100_000))):
            left = orphans
            await self._warmer.release_orphans()

    def _renewed_since(self, began: float) -> int:
        count: int = self._db.value(
            "SELECT count(*) FROM (SELECT told_at, lease_end FROM replicas UNION ALL"
            " SELECT told_at, lease_end FROM record_logs UNION ALL SELECT told_at, lease_end FROM share_leases)"
            " WHERE told_at >= ? AND lease_end IS NOT NULL", (began,)
        )  # fmt: skip
        return count

    def _due_at(self, began: float) -> int:
        perhaps = [one for depot in self._depots for one in self._ledger.leased_replicas(depot.id, began)]
        others = self._warmer.links.due(began) + (self._warmer.logs.due(began) if self._warmer.logs is not None else 0)
        return others + sum(replica.told_at < began and renewal_due(replica, began) for replica in perhaps)

    def state(self) -> dict[str, Any]:
        """What status says of copies and leases."""
        now = self._ledger.now()
        return {
            "under_replicated_bytes": self._ledger.under_replicated_bytes(),
            "at_risk_bytes": at_risk_bytes(self._db, now),
            "survives_until": survives_until(self._db, now),
            "is_empty": not self._db.value("SELECT EXISTS (SELECT 1 FROM segments WHERE length > 0)"),
        }
