"""Plans of compaction: after them the bounds hold and nothing is left to do; what a file shows is the same."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store import compaction
from ibpfs.exnode_store.compaction import (
    CROWDED,
    HALF_DEAD,
    RICH,
    SHATTERED,
    SLACK,
    SMALL_SEGMENTS,
    Extent,
    Merge,
    is_half_dead,
    is_urgent,
    may_be_due,
    plan_merges,
    plan_packing,
)

KIB = 1024
MIB = 1024 * KIB
#: The promise: a file has at most one slice per 256 KiB, and so many more.
PER_SLICE, MORE = 256 * KIB, 16


class File:
    """A file as its slices: runs of numbered bytes, overlaid in the order of their writing."""

    def __init__(self, unit: int) -> None:
        self.unit = unit
        self.content = bytearray()
        self.owner: list[tuple[int, int] | None] = []  # per unit of the file: its slice, and which unit of that
        self.lengths: dict[int, int] = {}
        self.bytes: dict[int, bytes] = {}

    def write(self, start: int, data: bytes) -> None:
        row = len(self.lengths) + 1
        self.lengths[row], self.bytes[row] = len(data), data
        stop = start + len(data)
        self.owner += [None] * (stop - len(self.owner))
        self.content += bytes(max(0, stop - len(self.content)))
        self.owner[start:stop] = [(row, at) for at in range(len(data))]
        self.content[start:stop] = data

    def extents(self) -> list[Extent]:
        mapped = Counter(owner[0] for owner in self.owner if owner)
        found: list[Extent] = []
        for at, owner in enumerate(self.owner):
            if owner is None:
                continue
            row, offset = owner
            last = found[-1] if found else None
            unit = self.unit
            if last and last.stop == at * unit and last.slice == row and last.offset + last.size == offset * unit:
                start, begin = last.start, last.offset
                found.pop()
            else:
                start, begin = at * unit, offset * unit
            found.append(
                Extent(start, (at + 1) * unit, row, begin, self.lengths[row] * unit, mapped[row] * unit)
            )
        return found

    def carry_out(self, merge: Merge) -> None:
        row = len(self.lengths) + 1
        size = merge.size // self.unit
        data = b"".join(
            self.bytes[part.slice][part.offset // self.unit :][: part.size // self.unit] for part in merge.parts
        )
        assert len(data) == size
        self.lengths[row], self.bytes[row] = size, data
        at = 0
        for part in merge.parts:
            for unit in range(part.start // self.unit, part.stop // self.unit):
                assert self.owner[unit] is not None
                self.owner[unit] = (row, at)
                at += 1

    def shown(self) -> bytes:
        return bytes(0 if owner is None else self.bytes[owner[0]][owner[1]] for owner in self.owner)


writes = st.lists(
    st.tuples(st.integers(0, 600), st.integers(1, 60), st.integers(1, 255)), min_size=1, max_size=120
)


@given(writes, st.sampled_from([1, 4 * KIB, 64 * KIB]), st.sampled_from([SLACK, 1]))
def test_after_a_plan_the_bounds_hold_and_the_file_shows_the_same(
    made: list[tuple[int, int, int]], unit: int, slack: int
) -> None:
    file = File(unit)
    for start, length, byte in made:
        file.write(start, bytes([byte]) * length)
    before = file.extents()
    plan = plan_merges(before, slack)
    for merge in plan:
        file.carry_out(merge)
    after = file.extents()
    assert file.shown() == file.content
    allocated = sum(one.size for one in after)
    assert allocated == sum(one.size for one in before)
    assert len({one.slice for one in after}) <= allocated // PER_SLICE + MORE
    assert len({one.slice for one in after}) <= allocated // RICH + slack
    assert sum(a.stop == b.start for a, b in pairwise(after)) <= 2 * (allocated // RICH) + slack
    assert not any(one.mapped * 2 < one.length and one.length - one.mapped >= compaction.WASTE for one in after)
    assert plan_merges(after, slack) == []


@given(writes, st.sampled_from([1, 4 * KIB, 64 * KIB]))
def test_what_has_a_plan_is_looked_at(made: list[tuple[int, int, int]], unit: int) -> None:
    file = File(unit)
    for start, length, byte in made:
        file.write(start, bytes([byte]) * length)
    extents = file.extents()
    if plan_merges(extents):
        half_dead = any(is_half_dead(one.length, one.mapped) for one in extents)
        assert half_dead or may_be_due(len(extents), sum(one.size for one in extents))


def appended(sizes: Sequence[int], gap: int = 0) -> list[Extent]:
    """Slices one behind the other, or `gap` apart."""
    starts = accumulate((size + gap for size in sizes[:-1]), initial=0)
    return [Extent(at, at + size, row, 0, size, size) for row, (at, size) in enumerate(zip(starts, sizes, strict=True))]


def test_a_few_slices_stay() -> None:
    assert plan_merges(appended([4 * KIB] * SLACK)) == []
    assert plan_merges([]) == []


def test_many_small_slices_become_a_long_one() -> None:
    (merge,) = plan_merges(appended([4 * KIB] * 1000))
    assert merge.reason == CROWDED
    assert merge.size == 4000 * KIB


def test_long_slices_are_left_alone() -> None:
    extents = appended([4 * MIB] * 100 + [4 * KIB] * 1000)
    assert [part.size for merge in plan_merges(extents) for part in merge.parts] == [4 * KIB] * 1000


def test_no_new_slice_is_longer_than_a_slice_may_be() -> None:
    plan = plan_merges(appended([300 * KIB] * 100))
    assert all(4 * MIB - 300 * KIB < merge.size <= 4 * MIB for merge in plan[:-1])


def test_islands_in_a_huge_hole_share_slices() -> None:
    plan = plan_merges(appended([100] * 5000, gap=1 << 40))
    assert [len(merge.parts) for merge in plan] == [4096, 904]


def test_a_long_slice_shattered_by_small_ones_is_written_anew_with_them() -> None:
    extents = []
    for at in range(0, 512, 2):  # every other 4 KiB of a 2 MiB slice is overwritten, in two slices
        extents.append(Extent(at * 4096, (at + 1) * 4096, 1, at * 4096, 512 * 4096, 256 * 4096))
        extents.append(Extent((at + 1) * 4096, (at + 2) * 4096, 2 + at % 4, at * 2048, 128 * 4096, 128 * 4096))
    (merge,) = plan_merges(extents)
    assert merge.reason == SHATTERED
    assert merge.size == 2 * MIB


def test_the_living_rest_of_a_dead_slice_is_written_anew() -> None:
    rest = Extent(0, 100 * KIB, 1, 0, 4 * MIB, 100 * KIB)
    assert plan_merges([rest]) == [Merge((rest,), HALF_DEAD)]
    assert plan_merges([Extent(0, 100 * KIB, 1, 0, 300 * KIB, 100 * KIB)]) == []  # not worth it


def test_a_slice_that_others_hold_stays() -> None:
    assert plan_merges([Extent(0, 100 * KIB, 1, 0, 4 * MIB, 200 * KIB)]) == []


def test_a_file_far_over_its_bound_does_not_wait() -> None:
    assert not is_urgent(100, 0)
    assert is_urgent(200, 0)
    assert not is_urgent(200, 64 * MIB)


def test_half_dead_segments_are_packed() -> None:
    assert plan_packing([(1, 1, 100 << 20, 49 << 20), (2, 1, 100 << 20, 51 << 20)]) == [1]


def test_small_segments_are_packed_when_there_are_many() -> None:
    small = [(number, 1, 1000, 900) for number in range(SMALL_SEGMENTS + 1)]
    assert plan_packing(small[1:]) == []
    assert plan_packing(small) == list(range(SMALL_SEGMENTS + 1))


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(0, 17 * MIB), st.floats(0, 1)).map(
            lambda one: (one[0], one[1], int(one[1] * one[2]))
        ),
        max_size=400,
    )
)
def test_what_is_not_packed_keeps_the_bound(made: list[tuple[int, int, int]]) -> None:
    segments = [(number, *one) for number, one in enumerate(made)]
    packed = set(plan_packing(segments))
    left = [one for one in segments if one[0] not in packed]
    # Where the rest goes: full segments of 16 MiB, and the last one of each policy.
    moved = Counter[int]()
    for number, policy, _, live in segments:
        if number in packed:
            moved[policy] += live
    new = sum(size // (12 * MIB) + 1 for size in moved.values())
    used = sum(live for *_, live in segments)
    assert len(left) + new <= used // (4 * MIB) + 100


@pytest.mark.parametrize("policies", [1, 5, 64])
def test_small_segments_of_many_policies_keep_the_bound(policies: int) -> None:
    segments = [(number, number % policies, 1000, 900) for number in range(1000)]
    left = 1000 - len(plan_packing(segments))
    assert left + policies <= 100
