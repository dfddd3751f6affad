"""Dirty extents: what of a file only the spool knows. Plain data and algebra; no task, no socket."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ibpfs.cache.spool_file import Record
from ibpfs.exnode_store.extents import ExtentMap, Piece, runs
from ibpfs.exnode_store.sealing import Sealing

Run = list[Piece[Record]]

#: How far the seqs of new records run ahead of the inode's version in the store: changes that know nothing of the
#: spool (a rename, an attribute) count it up by one each and must not make it look as if it held a record's times.
LEAP = 1 << 20


@dataclass(eq=False)
class Flight:
    """A run of a file on its way to the depots. `limit`: truncations since have cut it there; `is_stored`: depots hold
    it, and its commit waits for others; `is_promised`: an fsync was answered meanwhile."""

    start: int
    stop: int
    covers: int
    pieces: Run
    limit: int
    is_stored: bool = False
    is_promised: bool = False


class RecordMemory:
    """Clear data of spool records in memory, bounded; what it has dropped is read back from the spool."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data: OrderedDict[Record, bytes] = OrderedDict()
        self._size = 0

    def keep(self, record: Record, data: bytes) -> None:
        self._data[record] = data
        self._size += len(data)
        while self._size > self._limit:
            _, dropped = self._data.popitem(last=False)
            self._size -= len(dropped)

    def read(self, piece: Piece[Record]) -> memoryview:
        """The piece's bytes. DataError when the spool file is damaged."""
        data = self._data.get(piece.source)
        if data is None:
            return piece.source.file.read(piece.source, piece.offset, piece.offset + piece.stop - piece.start)
        return memoryview(data)[piece.offset : piece.offset + piece.stop - piece.start]

    def forget(self, record: Record) -> None:
        dropped = self._data.pop(record, None)
        if dropped is not None:
            self._size -= len(dropped)


@dataclass(slots=True)
class Begun:
    """A slice that is sealed while it is written, in these records; `start` is where in the file it begins."""

    start: int
    sealing: Sealing
    records: list[Record] = field(default_factory=list)


