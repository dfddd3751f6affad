"""Stored bytes compared with the digests of their slices, wherever they lie. Works without keys."""

from collections.abc import Awaitable, Callable, Sequence

from ibpfs.depot.client import ShortLoad
from ibpfs.depot.wire import CapabilityNotFound, Unreadable
from ibpfs.errors import DataError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica, StoredRun
from ibpfs.exnode_store.sealing import Buffer, digest
from ibpfs.exnode_store.shard_loading import DIFFERS
from ibpfs.exnode_store.transfer import Transfer

CHUNK = 1024 * 1024
#: Dead bytes between two slices that are loaded with them rather than asking twice.
_GAP = 16 * 1024


class Verification:
    """Loads what is known to be sound, and finds what is not."""

    def __init__(self, db: Database, ledger: Ledger, transfer: Transfer) -> None:
        self._seed = int(db.facts["digest_seed"], 16)
        self._ledger = ledger
        self._transfer = transfer
        self.damaged: set[int] = set()  # segments with a slice that no replica has sound; tried again by the next mount

    async def load(self, segment: int, start: int, stop: int, runs: Sequence[StoredRun]) -> bytes | bytearray:
        """Return stored bytes [start, stop), from a replica that has these slices in it sound; DataError if none has.

        A replica that has them wrong is reported.
        """
        avoid: frozenset[int] = frozenset()
        while True:
            try:
                loaded = await self._transfer.load(segment, start, stop, avoid=avoid)
            except DataError:
                others = [one for one in self._ledger.replicas(segment) if one.id not in avoid]
                if avoid and len(runs) == 1 and all(one.suspect and self._transfer.is_at_hand(one) for one in others):
                    self.damaged.add(segment)  # not out of reach, but wrong here and lost there
                raise
            if self._are_sound(loaded.data, start, runs):
                return loaded.data
            avoid |= await self._transfer.blame(loaded.givers, DIFFERS)

    async def load_best(
        self, segment: int, start: int, stop: int, runs: Sequence[StoredRun]
    ) -> tuple[bytes | bytearray, bool]:
        """Return stored bytes with each slice sound if some replica has it so, else as it is; and whether all are."""
        try:
            return await self.load(segment, start, stop, runs), True
        except DataError:
            data, complete = bytearray((await self._transfer.load(segment, start, stop)).data), True
        for run in runs:
            try:
                sound = await self.load(segment, run.offset, run.offset + run.length, [run])
            except DataError:
                complete = False
            else:
                data[run.offset - start : run.offset - start + run.length] = sound
        return data, complete

    async def slices(self, segment: int, runs: Sequence[StoredRun]) -> list[Buffer]:
        """Return the stored bytes of each slice, sound. What is near each other is loaded at once."""
        found: list[Buffer] = []
        for near in neighbours(runs, _GAP):
            start = near[0].offset
            try:
                view = memoryview(await self.load(segment, start, near[-1].offset + near[-1].length, near))
            except DataError:
                # Perhaps this replica has the one and that replica the other.
                found += [await self.load(segment, run.offset, run.offset + run.length, [run]) for run in near]
            else:
                found += [view[run.offset - start :][: run.length] for run in near]
        return found

    async def fault(self, replica: Replica, pause: Callable[[int], Awaitable[None]] | None = None) -> str:
        """What is wrong with a replica, as one looks at all that lives in it; '' when it is sound.

        `pause` is awaited after each piece, with its length. Raises DepotError or DepotUnreachable when that cannot be
        told.
        """
        if replica.shard is not None:
            return await self._shard_fault(replica, pause)
        runs = self._ledger.stored_slices(replica.segment)
        for start, stop, inside in chunks(runs, self._ledger.segment_length(replica.segment), CHUNK):
            try:
                data = (await self._transfer.load_from(replica, start, stop)).data if inside else b""
            except (CapabilityNotFound, ShortLoad, Unreadable) as error:
                return str(error)
            if not self._are_sound(data, start, inside):
                return DIFFERS
            if pause is not None:
                await pause(len(data))
        return ""

    async def _shard_fault(self, replica: Replica, pause: Callable[[int], Awaitable[None]] | None) -> str:
        try:
            data = await self._transfer.load_shard(replica)
        except DataError as error:
            return str(error)
        if pause is not None:
            await pause(len(data))
        return ""

    def _are_sound(self, data: Buffer, start: int, runs: Sequence[StoredRun]) -> bool:
        view = memoryview(data)
        return all(digest(self._seed, [view[one.offset - start :][: one.length]]) == one.digest for one in runs)


def neighbours(runs: Sequence[StoredRun], gap: int) -> list[list[StoredRun]]:
    """Group slices, in order, that have at most `gap` bytes between them."""
    groups: list[list[StoredRun]] = []
    end = None
    for run in runs:
        if end is None or run.offset - end > gap:
            groups.append([])
        groups[-1].append(run)
        end = run.offset + run.length
    return groups


def chunks(runs: Sequence[StoredRun], length: int, size: int) -> list[tuple[int, int, list[StoredRun]]]:
    """Cut [0, length) of a segment into (start, stop, slices inside) of `size` or more, never within a slice.

    `runs` are its slices in order; what lies between them is dead, and is cut anywhere.
    """
    found: list[tuple[int, int, list[StoredRun]]] = []
    start, at, inside = 0, 0, list[StoredRun]()
    for run in [*runs, None]:
        begin = length if run is None else run.offset
        while begin - start >= size:
            stop = max(at, start + size)
            found.append((start, stop, inside))
            start = at = stop
            inside = []
        if run is not None:
            inside.append(run)
            at = run.offset + run.length
    return [*found, (start, length, inside)] if start < length else found
