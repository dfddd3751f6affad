"""Which slices a link can name as they lie, and which must be sealed anew for it. Pure.

As they lie: slices that a browser can open, and all of whose bytes are shared. Of the others a private copy is made, so
that the link opens no byte that is not shared, earlier or later.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ibpfs.exnode_store.extents import ExtentMap, Piece
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.sealing import AES_256_GCM, MAX_SLICE

Pieces = Sequence[Piece[SliceRef]]


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """Slices that lie back to back in a segment, by offset."""

    segment: int
    slices: tuple[SliceRef, ...]

    @property
    def offset(self) -> int:
        return self.slices[0].segment_offset

    @property
    def length(self) -> int:
        last = self.slices[-1]
        return last.segment_offset + last.form.stored_length - self.offset

    @property
    def clear_length(self) -> int:
        """Bytes of files."""
        return sum(one.form.length for one in self.slices)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A piece of file number `file`."""

    file: int
    piece: Piece[SliceRef]

    @property
    def length(self) -> int:
        return self.piece.stop - self.piece.start


@dataclass
class SharePlan:
    """`anew`: what goes into one new slice each."""

    spans: list[StoredSpan] = field(default_factory=list)
    anew: list[list[Excerpt]] = field(default_factory=list)

    @property
    def aliased_bytes(self) -> int:
        return sum(span.clear_length for span in self.spans)

    @property
    def copied_bytes(self) -> int:
        return sum(one.length for group in self.anew for one in group)


def plan_share(files: Sequence[Pieces], refused: Callable[[SliceRef], bool]) -> SharePlan:
    """`refused`: slices that cannot be named where they lie, whatever they are."""
    whole = {ref.row for ref in _wholly_shared(files) if ref.form.function == AES_256_GCM and not refused(ref)}
    refs = {piece.source.row: piece.source for file in files for piece in file if piece.source.row in whole}
    left = [Excerpt(number, cut) for number, file in enumerate(files) for piece in file
            if piece.source.row not in whole for cut in _cut(piece)]  # fmt: skip
    return SharePlan(list(_spans(list(refs.values()))), list(_groups(left)))


def _wholly_shared(files: Sequence[Pieces]) -> Iterator[SliceRef]:
    covered: dict[int, ExtentMap[None]] = {}
    refs: dict[int, SliceRef] = {}
    for file in files:
        for piece in file:
            row = piece.source.row
            refs[row] = piece.source
            length = piece.stop - piece.start
            covered.setdefault(row, ExtentMap()).overlay(piece.offset, piece.offset + length, None)
    for row, ref in refs.items():
        if covered[row].covered == ref.form.length:
            yield ref


def _spans(refs: list[SliceRef]) -> Iterator[StoredSpan]:
    refs.sort(key=lambda ref: (ref.segment, ref.segment_offset))
    if not refs:
        return
    span = [refs[0]]
    for before, ref in pairwise(refs):
        if ref.segment != before.segment or ref.segment_offset != before.segment_offset + before.form.stored_length:
            yield StoredSpan(before.segment, tuple(span))
            span = []
        span.append(ref)
    yield StoredSpan(refs[-1].segment, tuple(span))


def _cut(piece: Piece[SliceRef]) -> Iterator[Piece[SliceRef]]:
    for start in range(piece.start, piece.stop, MAX_SLICE):
        stop = min(start + MAX_SLICE, piece.stop)
        yield Piece(start, stop, piece.source, piece.offset + start - piece.start)


def _groups(excerpts: Sequence[Excerpt]) -> Iterator[list[Excerpt]]:
    """Never of two files: so a new slice holds bytes of one."""
    group: list[Excerpt] = []
    length = 0
    for one in excerpts:
        if group and (one.file != group[0].file or length + one.length > MAX_SLICE):
            yield group
            group, length = [], 0
        group.append(one)
        length += one.length
    if group:
        yield group
