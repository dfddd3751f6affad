"""Which bytes go where, and which can be had from where: plans over mappings. Pure."""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ibpfs.exnode_store.documents.conditioning import clear_block
from ibpfs.exnode_store.documents.exnode import Mapping

#: At most so many of the replicas of a range are tried; a document may claim any number.
_MOST_TRIED = 64

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of the file that is fetched at once, and the mappings that have it whole, by number."""

    start: int
    stop: int
    mappings: tuple[int, ...]


def fragments(size: int, block: int) -> list[Range]:
    """Return the ranges of a file that is cut every `block` bytes."""
    return [(start, min(start + block, size)) for start in range(0, size, block)]


def pieces(mappings: Sequence[Mapping], size: int) -> Iterator[Unit]:
    """The file cut wherever a mapping begins or ends, in order; a piece without mappings is a hole."""
    events = [(at, mapping.offset, number) for number, mapping in enumerate(mappings) if mapping.length
              for at in (mapping.offset, mapping.stop)]  # fmt: skip
    events.sort()
    active: list[int] = []
    at = 0
    for where, begins, number in events:
        if min(where, size) > at:
            yield Unit(at, min(where, size), tuple(active[:_MOST_TRIED]))
            at = min(where, size)
        if where == begins:
            insort(active, number)
        else:
            del active[bisect_left(active, number)]
    if at < size:
        yield Unit(at, size, ())


def holes(mappings: Sequence[Mapping], size: int, *, without: Collection[int] = ()) -> list[Range]:
    """Return what no mapping has, neighbours joined; mappings `without` do not count."""
    left = [mapping for number, mapping in enumerate(mappings) if number not in without]
    found: list[Range] = []
    for piece in pieces(left, size):
        if not piece.mappings:
            joins = found and found[-1][1] == piece.start
            found[-1:] = [(found[-1][0], piece.stop)] if joins else [*found[-1:], (piece.start, piece.stop)]
    return found


def units(mappings: Sequence[Mapping], size: int, longest: int) -> Iterator[Unit]:
    """Yield what to fetch; a piece is cut to `longest` bytes, at the ends of conditioned blocks if it has them.

    A document may claim any size: nobody makes a list of them.
    """
    for piece in pieces(mappings, size):
        for start, stop in _cuts(piece, mappings, longest):
            yield Unit(start, stop, piece.mappings)


def _cuts(piece: Unit, mappings: Sequence[Mapping], longest: int) -> Iterator[Range]:
    first = mappings[piece.mappings[0]] if piece.mappings else None
    step, origin = longest, piece.start
    if first is not None and first.conditioned:
        block = clear_block(first)
        if block is None:
            step = piece.stop - piece.start
        else:
            step, origin = max(longest // block, 1) * block, first.offset
    start = piece.start
    while start < piece.stop:
        stop = min(origin + ((start - origin) // step + 1) * step, piece.stop)
        yield start, stop
        start = stop


def cover(mappings: Sequence[Mapping], size: int) -> list[list[int]]:
    """Return the mappings to copy so that the whole file is copied once: per range all that are replicas of it.

    Greedy: of those that have the next byte, the ones that reach farthest.
    """
    alike: dict[Range, list[int]] = {}
    for number, mapping in enumerate(mappings):
        if mapping.length and mapping.offset < size:
            alike.setdefault((mapping.offset, mapping.stop), []).append(number)
    chosen: list[list[int]] = []
    at, best = 0, (0, 0)
    for begin, end in sorted(alike):
        if begin > at and best[1] > at:
            chosen.append(alike[best])
            at = best[1]
        if begin > at:
            at = begin  # a hole
        if min(end, size) > best[1]:
            best = (begin, end)
    if best[1] > at:
        chosen.append(alike[best])
    return chosen


def surplus(mappings: Sequence[Mapping], size: int, copies: int, worst_first: Sequence[int]) -> list[int]:
    """Return mappings that can go so that every byte keeps `copies` of them, or as many as it has."""
    found = list(pieces(mappings, size))
    starts, counts = [piece.start for piece in found], [len(piece.mappings) for piece in found]
    gone = []
    for number in worst_first:
        mapping = mappings[number]
        touched = range(bisect_left(starts, mapping.offset), bisect_left(starts, mapping.stop))
        if all(counts[one] > copies for one in touched):
            gone.append(number)
            for one in touched:
                counts[one] -= 1
    return gone
