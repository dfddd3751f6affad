"""Commits of what depots have acknowledged, at once or, where only fsyncs or nobody waits for it, together a moment
later.

An fsync needs the bytes on the depots, and on the local disk either the exNode that says so or the bytes themselves.
The spool has these, and is synced while the depots are at work; a commit, and its sync, could only follow.

Until its commit a batch is in flight: a crash before it leaves what one between acknowledgement and commit always left.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import trio

from ibpfs.cache.dirty import DirtyFile, Flight
from ibpfs.cache.queue import BATCH_SLICES, Batch
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import Record
from ibpfs.errors import IbpfsError, NoSpace, VolumeError
from ibpfs.exnode_store.allocator import OpenSegment
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewSlice, Settlement
from ibpfs.exnode_store.sealing import SliceForm
from ibpfs.exnode_store.transfer import Transfer

#: Seconds that a commit waits for others: some 50 fsyncs of one program. Bounds what is uploaded again after a kill.
_GATHER = 0.05
#: Slices and batches that wait for it at most.
_MOST_SLICES, _MOST_BATCHES = 4096, 64

#: File, flight, form, digest, and where in what is appended the slice begins.
Sealed: TypeAlias = tuple[DirtyFile, Flight, SliceForm, bytes, int]


@dataclass(eq=False)
class Stored:
    """A batch that as many depots as have to have acknowledged: `length` bytes of a segment from `offset` on."""

    batch: Batch
    segment: OpenSegment
    offset: int
    length: int
    slices: list[Sealed]

    @property
    def may_wait(self) -> bool:
        """Whether its commit may: not the first one of its segment, nor one that lacks copies."""
        return self.segment.row is not None and self.segment.sound

    @property
    def is_promised(self) -> bool:
        """Whether an fsync was answered for some of it."""
        return any(flight.is_promised for _, flight in self.batch.flights)

    @property
    def records(self) -> set[Record]:
        return {piece.source for _, flight in self.batch.flights for piece in flight.pieces}

    def new_slices(self) -> list[NewSlice]:
        """As they are to be mapped now: what flies may have been cut since it took off."""
        return [
            NewSlice(file.ino, flight.start, flight.limit, flight.covers, form, check, self.offset + put)
            for file, flight, form, check, put in self.slices
        ]


class Commits:
    """Of one flusher, whose `files` are dirty. It is told which batches `landed`, and which `failed` and why."""

    def __init__(
        self, db: Database, ledger: Ledger, transfer: Transfer, files: dict[int, DirtyFile],
        spool: Spool, release: Callable[[list[Record]], None], landed: Callable[[Batch], None],
        failed: Callable[[Sequence[Batch], IbpfsError | OSError], None],
    ) -> None:  # fmt: skip
        self._db = db
        self._ledger = ledger
        self._transfer = transfer
        self._files = files
        self._spool = spool
        self._release = release
        self._landed = landed
        self._failed = failed
        self._waiting: list[Stored] = []
        self._slices = 0  # of those
        self._wanted = trio.Event()
        self.kept: Counter[Record] = Counter()  # held on after commits that failed, each so often
        transfer.commit_waiting = self.commit_waiting  # before a segment is closed and cut to what is committed in it

    def commit(self, stored: Stored) -> int:
        """Map it; return the row of its segment, which may be its first."""
        with self._transfer.committing(stored.segment) as row:
            end = stored.offset + stored.length
            self._ledger.commit(row, end, stored.new_slices(), lambda: self._settle([stored.batch]))
        return row

    def commit_later(self, stored: Stored) -> None:
        for record in stored.records:  # what overwrites one may not be synced: its spool file has to stay
            self._spool.hold(record)
        self._waiting.append(stored)
        self._slices += len(stored.slices)
        stored.segment.uncommitted += 1
        files = set()
        for file, flight in stored.batch.flights:
            flight.is_stored = True
            files.add(file)
        for file in files:
            file.note_stored()
        if self._slices > _MOST_SLICES or len(self._waiting) > _MOST_BATCHES:
            self.commit_waiting()
        self._wanted.set()

    @property
    def is_waiting(self) -> bool:
        """Whether there is something for `commit_waiting` to do."""
        return bool(self._waiting)

    def commit_waiting(self) -> None:
        """Map all that waits, now. What fails is dirty again."""
        while self._waiting:
            self._commit_some()

    async def run(self) -> None:
        """Map what waits, a transaction at a time, until cancelled."""
        while True:
            await self._wanted.wait()
            await trio.sleep(_GATHER)
            self._wanted = trio.Event()
            for _ in range(len(self._waiting)):  # and not what comes meanwhile
                if self._waiting:
                    self._commit_some()
                    await trio.lowlevel.checkpoint()
            if self._waiting:
                self._wanted.set()

    def _commit_some(self) -> None:
        some = list(self._take())
        batches = [stored.batch for stored in some]
        try:
            self._commit_together(some)
        except BaseException as error:
            for stored in some:
                stored.segment.sound = False
            for batch in batches:
                for file, flight in batch.flights:
                    flight.is_stored, file.stored_seq = False, -1
            for stored in some:
                if stored.is_promised:  # for its records; what was overwritten of them is in no other place
                    self.kept.update(stored.records)
                else:
                    self._release(list(stored.records))
            if isinstance(error, (NoSpace, OSError)):
                self._failed(batches, error)
            else:
                self._failed(batches, VolumeError(f"the exNode store: {error}"))
                raise
            return
        for stored in some:
            self._landed(stored.batch)
            self._release(list(stored.records))

    def _take(self) -> Iterator[Stored]:
        """The first of those that wait, as many as a transaction takes."""
        slices = count = 0
        for stored in self._waiting:
            slices += len(stored.slices)
            if count and slices > BATCH_SLICES:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        for stored in taken:
            self._slices -= len(stored.slices)
            stored.segment.uncommitted -= 1
            yield stored

    def _commit_together(self, some: list[Stored]) -> None:
        by_segment: defaultdict[int, list[Stored]] = defaultdict(list)
        for stored in some:
            assert stored.segment.row is not None
            by_segment[stored.segment.row].append(stored)
        last = next(reversed(by_segment))
        with self._db.transaction():
            for row, theirs in by_segment.items():
                new = [slice_ for stored in theirs for slice_ in stored.new_slices()]
                end = max(stored.offset + stored.length for stored in theirs)
                # A file may have slices in several: what it comes to is said with the last.
                batches = [stored.batch for stored in some] if row == last else []
                self._ledger.commit(row, end, new, partial(self._settle, batches))

    def _settle(self, batches: Sequence[Batch]) -> dict[int, Settlement]:
        by_file: defaultdict[DirtyFile, list[Flight]] = defaultdict(list)
        for batch in batches:
            for file, flight in batch.flights:
                by_file[file].append(flight)
        settlements = {}
        for file, flights in by_file.items():
            if self._files.get(file.ino) is not file:
                continue
            file.version += 1
            settled = file.version if file.cleaned_by(flights) else None
            settlements[file.ino] = Settlement(file.mtime_ns, file.ctime_ns, file.version, settled)
        return settlements
