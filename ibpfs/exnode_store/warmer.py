"""The warmer: tasks that keep files alive (renew leases, make up missing replicas) and release what nobody needs.

What is due is decided by pure functions below; the class carries it out. Works without keys.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import trio

from ibpfs.depot.capability import CapabilitySet
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.allocator import LONG_LEASE, SHORT_LEASE, Allocator, Policy
from ibpfs.exnode_store.compaction import plan_packing
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, Orphan, Replica, StoredRun
from ibpfs.exnode_store.placement import FAILED, OK, choose_depots
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import CHUNK, DIFFERS, Verification, chunks

_log = logging.getLogger(__name__)

RELEASE_EVERY = 1.0
#: Allocations that one call gives back.
_RELEASES = 64
LOOK_EVERY = 5.0
#: Segments that one look repairs; the rest is for the next.
_REPAIRS = 20
#: Seconds after which a replica that was found to be bad, but could not be replaced, is looked at again.
_VERIFY_AGAIN = 600.0
#: Stored bytes that one append of compaction moves, and one look.
_MOVE_AT_ONCE = 4 * 1024 * 1024
_SLICES_AT_ONCE = 256
_MOVE_PER_LOOK = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Shortage:
    """A closed segment with fewer sound replicas than its policy asks for."""

    segment: int
    length: int
    missing: int


def renewal_due(replica: Replica, now: float) -> bool:
    """Whether a lease has run for 50 to 70 % of its time; where in between is the replica's own constant."""
    if replica.lease_end is None:
        return False
    share = 0.5 + 0.2 * (replica.id * 2654435761 % 2**32) / 2**32
    return now >= replica.told_at + share * (replica.lease_end - replica.told_at)


def most_endangered(shortages: Iterable[Shortage]) -> list[Shortage]:
    """In the order of repair: the one that misses most first."""
    return sorted(shortages, key=lambda one: (-one.missing, one.segment))


@contextmanager
def _later() -> Iterator[None]:
    """A local disk that is full is no reason to end: the work is taken up again with the next look."""
    try:
        yield
    except* (NoSpace, OSError) as group:  # of several depots at once, perhaps
        _log.info("upkeep of the volume waits: %s", group.exceptions[0])


@contextmanager
def _not_yet(replica: Replica) -> Iterator[None]:
    """What a depot cannot tell now is asked again with the next look."""
    try:
        yield
    except (DepotError, DepotUnreachable) as error:
        _log.info("segment %d: allocation %s is not verified yet: %s", replica.segment, replica.read.label, error)


