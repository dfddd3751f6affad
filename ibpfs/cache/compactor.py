"""Compaction of files: extents in too many or half-dead slices are read, sealed as new slices, and mapped to those.

Runs beside the flusher in whoever owns the volume, for files that nobody has written for a while; at once when asked.
What is due is found from the ledger alone, so nothing is lost with the process: the next one looks through all files.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import trio

from ibpfs.cache.clean import CleanCache
from ibpfs.cache.flusher import Flusher
from ibpfs.cache.frames import SliceReader
from ibpfs.cache.sealer import Sealer
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace, VolumeError
from ibpfs.exnode_store.compaction import SLACK, Extent, Merge, is_urgent, plan_merges
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.merging import MOST_EXCHANGED, WINDOW, Crowd, Merged, Merging
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.transfer import Transfer

_log = logging.getLogger(__name__)

#: Seconds between looks, and how long a file must have been left alone: well done within the hour that is promised.
LOOK_EVERY = 60.0
IDLE = 1800.0
#: File bytes a second: while nothing much else goes to the depots, and while it does.
_RATE = 8 * 1024 * 1024
_RATE_BESIDE = 1024 * 1024
_MUCH = 4 * 1024 * 1024
#: File bytes after which the next file has its turn.
_TURN = 256 * 1024 * 1024
#: Between two looks at a few hundred inodes, when a mount looks through all of them.
_PAUSE = 0.05
#: Files that are remembered as due later; with more, all files are looked through again instead.
_MOST_NOTED = 100_000
#: A plan that others' writes disturbed is made again so many times when compaction was asked for.
_PASSES = 3
_BETWEEN_CHECKPOINTS = 32
_DEPOTS_PATIENCE = 5.0
#: Room on the depots that is left to writers.
_SPARE = 32 * 1024 * 1024


@dataclass
class Outcome:
    """What was done: files that had extents merged, slices that they had and have now, file bytes written anew."""

    files: int = 0
    slices_before: int = 0
    slices_after: int = 0
    written: int = 0
    damaged: list[str] = field(default_factory=list)  # files that are as they were, and why


class Compactor:
    """One per open volume. `run` is its task."""

    def __init__(
        self, merging: Merging, ledger: Ledger, transfer: Transfer, reader: SliceReader, clean: CleanCache,
        sealer: Sealer, flusher: Flusher,
    ) -> None:  # fmt: skip
        self._merging = merging
        self._ledger = ledger
        self._transfer = transfer
        self._reader = reader
        self._clean = clean
        self._sealer = sealer
        self._flusher = flusher
        self._noted: dict[int, float] = {}  # crowded files, and when (monotonic) somebody wrote them last
        self._searched = False  # whether all files were looked through since the mount
        self._left: dict[int, int] = {}  # files that had many extents even after their plan: how many
        self._working = trio.Lock()
        self._asked = 0  # how many wait for all of it

    async def run(self) -> None:
        """Look and merge until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY)
            await self.look()
            while await self._round():
                await self.look()

    # What is due

    async def look(self) -> None:
        """Note what may be due of the files that were written since the last look; of all files, after a mount."""
        while self._ledger.touched or self._ledger.half_dead:
            self._note(self._merging.touched(), age=lambda _: 0.0)
            await trio.lowlevel.checkpoint()
        if not self._searched:
            self._note(await self._search(_PAUSE), age=_age)
            self._searched = True
        if len(self._noted) > _MOST_NOTED:
            self._noted.clear()
            self._searched = False

    async def _search(self, pause: float) -> list[Crowd]:
        """All files that may be due."""
        found: dict[int, Crowd] = {}
        for behind in (self._merging.crowded_behind, self._merging.half_dead_behind):
            crowds, last = behind(0)
            while last:
                found |= {crowd.ino: crowd for crowd in crowds}
                await trio.sleep(pause)
                crowds, last = behind(last)
        return list(found.values())

    def _note(self, crowds: list[Crowd], age: Callable[[Crowd], float]) -> None:
        now = trio.current_time()
        for crowd in crowds:
            # One of which a plan has left many, small islands in a hole, is in no hurry before it has twice as many.
            urgent = crowd.extents > 2 * self._left.get(crowd.ino, 0) and is_urgent(crowd.extents, crowd.allocated)
            self._noted[crowd.ino] = -math.inf if urgent else now - age(crowd)

    def _due(self) -> list[int]:
        last = trio.current_time() - IDLE
        return [ino for ino, since in self._noted.items() if since <= last]

    # At once

    async def compact(self, progress: Callable[[int, int], None]) -> Outcome:
        """Merge whatever is due in any file, however young. Raises what keeps it from going on."""
        outcome = Outcome()
        self._asked += 1
        try:
            await self._wait_for_depots()
            due = await self._search(0.0)
            total, done = sum(crowd.extents for crowd in due), 0
            for crowd in due:
                await self._compact(crowd.ino, outcome, partial(_advance, progress, total, done))
                done += crowd.extents
                progress(done, total)
        finally:
            self._asked -= 1
        return outcome

    async def _compact(self, ino: int, outcome: Outcome, merged: Callable[[int], None]) -> None:
        before = await self._slices(ino)
        try:
            written = sum([await self._merge(ino, merged) for _ in range(_PASSES)])
        except (DataError, VolumeError) as error:
            outcome.damaged.append(f"inode {ino}: {error}")
            return
        if written:
            outcome.files += 1
            outcome.written += written
            outcome.slices_before += before
            outcome.slices_after += await self._slices(ino)

    async def _wait_for_depots(self) -> None:
        """Who was started for this has just begun to ask them."""
        with trio.move_on_after(_DEPOTS_PATIENCE):
            while self._transfer.answering() < self._transfer.policies.usual.copies:  # noqa: ASYNC110 (of several tasks)
                await trio.sleep(0.1)

    async def _slices(self, ino: int) -> int:
        found: set[int] = set()
        start = 0
        while extents := self._merging.extents(ino, start):
            found.update(one.slice for one in extents)
            start = extents[-1].stop
            await trio.lowlevel.checkpoint()
        return len(found)

    # Merging

    async def _round(self) -> bool:
        """Give each file that is due its turn; True when some want another, and nothing is in the way."""
        more = False
        try:
            for ino in self._due():
                more |= await self._turn(ino)
        except (DepotError, DepotUnreachable, NoSpace, OSError) as error:
            _log.info("compaction waits: %s", error)
            return False
        return more

    async def _turn(self, ino: int) -> bool:
        """Merge poor extents of a file, slowly; True when there is more to do."""
        try:
            written = await self._merge(ino, gently=True)
        except (DataError, VolumeError) as error:  # bytes that cannot be read, perhaps because their depot is away
            _log.info("inode %d: not compacted: %s", ino, error)
            self._noted[ino] = trio.current_time()
            return False
        since = self._noted.pop(ino, None)
        if since is not None and written >= _TURN:
            self._noted[ino] = since  # behind the others
            return True
        self._remember(ino)
        return False

    def _remember(self, ino: int) -> None:
        crowd = self._merging.crowd(ino)
        self._left.pop(ino, None)
        if crowd is not None and is_urgent(crowd.extents, crowd.allocated):
            self._left[ino] = crowd.extents

    async def _merge(
        self, ino: int, merged: Callable[[int], None] = lambda _: None, *, gently: bool = False
    ) -> int:
        """Carry out the plan for a file, a window of extents after the other; return the file bytes written anew.

        `merged` is told of how many extents that is done.
        """
        written = start = done = 0
        async with self._working:
            while extents := self._merging.extents(ino, start):
                whole = not start and len(extents) < WINDOW
                for merge in plan_merges(extents, SLACK if whole else 1):
                    await self._write(ino, merge)
                    written += merge.size
                    done += len(merge.parts)
                    merged(done)
                    if gently and not self._asked:
                        busy = self._flusher.dirty_bytes > _MUCH
                        await trio.sleep(merge.size / (_RATE_BESIDE if busy else _RATE))
                    if gently and written >= _TURN:
                        return written
                await trio.lowlevel.checkpoint()
                start = extents[-1].stop
        return written

    async def _write(self, ino: int, merge: Merge) -> None:
        number = self._merging.policy(ino)
        if number is None:
            return
        policy = self._transfer.policy(number)
        answering = self._transfer.answering()
        answer = "depot answers" if answering == 1 else "depots answer"
        if answering < policy.copies:  # what is mapped now may have more copies than what would replace it
            raise DepotUnreachable(f"{policy.copies} copies are wanted and {answering} {answer}")
        free = self._transfer.free_bytes(policy.copies)
        if free is not None and free < self._flusher.dirty_bytes + _SPARE:
            raise NoSpace("the depots have too little room to write bytes anew before the old ones go")
        data = await self._read(merge.parts)
        if data is not None:
            await self._store(ino, merge.parts, policy, data)

    async def _read(self, parts: Sequence[Extent]) -> bytearray | None:
        """The bytes of the extents, one behind the other; None when they moved away meanwhile."""
        refs = self._merging.refs(parts)
        wanted = sorted(zip(_offsets(parts), parts, strict=True), key=lambda one: _place(refs.get(one[1].slice)))
        data = bytearray(sum(part.size for part in parts))
        for count, (at, part) in enumerate(wanted):
            if not count % _BETWEEN_CHECKPOINTS:
                await trio.lowlevel.checkpoint()
            ref = refs.get(part.slice)
            if ref is None:
                return None
            try:
                data[at : at + part.size] = await self._reader.read(ref, part.offset, part.offset + part.size)
            except DataError:
                if _place(self._merging.refs([part]).get(part.slice)) != _place(ref):
                    return None
                raise
        return data

    async def _store(self, ino: int, parts: Sequence[Extent], policy: Policy, data: bytearray) -> None:
        form = self._sealer.form(len(data))
        pieces = self._sealer.seal(form, data)
        check = self._sealer.digest(pieces)
        segment, offset = await self._transfer.append(policy, pieces, form.stored_length)
        try:
            if not segment.sound:
                raise DepotUnreachable(f"{policy.copies} copies are wanted and not all depots took the bytes")
            first, *others = _batches(list(zip(parts, _offsets(parts), strict=True)))
            with self._transfer.committing(segment) as row:
                new = Merged(form, check, row, offset, offset + form.stored_length)
                mapped = self._merging.exchange(ino, first, new, None)
            for batch in others:
                await trio.lowlevel.checkpoint()
                mapped = self._merging.exchange(ino, batch, new, mapped)
            await trio.to_thread.run_sync(self._clean.append, row, offset, pieces)
        finally:
            await self._transfer.release(segment)


def _advance(progress: Callable[[int, int], None], total: int, done: int, more: int) -> None:
    progress(min(done + more, total), total)


def _age(crowd: Crowd) -> float:
    """Seconds since the file was changed last, by its own account; 0 when a clock was put back since."""
    return max(0.0, time.time() - crowd.ctime_ns / 1e9)


def _offsets(parts: Sequence[Extent]) -> list[int]:
    """Where each begins when one stands behind the other."""
    return list(accumulate((part.size for part in parts[:-1]), initial=0))


def _batches(placed: Sequence[tuple[Extent, int]]) -> list[Sequence[tuple[Extent, int]]]:
    return [placed[at : at + MOST_EXCHANGED] for at in range(0, len(placed), MOST_EXCHANGED)]


def _place(ref: SliceRef | None) -> tuple[int, int]:
    return (0, 0) if ref is None else (ref.segment, ref.segment_offset)
