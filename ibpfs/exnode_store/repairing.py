"""Verifying replicas and making up those that are missing. Works without keys."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ibpfs.depot.capability import CapabilitySet
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError
from ibpfs.exnode_store.allocator import SHORT_LEASE, Allocator
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, Replica
from ibpfs.exnode_store.placement import choose_depots
from ibpfs.exnode_store.renewal import Renewal
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import CHUNK, DIFFERS, Verification, chunks

_log = logging.getLogger(__name__)

#: Segments that one look repairs; the rest is for the next.
_REPAIRS = 20
#: Replicas whose renewal was refused that one look considers.
_ENDING = 200
#: Seconds after which a replica that was found to be bad, but could not be replaced, is looked at again.
_VERIFY_AGAIN = 600.0


@dataclass(frozen=True, slots=True)
class Shortage:
    """A closed segment with fewer sound replicas than its policy asks for."""

    segment: int
    length: int
    missing: int


def most_endangered(shortages: Iterable[Shortage]) -> list[Shortage]:
    """In the order of repair: the one that misses most first."""
    return sorted(shortages, key=lambda one: (-one.missing, one.segment))


@contextmanager
def _not_yet(replica: Replica) -> Iterator[None]:
    """What a depot cannot tell now is asked again with the next look."""
    try:
        yield
    except (DepotError, DepotUnreachable) as error:
        _log.info("segment %d: allocation %s is not verified yet: %s", replica.segment, replica.read.label, error)


class Repairing:
    """Looks at what is suspect, and copies what has too few sound replicas."""

    def __init__(
        self, db: Database, ledger: Ledger, depots: DepotSet, transfer: Transfer, allocator: Allocator,
        verification: Verification, renewal: Renewal,
    ) -> None:  # fmt: skip
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._allocator = allocator
        self._verification = verification
        self._renewal = renewal
        self._bad: dict[int, float] = {}  # suspect replicas that were found to be bad, and when
        self._gone: set[int] = set()  # those of them of which the depot has nothing

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

    async def repair(self, most: int | None = _REPAIRS, after_each: Callable[[], None] = lambda: None) -> None:
        """Make up missing replicas of closed segments, from the sound ones, where a depot can take them."""
        await self._close_ending()
        for shortage in most_endangered(self._shortages())[:most]:
            try:
                await self.augment(shortage)
            except (DepotError, DepotUnreachable, DataError) as error:
                _log.info("segment %d: no further replica yet: %s", shortage.segment, error)
            after_each()

    async def _close_ending(self) -> None:
        """A segment cannot move while it takes appends."""
        if any(self._ledger.is_open(replica.segment) for replica in self._renewal.ending(_ENDING)):
            await self._transfer.close_old(every=True)

    def _shortages(self) -> list[Shortage]:
        """What lacks replicas now, and what will when the leases are over that depots refused to renew."""
        short = {row[0]: Shortage(*row) for row in self._ledger.shortages()}
        for segment in {replica.segment for replica in self._renewal.ending(_ENDING)}:
            lasting = [one for one in self._ledger.replicas(segment) if not (one.suspect or self._ends(one))]
            missing = self._ledger.wanted_copies(segment) - len(lasting)
            if missing > 0 and not self._ledger.is_open(segment):
                short[segment] = Shortage(segment, self._ledger.segment_length(segment), missing)
        return list(short.values())

    def _ends(self, replica: Replica) -> bool:
        return replica.id in self._renewal.refused

    async def augment(self, shortage: Shortage) -> None:
        """Make so many further replicas of a closed segment, or as many as there are depots for."""
        taken = self._taken(shortage.segment)
        labels = self._transfer.policies.get(self._ledger.policy_of(shortage.segment)).labels
        held = self._domains(shortage.segment, labels)
        candidates = [depot.candidate(labels) for depot in self._depots if depot.id not in taken]
        chosen = choose_depots(candidates, shortage.missing, shortage.length, held)
        if len(chosen) < shortage.missing:
            # A depot that does not renew may still lease anew.
            ending = {one.depot for one in self._ledger.replicas(shortage.segment) if self._ends(one)} - set(chosen)
            again = [depot.candidate(labels) for depot in self._depots if depot.id in ending]
            chosen += choose_depots(again, shortage.missing - len(chosen), shortage.length, held)
        for number in chosen:
            await self._copy_to(self._depots.get(number), shortage)

    def _domains(self, segment: int, labels: Sequence[str]) -> list[frozenset[str]]:
        """The failure domains of the copies that count: sound, and on depots that stay."""
        sound = [one for one in self._ledger.replicas(segment) if not (one.suspect or self._ends(one))]
        depots = [self._depots.find(one.depot) for one in sound]
        return [depot.domain(labels) for depot in depots if depot is not None and depot.role == "active"]

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
        self._ledger.add_replica(shortage.segment, NewReplica(row, depot.id, *wire, end, self._ledger.now()))
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
