"""What compaction should do: which extents of a file to merge into new slices, which segments to pack together.

Pure: plain data in, a plan out. Who carries it out (cache.compactor, warmer) knows keys, depots and the clock.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: A new slice is at most this long (file bytes).
LONGEST = 4 * 1024 * 1024
#: And of at most so many extents.
MOST_PARTS = 4096
#: An extent of this length stands alone; a shorter one is merged when there are too many.
RICH = 512 * 1024
#: So many slices beyond one per RICH bytes a file may have before its poor extents are merged.
SLACK = 8
#: Dead bytes that make it worth to write the living rest of a half-dead slice anew.
WASTE = 256 * 1024
#: A file so many times over its bound is merged although it is still written.
HOT = 8

CROWDED = "more slices than its bytes are worth"
SHATTERED = "runs of bytes in too many pieces"
HALF_DEAD = "slices of which less than half is in use"

#: A segment with fewer live bytes than this is small; so many small ones of a policy may stand.
SMALL = 4 * 1024 * 1024
SMALL_SEGMENTS = 16
#: And so many of all policies together, as long as there are fewer policies than that.
SMALL_IN_ALL = 64


@dataclass(frozen=True, slots=True)
class Extent:
    """A mapping of one file: its bytes [start, stop) are those of `slice` from `offset` on.

    `length` and `mapped` are the slice's: file bytes it holds, and how many of them any mapping refers to.
    """

    start: int
    stop: int
    slice: int
    offset: int
    length: int
    mapped: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Merge:
    """Extents whose bytes, one behind the other, become one new slice. Holes between them stay holes."""

    parts: tuple[Extent, ...]
    reason: str

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


def may_be_due(extents: int, allocated: int) -> bool:
    """Whether a file with so many extents may have too many slices, or too many extents."""
    return _is_crowded(extents, allocated, SLACK)


def is_urgent(extents: int, allocated: int) -> bool:
    """Whether a file is so far over its bound that merging cannot wait for its writers to pause."""
    return extents > HOT * (allocated // RICH + 2 * SLACK)


def is_half_dead(length: int, mapped: int) -> bool:
    """Whether it is worth it to write what lives of a slice anew."""
    return mapped * 2 < length and length - mapped >= WASTE


def _is_crowded(slices: int, allocated: int, slack: int) -> bool:
    return slices > allocated // RICH + slack


def _is_shattered(joined: int, allocated: int, slack: int) -> bool:
    # Between rich extents there may be as many poor ones as rich: hence twice what slices are allowed.
    return joined > 2 * (allocated // RICH) + slack


def plan_merges(extents: Sequence[Extent], slack: int = SLACK) -> list[Merge]:
    """Return what to merge so that the file has at most (allocated bytes / RICH + slack) slices.

    `extents` in order of the file. All poor ones are merged when they are too many, so that what follows is a file
    whose plan is empty, and each byte is moved a few times in its life.
    """
    half_dead = _half_dead(extents)
    reason = _reason(extents, half_dead, slack)
    if reason == HALF_DEAD:
        return _groups([one for one in extents if one.slice in half_dead], reason)
    if reason:
        return _groups([one for one in extents if one.size < RICH or one.slice in half_dead], reason)
    return []


def _reason(extents: Sequence[Extent], half_dead: set[int], slack: int) -> str:
    allocated = sum(one.size for one in extents)
    if _is_crowded(len({one.slice for one in extents}), allocated, slack):
        return CROWDED
    if _is_shattered(sum(one.stop == behind.start for one, behind in pairwise(extents)), allocated, slack):
        return SHATTERED
    return HALF_DEAD if half_dead else ""


def _half_dead(extents: Sequence[Extent]) -> set[int]:
    """Slices that would go, with many dead bytes, were these extents written anew: nobody else refers to them."""
    mapped: Counter[int] = Counter()
    for one in extents:
        mapped[one.slice] += one.size
    return {
        one.slice
        for one in extents
        if is_half_dead(one.length, one.mapped) and mapped[one.slice] == one.mapped
    }


def _groups(extents: Sequence[Extent], reason: str) -> list[Merge]:
    """Fill one new slice after the other; extents are not cut, so each but the last is at least half full."""
    groups: list[list[Extent]] = []
    size = LONGEST
    for one in extents:
        if size + one.size > LONGEST or len(groups[-1]) == MOST_PARTS:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.size
    return [Merge(tuple(group), reason) for group in groups]


def most_segments(used: int) -> int:
    """How many segments a volume with so many stored bytes in use has at most, once it is packed."""
    return used // SMALL + 100


def plan_packing(segments: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """Return the segments whose live bytes are to be moved together, of (segment, policy, length, live).

    Those that are half dead; and the small ones of a policy, once there are more of them than may stand. Empty when
    what would be moved does not make up for the work.
    """
    half_dead = [segment for segment, _, length, live in segments if live * 2 < length]
    small: dict[int, list[int]] = {}
    for segment, policy, length, live in segments:
        if live < SMALL and live * 2 >= length:
            small.setdefault(policy, []).append(segment)
    most = min(SMALL_SEGMENTS, max(1, SMALL_IN_ALL // max(1, len(small))))
    return half_dead + [segment for group in small.values() if len(group) > most for segment in group]
