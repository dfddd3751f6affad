"""Carrying dirty extents to the depots, and those who wait for them.

Write order: spool, depots, ledger, clean. Actors: the writers (FileCache, synchronous), tasks that each carry a
batch, a keeper that closes old segments and deletes spent spool files. Between two awaits a task is alone: choosing a
batch, and commit plus landing, are such sections, so a dirty byte is in exactly one of: idle, one flight, the ledger.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeAlias

import trio

from ibpfs.alertness import CARRIED
from ibpfs.cache.begun import sealed_by
from ibpfs.cache.clean import CleanCache
from ibpfs.cache.commits import Commits, Stored
from ibpfs.cache.dirty import DirtyFile, Flight, RecordMemory
from ibpfs.cache.fresh import Fresh
from ibpfs.cache.queue import DELAY, SHORTEST, Batch, UploadQueue
from ibpfs.cache.retention import RetainedSlice, Retention
from ibpfs.cache.sealer import Sealer
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import Record
from ibpfs.depot.later import Filed, Later
from ibpfs.depot.wire import DepotError, DepotUnreachable, NoRoom
from ibpfs.errors import DataError, IbpfsError, NoSpace, VolumeError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.sealing import MAX_SLICE, Buffer, Sealing, SliceForm
from ibpfs.exnode_store.transfer import MOST_LANES, Transfer

_log = logging.getLogger(__name__)

_BACKOFF = (0.1, 2.0)
#: Bytes up to which who waits carries them himself.
_LONG = 256 * 1024
#: Up to so many bytes are sealed while a depot gets ready for them.
_SEALED_LATER = 64 * 1024

#: File, flight, form, clear bytes or what has sealed them, and where in what is appended the slice begins.
Unsealed: TypeAlias = tuple[DirtyFile, Flight, SliceForm, list[memoryview] | Sealing, int]


class Flusher:
    """The dirty files of a volume and the tasks that make them clean."""

    def __init__(
        self, db: Database, ledger: Ledger, transfer: Transfer, spool: Spool, memory: RecordMemory, clean: CleanCache,
        sealer: Sealer, retention: Retention, is_beside: Callable[[int], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        self._db = db
        self._transfer = transfer
        self._spool = spool
        self._memory = memory
        self.fresh = Fresh(clean, is_beside)
        self.sealer = sealer
        self.retention = retention
        self._queue = UploadQueue(transfer.policy)
        self.files = self._queue.files
        self._commits = Commits(
            db, ledger, transfer, self.files, spool, self.release, self._land, self._not_committed
        )
        self._waits = Counter[bool]()  # who waits for commits (True), and who for depots alone
        self.dirty_bytes = self._failures = 0
        self.trouble: IbpfsError | None = None  # why the last batch did not arrive, None when it did
        self._carrying = 0  # batches under way; each holds a segment until its end
        self._lost: dict[int, str] = {}  # files of which bytes could not be read back from the spool, until told
        self._idle: list[trio.Event] = []  # of the workers that wait for work; set to wake one
        self._landed = trio.Event()

    # What writers tell

    def added(self, file: DirtyFile, before: int, freed: list[Record]) -> None:
        """The file's dirty bytes changed from `before`; `freed` records are needed no more."""
        self.dirty_bytes += file.dirty - before
        if freed:
            self.release(freed)
            self._tell()  # somebody may have waited for bytes that are cut away or overwritten now
        if file.oldest_at == math.inf:
            file.oldest_at = trio.current_time()  # idle workers look every DELAY: no need to wake them
        elif file.dirty >= MAX_SLICE and file.ino not in self._queue.full and file.idle >= MAX_SLICE:
            self._queue.full.add(file.ino)
            self._wake_worker()

    def policies_changed(self, policies: Mapping[int, int]) -> None:
        """Inodes, by number, have other policies now."""
        for ino in policies.keys() & self.files.keys():
            self.files[ino].policy = policies[ino]

    def release(self, records: list[Record]) -> None:
        for record in records:
            self._memory.forget(record)
            self._spool.release(record)

    def hurry(self, ino: int) -> None:
        """Upload this file next, whatever its age."""
        if ino in self.files:
            self._queue.urgent.add(ino)
            self._wake_worker()

    def forget(self, ino: int) -> None:
        """The file is clean or gone."""
        file = self.files.pop(ino, None)
        self._queue.urgent.discard(ino)
        self._queue.full.discard(ino)
        if file is not None:
            for done in file.when_clean:
                done()

    # Who waits

    @property
    def stuck_bytes(self) -> int:
        """Dirty bytes, when what keeps them here is that depots have no room."""
        return self.dirty_bytes if _no_room(self.trouble) else 0

    async def wait_clean(self, ino: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Return when what is dirty of the file now is committed (not yet synced). `progress(done, total)` in bytes.

        Raises NoSpace as soon as the depots refuse even the shortest slice for want of room, DataError when bytes of
        the file were lost; else waits for the caller's deadline.
        """
        await self._wait(ino, committed=True, progress=progress)

    async def wait_stored(self, ino: int) -> None:
        """As `wait_clean`, but what depots have acknowledged may wait for its commit: the caller syncs the spool."""
        await self._wait(ino, committed=False)

    def commit_stored(self) -> None:
        """Commit all that depots have acknowledged, or make it dirty again."""
        self._commits.commit_waiting()

    @contextmanager
    def _waiting(self, committed: bool) -> Iterator[None]:
        if committed:
            self._commits.commit_waiting()
        self._waits[committed] += 1
        try:
            yield
        finally:
            self._waits[committed] -= 1

    async def _wait(self, ino: int, committed: bool, progress: Callable[[int, int], None] | None = None) -> None:
        file = self.files.get(ino)
        if file is not None:
            with self._waiting(committed):
                await self._wait_for(file, committed, progress)
        if ino in self._lost:
            raise DataError(self._lost.pop(ino))

    async def _wait_for(
        self, file: DirtyFile, committed: bool, progress: Callable[[int, int], None] | None
    ) -> None:
        ino = file.ino
        seq, failures, total = file.version, self._failures, file.dirty
        while file.holds_up_to(seq):
            if progress is not None:
                progress(max(0, total - file.dirty), total)
            if not committed and file.is_stored_up_to(seq):
                file.promise()
                return
            if file.is_changed_in_flight and self._commits.is_waiting:  # what is above flies when that has landed
                self._commits.commit_waiting()
                continue
            if self._failures > failures and self._queue.slice == SHORTEST and _no_room(self.trouble):
                raise NoSpace(str(self.trouble))
            if self.files.get(ino) is file and file.idle > 0:
                self._queue.urgent.add(ino)
                # Whoever waits carries a batch himself where a lane is free: to wake a worker and be woken by it is two
                # turns of the event loop. What fails is the workers', who know when to try again, and what is long:
                # they put it into the cache, 2 ms for 256 slices, when he has gone on.
                alone = (file.idle <= _LONG or not self._idle) and self._failures == failures
                if alone and await self._carry_next() is not None:
                    continue
                self._wake_worker()
            await self._landed.wait()

    async def wait_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Return when everything that is dirty now is committed. `progress(done, total)` in bytes."""
        with self._waiting(committed=True):
            targets = [(file, file.version) for file in reversed(self.files.values())]  # which are taken from the end
            total = self.dirty_bytes
            self._queue.urgent.update(self.files)
            while True:
                while targets and not targets[-1][0].holds_up_to(targets[-1][1]):
                    targets.pop()
                if progress is not None:
                    progress(max(0, total - self.dirty_bytes), total)
                if not targets:
                    return
                self._wake_worker()  # what flew in vain is old, and looked for as well
                await self._landed.wait()

    async def wait_landing(self, seconds: float) -> None:
        """Return at the next change of what is dirty, or after `seconds`."""
        with trio.move_on_after(seconds):
            await self._landed.wait()

    def _wake_worker(self) -> None:
        """One: to wake all three for an fsync takes 40 us more."""
        if self._idle:
            self._idle.pop().set()

    def _tell(self) -> None:
        self._landed.set()
        self._landed = trio.Event()

    # The tasks

    async def run(self) -> None:
        """Carry until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(MOST_LANES):
                nursery.start_soon(self._work)
            nursery.start_soon(self.fresh.run)
            nursery.start_soon(self._commits.run)
            nursery.start_soon(self._rouse)
            nursery.start_soon(self._keep)
            nursery.start_soon(self._prepare)

    async def _rouse(self) -> None:
        """What is old enough is looked for by as many as may carry it."""
        while True:
            await trio.sleep(DELAY / 4)
            for _ in range(self._transfer.lanes - self._carrying):
                self._wake_worker()

    async def _prepare(self) -> None:
        while True:
            await trio.sleep(DELAY)
            with suppress(DepotError, DepotUnreachable, NoSpace, OSError):  # who needs a segment meets it again
                await self._transfer.prepare()

    async def _work(self) -> None:
        pause = _BACKOFF[0]
        while True:
            arrived = await self._carry_next()
            if arrived is None:
                await self._wait_for_work()
            elif arrived:
                pause = _BACKOFF[0]
            else:
                await trio.sleep(pause)
                pause = min(2 * pause, _BACKOFF[1])

    async def _carry_next(self) -> bool | None:
        """Whether the next batch arrived; None, at once, when there is none or all lanes are taken."""
        batch = self._queue.next_batch() if self._carrying < self._transfer.lanes else None
        if batch is None:
            return None
        if self._queue.is_pressing:
            self._wake_worker()
        self._carrying += 1
        try:
            return await self._carry(batch)
        finally:
            self._carrying -= 1
            self._tell()

    async def _wait_for_work(self) -> None:
        woken = trio.Event()  # and no deadline of each worker's own: to set and cancel it costs 4 us
        self._idle.append(woken)
        await woken.wait()

    async def _keep(self) -> None:
        told = None
        while True:
            await trio.sleep(DELAY)
            self.retention.settle()
            try:
                await self._transfer.close_old()
                await self._transfer.trim()
                await self.delete_spent()
                await self._db.checkpoint()
                told = None
            except OSError as error:
                if error.errno != told:
                    _log.warning("the local disk refuses: %s", error.strerror)
                told = error.errno

    async def delete_spent(self) -> None:
        """Delete the spool files that nobody needs, once that is on stable storage."""
        spent = self._spool.spent()
        if spent:
            await self._db.sync()
            self._spool.delete(spent)

    # Carrying

    async def _carry(self, batch: Batch) -> bool:
        failures = self._failures
        try:
            await self._store(batch)
        except (DepotError, DepotUnreachable, NoSpace, DataError, OSError) as refusal:
            self._note_failure(refusal)
            self._ground(batch)
            return False
        except BaseException:
            self._ground(batch)
            raise
        if self._failures == failures:  # nor did a commit of others, which it brought about, fail
            self.trouble = None
            self._queue.slice = min(MAX_SLICE, 2 * self._queue.slice)
        return True

    def _note_failure(self, refusal: IbpfsError | OSError) -> None:
        error = VolumeError(f"the local disk: {refusal.strerror}") if isinstance(refusal, OSError) else refusal
        if self.trouble is None:
            # That a depot is silent has been said of the depot; that one refuses is said here.
            level = logging.INFO if isinstance(error, DepotUnreachable) else logging.WARNING
            _log.log(level, "%d bytes wait in the spool: %s", self.dirty_bytes, error)
        # Without its frames, which refer to what was to be stored, and to it: only the collector would free them.
        self.trouble = error.with_traceback(None)
        self._failures += 1
        if _no_room(error):
            self._queue.slice = max(SHORTEST, self._queue.slice // 2)

    def _not_committed(self, batches: Sequence[Batch], refusal: IbpfsError | OSError) -> None:
        self._note_failure(refusal)
        for batch in batches:
            self._ground(batch)

    def _ground(self, batch: Batch) -> None:
        for file, flight in batch.flights:
            if flight in file.flights and not flight.is_stored:  # whose commit waits, however its carrier ended
                file.grounded(flight)
            self._queue.make_old(file)
            self._forget_if_clean(file)  # what flew was cut away meanwhile
        self._tell()

    def _forget_if_clean(self, file: DirtyFile) -> None:
        if file.is_clean and self.files.get(file.ino) is file:
            self.forget(file.ino)

    async def _store(self, batch: Batch) -> None:
        slices: list[Unsealed] = []
        at = 0
        for file, flight in list(batch.flights):
            begun = sealed_by(flight)
            parts = self._read(file, flight) if begun is None else begun
            if parts is None:
                batch.flights.remove((file, flight))
                continue
            form = parts.form if isinstance(parts, Sealing) else self.sealer.form(sum(map(len, parts)))
            slices.append((file, flight, form, parts, at))
            at += form.stored_length
        if not slices:
            return
        # Before the first await: what is overwritten while it flies is let go of by its file.
        taken = self.retention.take(batch.policy, [(file.ino, form, flight) for file, flight, form, _, _ in slices])
        held = self._hold([flight for _, flight, _, parts, _ in slices if isinstance(parts, Sealing)])
        try:
            await self._append(batch, slices, at, taken, held)
        finally:
            self.retention.give_back(taken)
            self._let_go(held)

    def _hold(self, flights: Sequence[Flight]) -> list[Record]:
        """The records of flights whose bytes are sent from the spool."""
        records = [piece.source for flight in flights for piece in flight.pieces]
        for record in records:
            self._spool.hold(record)
        return records

    def _let_go(self, held: list[Record]) -> None:
        while held:
            self._spool.release(held.pop())

    async def _append(
        self, batch: Batch, slices: list[Unsealed], length: int, taken: list[RetainedSlice], held: list[Record]
    ) -> None:  # fmt: skip
        digests: list[bytes] = []
        pieces = self._pieces(slices, length, digests)
        if length >= MAX_SLICE:
            CARRIED.add(batch)
        try:
            segment, offset = await self._transfer.append(batch.policy, pieces, length)
        finally:
            CARRIED.discard(batch)
        try:
            sealed = [
                (file, flight, form, check, at)
                for (file, flight, form, _, at), check in zip(slices, digests, strict=True)
            ]
            stored = Stored(batch, segment, offset, length, sealed)
            row = segment.row
            gathers = not self._waits[True] and (self._waits[False] or length >= MAX_SLICE)
            if row is not None and gathers and stored.may_wait and not self.retention.is_wanted(taken, row):
                self._commits.commit_later(stored)
            else:
                row = self._commits.commit(stored)
                self.retention.keep(taken, row)
                self._land(batch)
            self.retention.give_back(taken)
            self._tell()
            if not self.fresh.passes_by(row, length, len(slices)):
                with suppress(DataError):
                    pieces.made()  # what is in the spool is read while it is there
                    self._let_go(held)
                    await self.fresh.add(row, offset, pieces, length, len(slices))
        finally:
            await self._transfer.release(segment)

    def _pieces(self, slices: Sequence[Unsealed], length: int, digests: list[bytes]) -> Later:
        """What is to be appended; `digests` are those of the slices, once it is made."""
        if len(slices) == 1 and isinstance(slices[0][3], Sealing):
            digests.append(slices[0][3].digest())
            return _filed(slices[0][1], slices[0][3])
        pieces = Later(length, lambda: self._seal(slices, digests))
        if length > _SEALED_LATER:
            pieces.made()
        return pieces

    def _seal(self, slices: Sequence[Unsealed], digests: list[bytes]) -> list[Buffer]:
        pieces: list[Buffer] = []
        digests.clear()
        for _, flight, form, parts, _ in slices:
            sealed = _filed(flight, parts).made() if isinstance(parts, Sealing) else self.sealer.seal(form, *parts)
            digests.append(self.sealer.digest(sealed))
            pieces += sealed
        return pieces

    def _read(self, file: DirtyFile, flight: Flight) -> list[memoryview] | None:
        try:
            return [self._memory.read(piece) for piece in flight.pieces]
        except DataError as error:
            _log.error("inode %d, bytes %d to %d are lost: %s", file.ino, flight.start, flight.stop, error)
            self._lost[file.ino] = f"inode {file.ino}: {error}"
            self._give_up(file, flight)
            return None

    def _give_up(self, file: DirtyFile, flight: Flight) -> None:
        before = file.dirty
        freed = file.landed(flight)
        self.dirty_bytes += file.dirty - before
        self.release(freed)
        self._forget_if_clean(file)
        self._tell()

    def _land(self, batch: Batch) -> None:
        for file, flight in batch.flights:
            before = file.dirty
            freed = file.landed(flight)
            file.stored(file.version)
            self.dirty_bytes += file.dirty - before
            self.release(freed)
            self._forget_if_clean(file)
            if file.dirty and file.oldest_at == math.inf:  # overwritten while it flew
                file.oldest_at = trio.current_time()
        self._tell()

    async def drop_clean(self) -> None:
        """Forget what freshly stored bytes were put into the clean cache, and all else that is there."""
        await self.fresh.drop()

    async def finish(self, seconds: float) -> bool:
        """Try to make everything clean within `seconds`; then close the segments. False when something is left."""
        self._commits.commit_waiting()
        with trio.move_on_after(seconds):
            await self.wait_all()
        with trio.move_on_after(5.0):
            while self._carrying:
                await self._landed.wait()
            await self._transfer.close_old(every=True)
        self._commits.commit_waiting()
        self.retention.settle(every=True)  # copies may have been made up just now: nothing of them is to be left
        with suppress(OSError):
            await self._db.sync()
            if not self.dirty_bytes:
                self.release(list(self._commits.kept.elements()))
                self._commits.kept.clear()
        return not self.dirty_bytes


def _filed(flight: Flight, sealing: Sealing) -> Filed:
    """The slice that flies, as it lies in the spool."""
    return Filed([sealing.form.header(), *(piece.source.file.stored(piece.source) for piece in flight.pieces)])


def _no_room(trouble: IbpfsError | None) -> bool:
    return isinstance(trouble, (NoSpace, NoRoom))
