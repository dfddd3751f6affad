"""Verifying replicas and making up those that are missing. Works without keys."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError
from ibpfs.exnode_store.coded_rows import survivors
from ibpfs.exnode_store.copying import Copying, Store
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.erasure import Coded
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.placement import choose_depots
from ibpfs.exnode_store.renewal import Renewal
from ibpfs.exnode_store.shard_loading import DIFFERS
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import CHUNK, Verification, chunks

_log = logging.getLogger(__name__)

#: Segments that one look repairs; the rest is for the next.
_REPAIRS = 20
#: What repairs in the background copy at most, in bytes per second, but for what the next loss would take.
REPAIR_RATE = 32 * 1024 * 1024
#: Replicas whose renewal was refused that one look considers.
_ENDING = 200
#: Seconds after which a replica that was found to be bad, but could not be replaced, is looked at again.
_VERIFY_AGAIN = 600.0


@dataclass(frozen=True, slots=True)
class Shortage:
    """A closed segment with fewer sound replicas than its policy asks for, and how many more of them may be lost."""

    segment: int
    length: int
    missing: int
    spare: int = 0


def most_endangered(shortages: Iterable[Shortage]) -> list[Shortage]:
    """In the order of repair: the one that is lost soonest first, then the one that misses most."""
    return sorted(shortages, key=lambda one: (one.spare, -one.missing, one.segment))


def within(shortages: Sequence[Shortage], budget: float) -> list[Shortage]:
    """Of what is to be repaired, in that order: all that the next loss would take, then so many bytes of the others, or
    one of them."""
    chosen: list[Shortage] = []
    for one in shortages:
        if one.spare > 0:
            cost = one.length * one.missing
            if chosen and cost > budget:
                break
            budget -= cost
        chosen.append(one)
    return chosen


@contextmanager
def _not_yet(replica: Replica) -> Iterator[None]:
    """What a depot cannot tell now is asked again with the next look."""
    try:
        yield
    except (DepotError, DepotUnreachable, DataError) as error:
        _log.info("segment %d: allocation %s is not verified yet: %s", replica.segment, replica.read.label, error)


class Repairing:
    """Looks at what is suspect, and copies what has too few sound replicas."""

    def __init__(
        self, ledger: Ledger, depots: DepotSet, transfer: Transfer, copying: Copying, verification: Verification,
        renewal: Renewal,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._copying = copying
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
            if replica.shard is not None and self._has_twin(replica):  # it was replaced before it was seen to be sound
                self._ledger.drop_replica(replica)
            return
        self._bad[replica.id] = trio.current_time()
        if fault != DIFFERS:
            self._gone.add(replica.id)

    def _has_twin(self, replica: Replica) -> bool:
        """Whether the same shard is elsewhere, too."""
        alike = [one for one in self._ledger.replicas(replica.segment) if one.shard == replica.shard]
        return any(one.id != replica.id and not one.suspect and not self._ends(one) for one in alike)

    async def _is_dispensable(self, replica: Replica) -> bool:
        """Whether nothing is lost with a bad replica: it is replaced; or it takes the room of its replacement."""
        segment = replica.segment
        if segment in self._verification.damaged:  # of a slice that is sound nowhere, some frames may be sound here
            return False
        if not self._ledger.is_short(segment):
            return True
        if self._depots.get(replica.depot).free_bytes >= self._ledger.stored_length(replica):
            return False  # a copy is made first: some slice may be sound here alone
        if replica.shard is not None:
            return len(await self._transfer.sound_shards(segment)) > 0
        for other in self._ledger.replicas(segment):
            if not other.suspect and not await self._verification.fault(other):
                return self._ledger.replica(replica.id) is not None
        return False

    async def repair(
        self, most: int | None = _REPAIRS, after_each: Callable[[], None] = lambda: None, *, budget: float = math.inf
    ) -> None:
        """Make up missing replicas of closed segments, from the sound ones, where a depot can take them; of those that
        are in no danger yet, about `budget` bytes."""
        await self._close_ending()
        for shortage in within(most_endangered(self._shortages())[:most], budget):
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
            lasting = self._lasting(segment)
            coded = self._ledger.coded(segment)
            missing = self._ledger.wanted_copies(segment) - len(lasting)
            if coded is not None:
                missing = len(set(self._ledger.shards(segment)) - {one.shard for one in lasting})
            if missing > 0 and not self._ledger.is_open(segment):
                length, spare = self._ledger.segment_length(segment), survivors(lasting, coded)
                short[segment] = Shortage(segment, length, missing, spare)
        return list(short.values())

    def _lasting(self, segment: int) -> list[Replica]:
        return [one for one in self._ledger.replicas(segment) if not (one.suspect or self._ends(one))]

    def _ends(self, replica: Replica) -> bool:
        return replica.id in self._renewal.refused

    async def augment(self, shortage: Shortage) -> None:
        """Make so many further replicas of a closed segment, or as many as there are depots for; of a coded one, the
        shards that it lacks on depots that stay."""
        coded = self._ledger.coded(shortage.segment)
        if coded is not None:
            await self._make_shards(shortage.segment, coded)
            return
        for depot in self._choose(shortage.segment, shortage.missing, shortage.length):
            await self._copy_to(depot, shortage)

    def _choose(self, segment: int, missing: int, length: int) -> list[Depot]:
        """Depots for so many further replicas."""
        taken = self._taken(segment)
        labels = self._transfer.policies.get(self._ledger.policy_of(segment)).labels
        held = self._domains(segment, labels)
        candidates = [depot.candidate(labels) for depot in self._depots if depot.id not in taken]
        chosen = choose_depots(candidates, missing, length, held)
        if len(chosen) < missing:
            # A depot that does not renew may still lease anew.
            ending = {one.depot for one in self._ledger.replicas(segment) if self._ends(one)} - set(chosen)
            again = [depot.candidate(labels) for depot in self._depots if depot.id in ending]
            chosen += choose_depots(again, missing - len(chosen), length, held)
        return [self._depots.get(number) for number in chosen]

    async def _make_shards(self, segment: int, coded: Coded) -> None:
        staying = {depot.id for depot in self._depots if depot.role == "active"}
        there = {one.shard for one in self._lasting(segment) if one.depot in staying}
        missing = [number for number in self._ledger.shards(segment) if number not in there]
        for number, depot in zip(missing, self._choose(segment, len(missing), coded.shard_length), strict=False):
            data = await self._transfer.shard(segment, number)
            new = await self._copying.put(depot, data, number)
            if self._ledger.coded(segment) != coded:  # released meanwhile, or stored in whole copies again
                self._ledger.abandon_pending([new.pending])
                return
            self._ledger.add_replica(segment, new)
            _log.info("segment %d: shard %d is on %s, too", segment, number, depot.address)

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
        if self._ledger.coded(segment) is not None:
            at_hand = self._ledger.spare(segment) >= 0
        replaceable = at_hand and segment not in self._verification.damaged
        return {replica.depot for replica in replicas if not (replaceable and replica.id in self._bad)}

    async def _copy_to(self, depot: Depot, shortage: Shortage) -> None:
        new = await self._copying.make(depot, shortage.length, partial(self._fill, depot, shortage))
        unchanged = self._ledger.segment_length(shortage.segment) == shortage.length
        if not unchanged or self._ledger.coded(shortage.segment) is not None:  # released meanwhile, or coded
            self._ledger.abandon_pending([new.pending])
            return
        self._ledger.add_replica(shortage.segment, new)
        _log.info("segment %d: new replica on %s", shortage.segment, depot.address)

    def _holds(self, depot: Depot, segment: int) -> bool:
        return any(replica.depot == depot.id for replica in self._ledger.replicas(segment))

    async def _fill(self, depot: Depot, shortage: Shortage, store: Store) -> None:
        for start, stop, runs in chunks(self._ledger.stored_slices(shortage.segment), shortage.length, CHUNK):
            data, complete = await self._verification.load_best(shortage.segment, start, stop, runs)
            # One bad slice is no reason not to keep the others alive, and readers verify; but once on a depot will do.
            if not complete and self._holds(depot, shortage.segment):
                raise DataError("a slice is sound on no depot that answers")
            await store(data)
