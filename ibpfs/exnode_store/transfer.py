"""Moving sealed bytes: appending to open segments on several depots; loading them again is in `loading`.

A failed depot is answered with the next one. Knows no file and no key of it.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable, NoRoom
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.allocator import SEGMENT_SIZE, SPARE_AGE, STRAGGLER_LIMIT, Allocator, OpenSegment, pick
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, Replica
from ibpfs.exnode_store.loading import Loading
from ibpfs.exnode_store.placement import usable_bytes
from ibpfs.exnode_store.policies import Policies, Policy
from ibpfs.exnode_store.sealing import MAX_SLICE, Buffer

_log = logging.getLogger(__name__)

#: Appends side by side, however few depots there are, and however many.
_LEAST_LANES, MOST_LANES = 3, 8
#: What statfs and writes leave free of each depot's room for headers, tags and the ends of segments: a part of it all,
#: and bytes.
_OVERHEAD = 1 / 256, 256 * 1024
#: A segment with less room than this is full: kept open for so little, it would hold back what is deleted from it.
_LEAST_ROOM = 64 * 1024
#: One part of so many is not given back: that takes two requests, and a sync of the depot's.
_CRUMBS = 1024
#: Segments are made beforehand only while there is room for so many more.
_SPARE_ROOM = 8 * SEGMENT_SIZE
#: What the others may take, in bytes per second, beside STRAGGLER_LIMIT, when min_copies have acknowledged.
_STRAGGLER_RATE = 1024 * 1024
#: Seconds for which an append waits for another to end, and bytes up to which it does not: small fsyncs side by side.
_SOON, _FEW = 0.02, 64 * 1024
#: Seconds between looks at whether a depot that takes an append is slow.
_LOOK_AT_PACE = 0.25


class Transfer(Loading):
    """Appends and loads. One per open volume."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet) -> None:
        super().__init__(ledger, depots)
        self._db = db
        self._allocator = Allocator(db, ledger, depots)
        self.policies = Policies(db)
        self._idle: list[OpenSegment] = []
        self.untrimmed: set[int] = set()  # closed segments whose allocations reserve more than they hold
        self._used: dict[int, float] = {}  # when something was last appended, by policy
        self._moves = 0
        self._open_segments: set[OpenSegment] = set()  # the idle ones, and those that somebody appends to
        self._released = trio.Event()  # one of them can be had, or is closed
        self.commit_waiting: Callable[[], None] = lambda: None  # has what is `uncommitted` in open segments committed
        self.meanwhile: Callable[[], bool] = lambda: False  # as `DepotClient.store` has it, where there is one depot

    def policy(self, number: int) -> Policy:
        return self.policies.get(number)

    # Appending

    async def append(self, policy: Policy, pieces: Sequence[Buffer], length: int) -> tuple[OpenSegment, int]:
        """Put `pieces` (together `length` bytes) at the end of an open segment, on at least min_copies depots.

        Returns the segment, which the caller then commits into and gives back with `release`, and the offset.
        Raises NoSpace or DepotUnreachable; then nothing of it counts.
        """
        while True:
            segment = self._take(policy, length) or await self._soon_free(policy, length)
            segment = segment or await self._open_somehow(policy, length)
            await self._append_to(segment, policy, pieces, length)
            if segment.row is None or not segment.lost:
                break
            # What is committed in it has its copy on the depot that missed this, and keeps it: on to another segment.
            segment.lost = []
            await self._give_up(segment)
        offset = segment.length
        segment.length += length
        return segment, offset

    async def _append_to(self, segment: OpenSegment, policy: Policy, pieces: Sequence[Buffer], length: int) -> None:
        try:
            acknowledged = await self._store_everywhere(segment, policy, pieces, length)
        except BaseException:
            segment.sound = False
            with trio.CancelScope(shield=True):
                await self._give_up(segment)
            raise
        if acknowledged < policy.min_copies:
            segment.sound = False
            await self._give_up(segment)
            raise DepotUnreachable(f"{acknowledged} of {policy.min_copies} depots took the bytes")

    def _take(self, policy: Policy, length: int) -> OpenSegment | None:
        """An open segment; none on a slow depot where a new one would lie on better ones."""
        self._used[policy.id] = trio.current_time()
        segment = pick(self._idle, policy, length, self._allocator.slow_depots)
        if segment is not None:
            self._idle.remove(segment)
        return segment

    async def _soon_free(self, policy: Policy, length: int) -> OpenSegment | None:
        """For an append of less than a long slice, one that somebody appends to, where that ends soon: to open another
        takes 10 ms, and the commit of the first append to that does not wait for others."""
        segment = None
        if _FEW < length < MAX_SLICE:
            with trio.move_on_after(_SOON):
                while segment is None and any(one.is_at_hand(policy, length) for one in self._open_segments):
                    await self._released.wait()
                    segment = self._take(policy, length)
        return segment

    async def prepare(self) -> None:
        """Where depots are far, have an empty segment for each policy that is written under: making one takes three
        round trips, which nobody who waits for an fsync need wait for."""
        if not any(depot.is_far and depot.role == "active" for depot in self._depots):
            return
        now = trio.current_time()
        self._used = {number: used for number, used in self._used.items() if now - used < SPARE_AGE}
        for number in list(self._used):
            policy = self.policy(number)
            has_room = (self.free_bytes(policy.copies) or 0) > _SPARE_ROOM
            if has_room and not any(one.policy == number and one.is_spare and one.fits(1) for one in self._idle):
                await self.release(await self._open_somehow(policy, _LEAST_ROOM))

    @property
    def lanes(self) -> int:
        """How many appends may run side by side: two for each depot, so that none idles, or waits for a slow one."""
        return min(MOST_LANES, max(_LEAST_LANES, 2 * self.answering() // self.policies.usual.copies))

    async def _open_somehow(self, policy: Policy, length: int) -> OpenSegment:
        with self._moving_room():
            try:
                segment = await self._allocator.open(policy, length)
            except (NoSpace, NoRoom):
                if not self._idle:
                    raise
                await self.close_old(every=True)  # gives back what they reserve and do not use
                segment = await self._allocator.open(policy, length)
            self._open_segments.add(segment)
        return segment

    async def _store_everywhere(
        self, segment: OpenSegment, policy: Policy, pieces: Sequence[Buffer], length: int
    ) -> int:
        if len(segment.replicas) == len(list(self._depots)) == 1:
            ((depot, replica),) = segment.replicas
            results = {depot.id: await _store(depot, replica, pieces, length, self.meanwhile)}
        else:
            results = await self._store_side_by_side(segment, policy, pieces, length)
        lost = [depot.id for depot, _ in segment.replicas if not results.get(depot.id)]
        if lost or len(segment.replicas) < policy.copies:
            segment.sound = False
            segment.lost = lost
        return sum(results.values())

    async def _store_side_by_side(
        self, segment: OpenSegment, policy: Policy, pieces: Sequence[Buffer], length: int
    ) -> dict[int, bool]:
        """Which depots took the bytes, or did not; those that had nothing to say in time are missing. Not for the only
        depot, beside which there is nobody to prefer: the tasks are 60 us of an fsync."""
        results: dict[int, bool] = {}

        async def store(depot: Depot, replica: NewReplica) -> None:
            results[depot.id] = await _store(depot, replica, pieces, length)
            if len(results) == len(segment.replicas):
                nursery.cancel_scope.cancel()
            if sum(results.values()) >= policy.min_copies:
                patience = STRAGGLER_LIMIT + length / _STRAGGLER_RATE
                scope.deadline = min(scope.deadline, trio.current_time() + patience)

        async def give_up_on_slow() -> None:
            """Where better depots are at hand, the bytes had better go there."""
            while True:
                await trio.sleep(_LOOK_AT_PACE)
                slow = any(depot.is_slow for depot, _ in segment.replicas if depot.id not in results)
                if slow and not self._allocator.slow_depots(policy):
                    scope.cancel()

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for depot, replica in segment.replicas:
                    nursery.start_soon(store, depot, replica)
                nursery.start_soon(give_up_on_slow)
        for depot, _ in segment.replicas if scope.cancelled_caught else []:
            if depot.id not in results:
                depot.late()
        return results

    @contextmanager
    def committing(self, segment: OpenSegment) -> Iterator[int]:
        """The transaction that commits what was appended; gives the segment's row, made with its first commit (I4)."""
        try:
            with self._db.transaction():
                row = self._commit_row(segment)
                yield row
        except BaseException:
            segment.sound = False  # a transaction that was rolled back made no row, and dropped no replica
            raise
        segment.row, segment.lost = row, []

    def _commit_row(self, segment: OpenSegment) -> int:
        row = segment.row
        if row is None:
            row = self._ledger.add_segment(segment.policy, [replica for _, replica in segment.replicas])
        for replica in self._ledger.replicas(row) if segment.lost else []:
            if replica.depot in segment.lost:
                self._ledger.drop_replica(replica)
        return row

    async def release(self, segment: OpenSegment) -> None:
        """Give an appended segment back for further appends, or close it."""
        if segment.fits(_LEAST_ROOM):
            self._idle.append(segment)
            self._tell()
        else:
            await self._give_up(segment)

    def _tell(self) -> None:
        self._released.set()
        self._released = trio.Event()

    async def close_old(self, *, every: bool = False) -> None:
        """Close the idle segments that are too old (or `every` one) to take appends."""
        await self._close_idle([segment for segment in self._idle if every or not segment.fits(1)])

    async def close_on(self, depot: int) -> None:
        """Close the idle segments on a depot; those that were made beforehand, too."""
        await self._close_idle([one for one in self._idle if any(other.id == depot for other, _ in one.replicas)])

    async def _close_idle(self, old: Sequence[OpenSegment]) -> None:
        self._idle = [segment for segment in self._idle if segment not in old]
        # All of them before the first await: who closes them may be cancelled there.
        to_trim = [segment for segment in old if self._close(segment)]
        if to_trim:
            await self.trim()

    async def _give_up(self, segment: OpenSegment) -> None:
        if self._close(segment):
            await self.trim()

    def _close(self, segment: OpenSegment) -> bool:
        """No more appends; True when its allocations reserve more than they hold, and are to be trimmed."""
        is_sound, segment.sound = segment.sound, False
        if segment.uncommitted:  # what lies behind the committed length is about to be cut off
            self.commit_waiting()
        try:
            with self._db.transaction():
                is_full = is_sound and self._is_full(segment)
                if segment.row is None:
                    self._ledger.abandon_pending([replica.pending for _, replica in segment.replicas])
                else:
                    self._ledger.close_segment(segment.row)
        except (NoSpace, OSError) as error:
            _log.info("a segment is closed later: %s", error)
            self._idle.append(segment)
            return False
        self._open_segments.discard(segment)
        self._tell()
        for depot, _ in segment.replicas:
            depot.busy -= 1
        if segment.row is None or is_full:
            return False
        self.untrimmed.add(segment.row)
        return True

    def _is_full(self, segment: OpenSegment) -> bool:
        """But for crumbs, and with nothing in it that is not committed."""
        committed = 0 if segment.row is None else self._ledger.segment_length(segment.row)
        return committed == segment.length and segment.size - committed <= segment.size // _CRUMBS

    async def trim(self) -> None:
        """Give the room that `untrimmed` segments do not use back to the depots; one that is silent is asked later."""
        with self._moving_room():
            for segment in list(self.untrimmed):
                if await self._trim_segment(segment):
                    self.untrimmed.discard(segment)

    async def _trim_segment(self, segment: int) -> bool:
        # The ledger's length is what is committed; what lies behind it was never acknowledged.
        if self._ledger.coded(segment) is not None:  # shards are as long as they should be
            return True
        length = self._ledger.segment_length(segment)
        return all([await self._trim_replica(replica, length) for replica in self._ledger.replicas(segment) if length])

    async def _trim_replica(self, replica: Replica, length: int) -> bool:
        """False: worth another try."""
        try:
            depot = self._depots.get(replica.depot)
            if not depot.answers:
                return False
            await depot.call(lambda: depot.client.truncate(replica.manage, length), 5.0)
            await depot.look()  # who wants room next must know of this
        except DepotUnreachable:
            return False
        except DepotError as error:  # it cannot: the room stays reserved
            _log.info("segment %d: %s", replica.segment, self._describe(replica, error))
        return True

    # Room

    def free_bytes(self, copies: int) -> int | None:
        """File bytes that can still be stored `copies` times, by the depots' last figures; None before any is known."""
        known = [depot for depot in self._depots if depot.role == "active" and depot.status]
        if len(known) < copies:
            return None
        open_room = sum(segment.size - segment.length for segment in self._open_segments)
        share, fixed = _OVERHEAD
        usable = usable_bytes([depot.free_bytes for depot in known], copies) + open_room
        return max(0, usable - int(usable * share) - fixed)

    @contextmanager
    def _moving_room(self) -> Iterator[None]:
        """Between depots and open segments: meanwhile some of it is in neither figure."""
        self._moves += 1
        try:
            yield
        finally:
            self._moves -= 1

    def expects_room(self) -> bool:
        """Whether `free_bytes` is about to rise: depots that answer are to be given back what nobody needs."""
        if self._moves or len(self._open_segments) > len(self._idle):
            return True  # what an append under way leaves unused, or what died in it meanwhile, comes back after it
        answering = [depot.id for depot in self._depots if depot.answers and depot.status]
        return self._ledger.orphans_waiting and bool(self._ledger.orphans(1, answering))

    async def look(self) -> None:
        """Have the figures of the depots that answer anew."""

        async def look(depot: Depot) -> None:
            with suppress(DepotError, DepotUnreachable):
                await depot.look()

        async with trio.open_nursery() as nursery:
            for depot in self._depots:
                if depot.answers:
                    nursery.start_soon(look, depot)

    def answering(self) -> int:
        """How many of the depots that take new segments answer now."""
        return sum(depot.answers and depot.status is not None and depot.role == "active" for depot in self._depots)


async def _store(
    depot: Depot, replica: NewReplica, pieces: Sequence[Buffer], length: int,
    meanwhile: Callable[[], bool] | None = None,
) -> bool:  # fmt: skip
    try:
        return await depot.store(lambda: depot.client.store(replica.write, pieces, meanwhile), length) == length
    except (DepotError, DepotUnreachable) as error:
        # That a depot is silent has been said of the depot.
        level = logging.INFO if isinstance(error, DepotUnreachable) else logging.WARNING
        _log.log(level, "depot %s allocation %s: append refused: %s", depot.address, replica.write.label, error)
        return False
    except DataError as error:  # of our own disk
        _log.warning("nothing is appended: %s", error)
        return False