@dataclass(eq=False)
class DirtyFile:
    """One inode's dirty state. `version` is the newest record's seq, or a number that the next one's is above."""

    ino: int
    generation: int
    policy: int
    version: int
    extents: ExtentMap[Record] = field(default_factory=ExtentMap)
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    oldest_at: float = math.inf  # monotonic; when its oldest idle dirty byte was written
    flights: list[Flight] = field(default_factory=list)
    held: dict[Record, int] = field(default_factory=dict)  # dirty bytes that still come from each record
    dirty: int = 0  # their sum
    when_clean: list[Callable[[], None]] = field(default_factory=list)  # called once, when nothing is dirty any more
    stored_seq: int = -1  # all records up to this one are on the depots, though perhaps not committed
    is_changed_in_flight: bool = False  # something that flies was overwritten, or cut, since it took off
    begun: Begun | None = None  # the last one that was
    changes: int = 0  # how often something dirty was overwritten, or cut
    #: Dirty bytes that took the place of older dirty ones, and the seq from which on no depot holds them: that of the
    #: oldest since a flight of these bytes landed, or one before it.
    owed: ExtentMap[int] = field(default_factory=ExtentMap)

    def stored(self, version: int) -> None:
        """The store's row, at this version, holds the times of all records so far."""
        self.version = max(self.version, version) + LEAP

    @property
    def is_clean(self) -> bool:
        return not self.held and not self.flights

    def add(self, record: Record, start: int, stop: int, offset: int = 0) -> list[Record]:
        """Put [start, stop) of a record on top; return the records that nothing needs any more."""
        hidden = self.extents.overlay(start, stop, record, offset)
        if hidden:
            self._overwritten(hidden)
        self.held[record] = self.held.get(record, 0) + stop - start
        self.dirty += stop - start
        return self._let_go(hidden)

    def _overwritten(self, hidden: list[Piece[Record]]) -> None:
        self.changes += 1
        self.is_changed_in_flight = bool(self.flights)
        for piece in hidden:
            for start, stop in self.owed.holes(piece.start, piece.stop):
                self.owed.overlay(start, stop, piece.source.seq)

    def truncate(self, size: int) -> list[Record]:
        """Drop what lies beyond; return the records that nothing needs any more."""
        self.changes += 1
        self.owed.truncate(size)
        for flight in self.flights:
            flight.limit = min(flight.limit, size)
            self.is_changed_in_flight = True
        return self._let_go(self.extents.truncate(size))

    def landed(self, flight: Flight) -> list[Record]:
        """The flight is committed: what of it was not overwritten since is clean. Returns the records let go."""
        is_whole = not self.is_changed_in_flight
        self._leave(flight)
        self.owed.clear(flight.start, flight.stop)
        if is_whole:
            return self._let_go(self.extents.clear(flight.start, flight.stop))
        flown = {piece.source for piece in flight.pieces}
        found = self.extents.find(flight.start, flight.stop)
        if all(piece.source in flown for piece in found):
            return self._let_go(self.extents.clear(flight.start, flight.stop))
        gone: list[Piece[Record]] = []
        for piece in found:
            if piece.source in flown:
                gone += self.extents.clear(piece.start, piece.stop)
            else:
                self.owed.overlay(piece.start, piece.stop, flight.covers + 1)
        return self._let_go(gone)

    def grounded(self, flight: Flight) -> None:
        """The flight failed: its bytes are still dirty and may fly again."""
        self._leave(flight)

    def _leave(self, flight: Flight) -> None:
        self.flights.remove(flight)
        self.is_changed_in_flight = self.is_changed_in_flight and bool(self.flights)

    def is_stored_up_to(self, seq: int) -> bool:
        """Whether depots hold all that is dirty of the records up to this one."""
        if self.stored_seq >= seq or self.is_changed_in_flight:
            return self.stored_seq >= seq
        left = sum(length for record, length in self.held.items() if record.seq <= seq)
        for flight in self.flights:
            if flight.is_stored:
                left -= sum(piece.stop - piece.start for piece in flight.pieces if piece.source.seq <= seq)
        return left <= 0

    def promise(self) -> None:
        """An fsync is answered for what depots hold."""
        for flight in self.flights:
            flight.is_promised = flight.is_promised or flight.is_stored

    def note_stored(self) -> None:
        """Some flights have become stored: note up to which record that makes all of them."""
        if not self.is_changed_in_flight and self.idle <= 0 and all(flight.is_stored for flight in self.flights):
            self.stored_seq = self.version

    def ready(self, limit: int, enough: int) -> list[Run]:
        """The first dirty runs that no flight touches, of at most `limit` bytes each, about `enough` bytes in all.

        Where a slice begins that is sealed already, a run does, and the bytes before it count for nothing.
        """
        idle: Run = []
        size = 0
        for part in self.left():
            idle.append(part)
            size = part.stop - part.start + (0 if _begins_slice(part) else size)
            if size >= enough:
                break
        return runs(idle, limit, _begins_slice)

    def left(self) -> Iterable[Piece[Record]]:
        """What no flight touches, in order."""
        return _outside(self.extents, self.flights) if self.flights else self.extents

    @property
    def idle(self) -> int:
        """About how many dirty bytes no flight carries."""
        return self.dirty - sum([flight.stop - flight.start for flight in self.flights])

    def cleaned_by(self, flights: list[Flight]) -> bool:
        """Whether nothing is dirty any more once these have landed."""
        if len(flights) < len(self.flights):
            return False
        if not self.is_changed_in_flight:
            return self.idle == 0
        landing = 0
        for flight in flights:
            flown = {piece.source for piece in flight.pieces}
            found = self.extents.find(flight.start, flight.stop)
            landing += sum(piece.stop - piece.start for piece in found if piece.source in flown)
        return landing == self.dirty

    def take_off(self, run: Run) -> Flight:
        flight = Flight(run[0].start, run[-1].stop, self.version, run, run[-1].stop)
        self.flights.append(flight)
        return flight

    def holds_up_to(self, seq: int) -> bool:
        """Whether some bytes are not committed, neither as they were at this seq nor as they were written since.

        Whoever overwrites them for ever holds up nobody: what flies is committed as it took off.
        """
        return any(record.seq <= seq for record in self.held) or any(piece.source <= seq for piece in self.owed)

    def drop(self) -> list[Record]:
        """The file is gone: return all its records."""
        self.owed.truncate(0)
        return self._let_go(self.extents.truncate(0))

    def _let_go(self, pieces: list[Piece[Record]]) -> list[Record]:
        freed = []
        for piece in pieces:
            frames = piece.source.frames
            if frames is not None and frames.sealing is not None:
                frames.sealing.is_usable = False  # what is overwritten, or cut, does not fly as it was sealed
            self.dirty -= piece.stop - piece.start
            left = self.held[piece.source] - (piece.stop - piece.start)
            if left:
                self.held[piece.source] = left
            else:
                del self.held[piece.source]
                freed.append(piece.source)
        return freed


def _begins_slice(piece: Piece[Record]) -> bool:
    frames = piece.source.frames
    if frames is None or frames.first or piece.offset:
        return False
    return frames.sealing is not None and frames.sealing.is_usable and frames.sealing.is_whole


def _outside(pieces: Iterable[Piece[Record]], flights: Sequence[Flight]) -> Iterator[Piece[Record]]:
    """The parts of pieces, which are in order, that no flight touches. Side by side, because both may be hundreds."""
    spans = deque(sorted((flight.start, flight.stop) for flight in flights))
    for piece in pieces:
        at = piece.start
        while spans and spans[0][0] < piece.stop:
            start, stop = spans[0]
            if at < start:
                yield piece.cut(at, start)
            at = max(at, stop)
            if stop > piece.stop:
                break  # it touches the next piece, too
            spans.popleft()
        if at < piece.stop:
            yield piece.cut(at, piece.stop)
