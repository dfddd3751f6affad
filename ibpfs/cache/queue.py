"""The queue of dirty files: which of their bytes fly next, together in which batch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from ibpfs.cache.dirty import DirtyFile, Flight
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.sealing import MAX_SLICE

#: Upload starts when the oldest dirty byte is this old (seconds), or a slice is full.
DELAY = 1.0
BATCH_SLICES = 256
#: Pieces among which the oldest is looked for.
_FEW = 64
#: Slices are cut down to this when the depots refuse longer ones.
SHORTEST = 64 * 1024


@dataclass(eq=False)
class Batch:
    policy: Policy
    flights: list[tuple[DirtyFile, Flight]]


class UploadQueue:
    """The dirty files of a volume. Whoever takes a batch carries it."""

    def __init__(self, policy: Callable[[int], Policy]) -> None:
        self._policy = policy
        self.files: dict[int, DirtyFile] = {}
        self.slice = MAX_SLICE  # shorter while the depots have little room
        self.urgent: set[int] = set()
        self.full: set[int] = set()  # files with a full slice, perhaps
        self._none_before = -math.inf  # until then no file is old

    @property
    def is_pressing(self) -> bool:
        """Whether there may be something that does not wait until it is old."""
        return bool(self.urgent or self.full)

    def next_batch(self) -> Batch | None:
        """What is most pressing: what somebody waits for, what is old, what fills a slice."""
        for due in (self._hurried, self._aged, self._overfull):
            batch = self._gather(due(), everything=due != self._overfull)
            if batch is not None:
                return batch
        return None

    def _gather(self, due: Iterable[DirtyFile], *, everything: bool) -> Batch | None:
        flights: list[tuple[DirtyFile, Flight]] = []
        size = 0
        policy: int | None = None
        last = None
        for file in due:
            if policy is not None and file.policy != policy:
                continue
            taken = self._take_off(file, everything, self.slice - size, BATCH_SLICES - len(flights))
            if taken:
                policy, last = file.policy, file
                flights += [(file, flight) for flight in taken]
                size += sum(flight.stop - flight.start for flight in taken)
            if size >= self.slice or len(flights) >= BATCH_SLICES:
                break
        if policy is None:
            return None
        if last is not None and last.idle > 0:  # the others come first now, or they would wait for its end
            self.files[last.ino] = self.files.pop(last.ino)
        return Batch(self._policy(policy), flights)

    # A batch is full long before 100,000 files were looked at.

    def _hurried(self) -> Iterator[DirtyFile]:
        return (self.files[ino] for ino in list(self.urgent) if ino in self.files)

    def _aged(self) -> Iterator[DirtyFile]:
        """With those that are old come those half as old: what files cost by the batch is most of their upload."""
        now = oldest = trio.current_time()
        if now < self._none_before:
            return
        found = taken = False
        for file in self.files.values():
            if file.oldest_at <= now - DELAY:
                found, flying = True, len(file.flights)
                yield file
                taken = taken or len(file.flights) > flying
            elif file.oldest_at < oldest:
                oldest = file.oldest_at
        if not found:
            self._none_before = oldest + DELAY
        elif taken:  # and not where what is old cannot fly, while its bytes of before do
            yield from (file for file in self.files.values() if file.oldest_at <= now - DELAY / 2)

    def make_old(self, file: DirtyFile) -> None:
        """What flew in vain does not wait again."""
        file.oldest_at = min(file.oldest_at, trio.current_time() - DELAY)
        self._none_before = -math.inf

    def _overfull(self) -> list[DirtyFile]:
        full = [self.files[ino] for ino in self.full if ino in self.files]
        self.full = {file.ino for file in full if file.idle >= MAX_SLICE}
        return [file for file in full if file.ino in self.full]

    def _take_off(self, file: DirtyFile, everything: bool, room: int, most: int) -> list[Flight]:
        flights: list[Flight] = []
        # Enough for one slice at least, so that a batch nearly full does not cut a run in two.
        for run in file.ready(self.slice, max(room, self.slice)):
            length = run[-1].stop - run[0].start
            if not everything and length < self.slice:
                continue
            if (length > room and room < self.slice) or len(flights) == most:
                return flights
            room -= length
            flights.append(file.take_off(run))
        if flights and file.idle <= 0:
            file.oldest_at = math.inf
            if everything:
                self.urgent.discard(file.ino)
        elif flights:
            file.oldest_at = max(file.oldest_at, self._oldest_left(file))
        return flights

    def _oldest_left(self, file: DirtyFile) -> float:
        """When the oldest byte of it was written that does not fly, as far as that is known and matters. Else a stream,
        of which there is always something left, would be old as a whole after a second, and fly in pieces as they come.

        Not where bytes were overwritten: these are as old as what they took the place of.
        """
        if len(file.extents) > _FEW or len(file.owed):
            return -math.inf
        written, now = [piece.source.mtime_ns for piece in file.left()], time.time_ns()
        if max(written) > now:  # the clock was set back
            return -math.inf
        return trio.current_time() - min((now - min(written)) / 1e9, DELAY)
