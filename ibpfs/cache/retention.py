"""Records that stay in the spool although their bytes are committed, until all copies of them stand (I1).

Meanwhile they serve the reads that no replica can serve, and are uploaded anew when no replica is left. New writes come
first: the oldest is let go when the spool needs its room.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ibpfs.cache.dirty import Flight, Run
from ibpfs.cache.sealer import Sealer
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import Record
from ibpfs.errors import DataError
from ibpfs.exnode_store.extents import ExtentMap, Piece
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica, SliceRef
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.sealing import SliceForm
from ibpfs.exnode_store.transfer import Transfer

_log = logging.getLogger(__name__)

#: Slices die without a word to the spool: with each look so many segments are searched for dead ones, in turn.
_SEARCHED = 4
#: Slices that are let go of at once, when no spool file is freed by it.
_MOST_DROPPED = 1000


@dataclass(eq=False, slots=True)
class RetainedSlice:
    """A slice whose file bytes the spool holds; `start` is where in the file it began."""

    ino: int
    start: int
    form: SliceForm
    pieces: Run
    proven: bool  # False: put together from an old spool, not yet compared with what was stored
    segment: int = 0

    @property
    def records(self) -> set[Record]:
        return {piece.source for piece in self.pieces}

    def parts(self, start: int, stop: int) -> Run:
        """What lies in [start, stop) of the file."""
        return [piece.cut(start, stop) for piece in self.pieces if piece.start < stop and start < piece.stop]


@dataclass
class _Group:
    """The retained slices of one segment, and its replicas as they were seen last."""

    replicas: list[Replica]
    slices: dict[RetainedSlice, None] = field(default_factory=dict)


class Retention:
    """What the spool holds beyond the dirty bytes. Each slice holds each of its records once."""

    def __init__(self, ledger: Ledger, transfer: Transfer, spool: Spool, sealer: Sealer) -> None:
        self._ledger = ledger
        self._transfer = transfer
        self._spool = spool
        self._sealer = sealer
        self._slices: dict[bytes, RetainedSlice] = {}  # by slice id, oldest first
        self._groups: OrderedDict[int, _Group] = OrderedDict()  # by segment
        self.bytes = 0

    # Coming in

    def take(self, policy: Policy, flights: Iterable[tuple[int, SliceForm, Flight]]) -> list[RetainedSlice]:
        """Hold the records of slices (inode, form, flight) on their way, where more copies may be wanted than are made.

        To be given back with `give_back`, or turned into what is retained with `keep`.
        """
        if policy.copies == 1:
            return []
        return [
            self._hold(RetainedSlice(ino, flight.start, form, flight.pieces, proven=True))
            for ino, form, flight in flights
        ]

    def is_wanted(self, taken: list[RetainedSlice], segment: int) -> bool:
        """Whether what is stored in `segment` is to be retained: whether it lacks copies."""
        return bool(taken) and self._ledger.is_short(segment)

    def keep(self, taken: list[RetainedSlice], segment: int) -> None:
        """They are committed in `segment`: retain them, and empty the list, if it lacks copies."""
        if not self.is_wanted(taken, segment):
            return
        for one in taken:
            self._add(one, segment)
        taken.clear()

    def give_back(self, taken: list[RetainedSlice]) -> None:
        """Hold them no more, and empty the list."""
        while taken:
            for record in taken.pop().records:
                self._spool.release(record)

    def adopt(self, ino: int, records: Sequence[Record]) -> None:
        """Retain the committed slices of a file that lack copies, if these records of it, by seq, hold their bytes."""
        seen: ExtentMap[Record] = ExtentMap()
        waiting = list(reversed(records))
        for start, covers, ref in self._ledger.short_slices(ino):
            # What was on top in the spool when the slice was sealed; a younger record came later.
            while waiting and waiting[-1].seq <= covers:
                record = waiting.pop()
                seen.overlay(record.offset, record.offset + record.length, record)
            pieces = seen.find(start, start + ref.form.length)
            if sum(piece.stop - piece.start for piece in pieces) == ref.form.length:
                self._add(self._hold(RetainedSlice(ino, start, ref.form, pieces, proven=False)), ref.segment)

    def _hold(self, one: RetainedSlice) -> RetainedSlice:
        for record in one.records:
            self._spool.hold(record)
        return one

    def _add(self, one: RetainedSlice, segment: int) -> None:
        self._slices[one.form.slice_id] = one
        self.bytes += one.form.length
        self._join(one, segment)

    def _join(self, one: RetainedSlice, segment: int) -> None:
        one.segment = segment
        if segment not in self._groups:
            self._groups[segment] = _Group(self._ledger.replicas(segment))
        self._groups[segment].slices[one] = None

    # Use

    def holds(self, ref: SliceRef) -> bool:
        return ref.form.slice_id in self._slices

    def read(self, ref: SliceRef, start: int, stop: int) -> bytes | None:
        """File bytes [start, stop) of a slice; None when they are not retained, or not as they were."""
        one = self._slices.get(ref.form.slice_id)
        if one is None or not self.is_sound(one):
            return None
        try:
            return b"".join(map(_bytes_of, one.parts(one.start + start, one.start + stop)))
        except DataError as error:
            self._give_up(one, str(error))
            return None

    def is_sound(self, one: RetainedSlice) -> bool:
        """Whether its records are what was stored; else it is retained no more."""
        if one.proven:
            return True
        expected = self._ledger.stored_digest(one.form.slice_id)
        try:
            data = b"".join(map(_bytes_of, one.pieces))
        except DataError as error:
            self._give_up(one, str(error))
            return False
        one.proven = expected is not None and self._sealer.would_be(one.form, expected, data)
        if not one.proven:  # a record that was overwritten before outlived the one above it
            self.let_go(one)
        return one.proven

    def _give_up(self, one: RetainedSlice, trouble: str) -> None:
        _log.warning("bytes of inode %d are no longer kept in the spool until all copies stand: %s", one.ino, trouble)
        self.let_go(one)

    # Going out

    def let_go(self, one: RetainedSlice) -> None:
        if self._slices.pop(one.form.slice_id, None) is None:
            return
        self.bytes -= one.form.length
        self._leave(one)
        self.give_back([one])

    def _leave(self, one: RetainedSlice) -> None:
        group = self._groups[one.segment]
        del group.slices[one]
        if not group.slices:
            del self._groups[one.segment]

    def settle(self, *, every: bool = False) -> None:
        """Let go of what has all its copies, and of what no file refers to any more: that is found by and by, or in
        `every` segment now."""
        searched = list(islice(self._groups, None if every else _SEARCHED))
        for segment in searched:
            self._groups.move_to_end(segment)
        replicas = self._ledger.replicas  # gives the same list as long as nothing changes
        changed = [segment for segment, group in self._groups.items() if group.replicas is not replicas(segment)]
        for segment in {*searched, *changed}:
            self._search(segment)

    def _search(self, segment: int) -> None:
        group = self._groups[segment]
        group.replicas = self._ledger.replicas(segment)
        is_short = self._ledger.is_short(segment)
        for one in list(group.slices):
            now = self._ledger.segment_of(one.form.slice_id)
            if now is None or not (is_short if now == segment else self._ledger.is_short(now)):
                self.let_go(one)
            elif now != segment:  # packed into another one
                self._leave(one)
                self._join(one, now)

    def lost(self) -> list[RetainedSlice]:
        """The slices of segments without a copy that can be read, while depots answer that could take them."""
        if not self._groups or self._transfer.answering() < self._transfer.policies.usual.min_copies:
            return []
        lost = [segment for segment in self._groups if self._transfer.is_lost(segment)]
        return [
            one
            for segment in lost
            for one in self._groups[segment].slices
            if self._ledger.segment_of(one.form.slice_id) == segment
        ]

    def drop_oldest(self) -> bool:
        """Let go of the oldest until a spool file is freed; False when there is nothing to let go of."""
        if not self._slices:
            return False
        for one in list(islice(self._slices.values(), _MOST_DROPPED)):
            self.let_go(one)
            if self._spool.reclaimable:
                break
        return True


def _bytes_of(piece: Piece[Record]) -> memoryview:
    data = piece.source.file.read(piece.source)
    return data[piece.offset : piece.offset + piece.stop - piece.start]
