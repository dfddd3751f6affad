"""Record logs on depots: making their copies, appending to them, reading them, keeping them alive. Needs no keys."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.allocator import SHORT_LEASE, Allocator
from ibpfs.exnode_store.checkpoints.log_rows import Copy, LogRows
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.ledger_rows import NewReplica
from ibpfs.exnode_store.placement import FAILED, choose_depots

#: Depots that hold a log, where there are so many.
WANTED = 3
#: Bytes of one STORE or LOAD.
PIECE = 4 * 1024 * 1024
#: Seconds that the others are waited for once a copy is complete.
_STRAGGLERS = 5.0

#: Reads (offset, length) of what is to be appended.
Source = Callable[[int, int], bytes]


class Logs:
    """The copies of a volume's record logs."""

    def __init__(self, db: Database, rows: LogRows, depots: DepotSet, allocator: Allocator) -> None:
        self._db = db
        self._rows = rows
        self._depots = depots
        self._allocator = allocator

    # Where

    def answering(self, copies: Iterable[Copy]) -> list[Copy]:
        """Those on depots that answer."""
        return [one for one in copies if (depot := self._depots.find(one.depot)) and depot.answers and depot.status]

    def staying(self, copies: Iterable[Copy]) -> list[Copy]:
        """Those on depots that are neither drained nor away."""
        return [
            one
            for one in copies
            if (depot := self._depots.find(one.depot)) and depot.role == "active" and depot.state != FAILED
        ]

    def candidates(self, size: int, without: Iterable[Copy]) -> list[int]:
        """Depots for further copies, the best first."""
        taken = {one.depot for one in without}
        here = [depot for depot in self._depots if depot.id not in taken and depot.status and depot.answers]
        return choose_depots([depot.candidate() for depot in here], WANTED, size)

    async def make(self, log: bytes, kind: str, size: int, most: int, without: Iterable[Copy] = (),
                   name: str | None = None) -> int:  # fmt: skip
        """Allocate up to `most` empty copies on depots without one; return how many. NoSpace when none has the room."""
        without = list(without)
        chosen = self.candidates(size, without)[:most]
        if not chosen and self.candidates(1, without):
            raise NoSpace("the depots have no room for a checkpoint")
        made = 0

        async def one(depot: Depot) -> None:
            nonlocal made
            with _refused():
                await self._allocate(depot, log, kind, size, name)
                made += 1

        async with trio.open_nursery() as nursery:
            for number in chosen:
                nursery.start_soon(one, self._depots.get(number))
        return made

    async def _allocate(self, depot: Depot, log: bytes, kind: str, size: int, name: str | None) -> None:
        longest = depot.status.max_lease if depot.status else None
        first = SHORT_LEASE if longest is None else min(SHORT_LEASE, longest)
        with depot.taking(size):
            caps = await depot.call(lambda: depot.client.allocate(size, first))
        keys = caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key
        row = self._rows.add_pending(depot.id, *keys)
        try:
            await self._db.sync()
            end = await self._allocator.extend(depot, keys[2], size)
        except BaseException:
            self._rows.abandon(row)
            raise
        self._rows.add(log, kind, size, NewReplica(row, depot.id, *keys, end, self._rows.now()), name)

    # Bytes

    async def append(self, copies: Sequence[Copy], source: Source, length: int) -> list[Copy]:
        """Append `length` bytes to those of the copies that are as long as their row says; return them."""
        done: list[Copy] = []

        async def one(copy: Copy) -> None:
            with _refused():
                if await self.size(copy) != copy.length:
                    return
                await self._store(copy, source, length)
                done.append(copy)
            if done:
                scope.deadline = min(scope.deadline, trio.current_time() + _STRAGGLERS)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for copy in self.answering(copies):
                    nursery.start_soon(one, copy)
        return done

    async def _store(self, copy: Copy, source: Source, length: int) -> None:
        depot = self._depots.get(copy.depot)
        for at in range(0, length, PIECE):
            piece = source(at, min(PIECE, length - at))
            taken = await depot.call(lambda piece=piece: depot.client.store(copy.write, [piece]))  # type: ignore[misc]
            if taken != len(piece):
                raise DepotUnreachable(f"{depot.address} took {taken} of {len(piece)} bytes")

    async def size(self, copy: Copy) -> int:
        """Bytes that the allocation holds now. DepotError, DepotUnreachable."""
        depot = self._depots.get(copy.depot)
        return (await depot.call(lambda: depot.client.probe(copy.manage))).size

    async def load(self, copy: Copy, offset: int, length: int) -> bytes:
        depot = self._depots.get(copy.depot)
        return bytes(await depot.call(lambda: depot.client.load(copy.read, offset, length)))

    async def catch_up(self, short: Copy, whole: Copy) -> bool:
        """Append to a copy what a longer one has more; False when what it holds cannot be continued so."""
        try:
            have = await self.size(short)
        except CapabilityNotFound:
            return False
        if have > whole.length:
            return False
        at = min(short.length, have)
        while at < whole.length:
            stop = min(whole.length, at + PIECE)
            piece = await self.load(whole, at, stop - at)
            there = await self.load(short, at, min(have, stop) - at) if at < have else b""
            if piece[: len(there)] != there:
                return False
            rest = piece[len(there) :]
            await self._store(short, lambda start, length, rest=rest: rest[start : start + length], len(rest))  # type: ignore[misc]
            at = stop
        self._rows.acknowledged([(short.id, whole.length)])
        return True

    async def keep(self, copies: Callable[[], list[Copy]], length: int) -> None:
        """Bring the short copies of a log of this length up to date, and make more where there are too few.

        DepotError, DepotUnreachable, NoSpace.
        """
        await self._catch_up(copies(), length)
        now = copies()
        lacking = WANTED - len(self.staying(one for one in now if one.length == length))
        if now and lacking > 0:
            await self.make(now[0].log, now[0].kind, now[0].size, lacking, now, now[0].name)
            await self._catch_up(copies(), length)

    async def _catch_up(self, copies: Sequence[Copy], length: int) -> None:
        whole = self.answering(one for one in copies if one.length == length)
        for copy in self.answering(copies):
            if whole and copy.length < length and not await self.catch_up(copy, whole[0]):
                self._rows.drop([copy])

    # Leases

    async def renew(self, *, every: bool = False) -> None:
        """Renew leases that have half run, on depots that answer; copies that their depots do not know are dropped."""
        for copy in self.answering(self._rows.copies()):
            if copy.lease_end is None or not (every or self._is_due(copy, self._rows.now())):
                continue
            depot = self._depots.get(copy.depot)
            try:
                end = await self._allocator.extend(depot, copy.manage, copy.size, asking=True)
            except CapabilityNotFound:
                self._rows.drop([copy])
            except (DepotError, DepotUnreachable):
                continue
            else:
                self._rows.renewed(copy.id, end)


    @staticmethod
    def _is_due(copy: Copy, now: float) -> bool:
        return copy.lease_end is not None and 2 * now > copy.told_at + copy.lease_end

    def due(self, now: float) -> int:
        """How many leases had half run by then, and were not renewed since."""
        return sum(copy.told_at < now and self._is_due(copy, now) for copy in self._rows.copies())


@contextmanager
def _refused() -> Iterator[None]:
    """What one depot does not do, another may."""
    try:
        yield
    except (DepotError, DepotUnreachable, DataError):
        return