class Warmer:
    """Runs beside the flusher in whoever owns the volume."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, transfer: Transfer) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._allocator = Allocator(db, ledger, depots)
        self.turn = trio.Lock()  # held by whoever renews, verifies and repairs: two would make copies twice
        self._packing = trio.Lock()
        self._verification = Verification(db, ledger, transfer)
        self._bad: dict[int, float] = {}  # suspect replicas that were found to be bad, and when
        self._gone: set[int] = set()  # those of them of which the depot has nothing

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._release_for_ever)
            nursery.start_soon(self._keep_alive)

    # Releasing (I5)

    async def _release_for_ever(self) -> None:
        while True:
            if self._ledger.orphans_waiting:
                with _later():
                    await self.release_orphans()
            await trio.sleep(RELEASE_EVERY)

    async def release_orphans(self) -> None:
        """Give the orphans that there are now back to their depots; those of silent depots stay for later."""
        answering = [depot for depot in self._depots if depot.state == OK and depot.status]
        orphans = self._ledger.orphans(limit=1000, depots=[depot.id for depot in answering])
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

    # Keeping alive

    async def _keep_alive(self) -> None:
        await self._depots.wait_for_all(LOOK_EVERY)
        with _later():
            async with self.turn:
                await self.renew()  # leases that ended while nobody was here, before anyone reads
        while True:
            await trio.sleep(self._pause())
            with _later():
                async with self.turn:
                    await self.renew()
                    await self.verify()
                    await self.repair()
                await self.pack(_MOVE_PER_LOOK)

    def _pause(self) -> float:
        """Short leases are looked at more often: between 50 and 70 % of each there has to be a look."""
        longest = [depot.status.max_lease for depot in self._depots if depot.status and depot.status.max_lease]
        return min([LOOK_EVERY, *(lease / 10 for lease in longest)])

    async def renew(self, *, every: bool = False) -> None:
        """Renew the leases that are due, or `every` one, on depots that answer."""
        now = time.time()
        for depot in self._depots:
            if depot.state != OK or depot.status is None:
                continue
            for replica in self._ledger.leased_replicas(depot.id, math.inf if every else now):
                if every or renewal_due(replica, now):
                    await self._renew(depot, replica)

    async def _renew(self, depot: Depot, replica: Replica) -> None:
        try:
            status = await depot.call(lambda: depot.client.probe(replica.manage))
            end: float | None = None
            if status.seconds_left is not None:
                end = await self._extend(depot, replica, status.max_size, time.time() + status.seconds_left)
        except CapabilityNotFound:
            self._lost(depot, replica)
        except (DepotError, DepotUnreachable) as error:
            _log.warning("depot %s allocation %s: not renewed: %s", depot.address, replica.read.label, error)
        else:
            self._ledger.renewed(replica, end)

    async def _extend(self, depot: Depot, replica: Replica, size: int, end: float) -> float | None:
        """Lease for longer; what others lease for longer than we would is left as it is."""
        if replica.imported and end > time.time() + LONG_LEASE:
            return end
        return await self._allocator.extend(depot, replica.manage, size)

    def _lost(self, depot: Depot, replica: Replica) -> None:
        now = self._ledger.replica(replica.id)
        if now is None:  # released while we asked
            return
        if not now.suspect:
            _log.warning("depot %s allocation %s is lost: the depot does not know it", depot.address, now.read.label)
        others = [one for one in self._ledger.replicas(now.segment) if one.id != now.id and not one.suspect]
        if others:
            self._ledger.drop_replica(now)
        elif not now.suspect:
            # Perhaps the depot runs on another store than yesterday. Never let go of the last capability.
            self._ledger.suspect(now)

    async def verify(self, most: int | None = _REPAIRS) -> None:
        """Look at suspect replicas on depots that answer: sound ones are trusted again, bad ones go once replaced."""
        suspects = {replica.id: replica for replica in self._ledger.suspects()}
        self._bad = {number: since for number, since in self._bad.items() if number in suspects}
        due = trio.current_time() - _VERIFY_AGAIN
        self._gone &= suspects.keys()
        at_hand = [replica for replica in suspects.values() if self._transfer.is_at_hand(replica)]
        unknown = [replica for replica in at_hand if self._bad.get(replica.id, -math.inf) < due]
        for replica in unknown[:most]:
            with _not_yet(replica):
                await self._examine(replica)
        for replica in at_hand:
            with _not_yet(replica):
                if replica.id in self._bad and await self._is_dispensable(replica):
                    _log.info("segment %d: allocation %s is released", replica.segment, replica.read.label)
                    self._ledger.drop_replica(replica)

    async def _examine(self, replica: Replica) -> None:
        fault = await self._verification.fault(replica)
        if self._ledger.replica(replica.id) is None:  # released while it was looked at
            return
        _log.info("segment %d: allocation %s was suspect: %s", replica.segment, replica.read.label, fault or "sound")
        self._bad.pop(replica.id, None)
        self._gone.discard(replica.id)
        if not fault:
            self._ledger.verified(replica)
            return
        self._bad[replica.id] = trio.current_time()
        if fault != DIFFERS:
            self._gone.add(replica.id)

    async def _is_dispensable(self, replica: Replica) -> bool:
        """Whether nothing is lost with a bad replica: it is replaced; or it takes the room of its replacement."""
        segment = replica.segment
        if segment in self._verification.damaged:  # of a slice that is sound nowhere, some frames may be sound here
            return False
        if not self._ledger.is_short(segment):
            return True
        if self._depots.get(replica.depot).free_bytes >= self._ledger.segment_length(segment):
            return False  # a copy is made first: some slice may be sound here alone
        for other in self._ledger.replicas(segment):
            if not other.suspect and not await self._verification.fault(other):
                return self._ledger.replica(replica.id) is not None
        return False

    def is_damaged(self, segment: int) -> bool:
        """Whether a slice of it was found to be sound nowhere: no replica of it is let go."""
        return segment in self._verification.damaged

    async def repair(self, most: int | None = _REPAIRS, after_each: Callable[[], None] = lambda: None) -> None:
        """Make up missing replicas of closed segments, from the sound ones, where a depot can take them."""
        for shortage in most_endangered(self._shortages())[:most]:
            try:
                await self.augment(shortage)
            except (DepotError, DepotUnreachable, DataError) as error:
                _log.info("segment %d: no further replica yet: %s", shortage.segment, error)
            after_each()

    # Compaction: stored bytes move as they are, no key is needed

    async def pack(self, most: int) -> int:
        """Move live slices out of half-dead and small segments, at most about `most` bytes; return how many."""
        async with self._packing:
            return await self._pack(most)

    async def _pack(self, most: int) -> int:
        moved = 0
        packing = {row[0]: row for row in self._ledger.packing()}
        for segment in plan_packing(list(packing.values())):
            if moved >= most:
                break
            policy = self._transfer.policy(packing[segment][1])
            # With fewer depots each append has a segment of its own: small ones would only make small ones.
            if segment in self._verification.damaged or self._transfer.answering() < policy.copies:
                continue
            try:
                moved += await self._move(segment, policy)
            except DataError as error:
                _log.info("segment %d: not compacted yet: %s", segment, error)
            except (DepotError, DepotUnreachable, NoSpace) as error:
                _log.info("segment %d: not compacted yet: %s", segment, error)
                break
        return moved

    async def pack_all(self, progress: Callable[[int, int], None]) -> int:
        """Pack until there is nothing worth it, and release what that frees; return the stored bytes moved."""
        await self._transfer.close_old(every=True)
        live = {segment: live for segment, _, _, live in self._ledger.packing()}
        total, done = sum(live[segment] for segment in plan_packing(self._ledger.packing())), 0
        while moved := await self.pack(_MOVE_PER_LOOK):
            done += moved
            progress(min(done, total), total)
            await self._transfer.close_old(every=True)
        await self.release_orphans()
        return done

    async def _move(self, segment: int, policy: Policy) -> int:
        batch: list[StoredRun] = []
        moved = size = 0
        for run in self._ledger.stored_slices(segment):
            if batch and (size + run.length > _MOVE_AT_ONCE or len(batch) == _SLICES_AT_ONCE):
                await self._move_batch(segment, policy, batch)
                batch, size = [], 0
            batch.append(run)
            size += run.length
            moved += run.length
        if batch:
            await self._move_batch(segment, policy, batch)
        return moved

    async def _move_batch(self, segment: int, policy: Policy, batch: list[StoredRun]) -> None:
        pieces = await self._verification.slices(segment, batch)
        length = sum(run.length for run in batch)
        target, offset = await self._transfer.append(policy, pieces, length)
        moves: list[tuple[int, int]] = []
        at = offset
        for run in batch:
            moves.append((run.row, at))
            at += run.length
        try:
            if not target.sound:
                raise DepotUnreachable(f"{policy.copies} copies are wanted and not all depots took the bytes")
            with self._transfer.committing(target) as row:
                self._ledger.move(row, at, moves)
        finally:
            await self._transfer.release(target)

    def _shortages(self) -> list[Shortage]:
        return [Shortage(*row) for row in self._ledger.shortages()]

    @property
    def under_replicated_bytes(self) -> int:
        """Stored bytes of segments that have fewer sound replicas than their policy asks for."""
        return self._ledger.under_replicated_bytes()

    async def augment(self, shortage: Shortage) -> None:
        """Make so many further replicas of a closed segment, or as many as there are depots for."""
        taken = self._taken(shortage.segment)
        candidates = [depot.candidate() for depot in self._depots if depot.id not in taken]
        for number in choose_depots([one for one in candidates if one.state != FAILED], shortage.missing,
                                    shortage.length):  # fmt: skip
            await self._copy_to(self._depots.get(number), shortage)

    def _taken(self, segment: int) -> set[int]:
        """The depots that need no copy: those with a replica, unless it is bad and a sound one can be made now."""
        replicas = self._ledger.replicas(segment)
        sources = [replica for replica in replicas if replica.id not in self._gone]
        at_hand = bool(sources) and all(map(self._transfer.is_at_hand, sources))
        replaceable = at_hand and segment not in self._verification.damaged
        return {replica.depot for replica in replicas if not (replaceable and replica.id in self._bad)}

    async def _copy_to(self, depot: Depot, shortage: Shortage) -> None:
        longest = depot.status.max_lease if depot.status else None
        first = SHORT_LEASE if longest is None else min(SHORT_LEASE, longest)
        caps = await depot.call(lambda: depot.client.allocate(shortage.length, first))
        wire = caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key
        (row,) = self._ledger.add_pending([(depot.id, *wire)])
        try:
            await self._fill(depot, caps, shortage)
            await self._db.sync()
            end = await self._allocator.extend(depot, caps.manage.wire_key, shortage.length)
        except BaseException:
            self._ledger.abandon_pending([row])
            raise
        if self._ledger.segment_length(shortage.segment) != shortage.length:  # released meanwhile
            self._ledger.abandon_pending([row])
            return
        self._ledger.add_replica(shortage.segment, NewReplica(row, depot.id, *wire, end, time.time()))
        _log.info("segment %d: new replica on %s", shortage.segment, depot.address)

    def _holds(self, depot: Depot, segment: int) -> bool:
        return any(replica.depot == depot.id for replica in self._ledger.replicas(segment))

    async def _fill(self, depot: Depot, caps: CapabilitySet, shortage: Shortage) -> None:
        for start, stop, runs in chunks(self._ledger.stored_slices(shortage.segment), shortage.length, CHUNK):
            data, complete = await self._verification.load_best(shortage.segment, start, stop, runs)
            # One bad slice is no reason not to keep the others alive, and readers verify; but once on a depot will do.
            if not complete and self._holds(depot, shortage.segment):
                raise DataError("a slice is sound on no depot that answers")
            taken = await depot.call(lambda data=data: depot.client.store(caps.write.wire_key, [data]))  # type: ignore[misc]
            if taken != stop - start:
                raise DepotUnreachable(f"{depot.address} took {taken} of {stop - start} bytes")
