"""Interval algebra against a byte array: every byte of the model names the source and offset it comes from."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.extents import ExtentMap, Piece, runs

SIZE = 60
NOTHING = (-1, 0)

spans = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))
#: what is done, its span, and at which byte of the source the piece begins
steps_of_a_file = st.lists(
    st.tuples(st.sampled_from(["overlay", "clear", "truncate"]), spans, st.integers(0, 9)), max_size=25
)

Cells = list[tuple[int, int]]


def cells_of(pieces: list[Piece[int]], start: int, stop: int) -> Cells:
    cells = [NOTHING] * (stop - start)
    for piece in pieces:
        for at in range(piece.start, piece.stop):
            assert cells[at - start] == NOTHING
            cells[at - start] = (piece.source, piece.offset + at - piece.start)
    return cells


def play(steps: list[tuple[str, tuple[int, int], int]]) -> tuple[ExtentMap[int], Cells]:
    """Do the same in both, comparing what each step takes away."""
    extents: ExtentMap[int] = ExtentMap()
    model: Cells = [NOTHING] * SIZE
    for source, (what, (start, stop), offset) in enumerate(steps):
        if what == "truncate":
            stop = SIZE
            hidden = extents.truncate(start)
        elif what == "clear":
            hidden = extents.clear(start, stop)
        else:
            hidden = extents.overlay(start, stop, source, offset)
        assert cells_of(hidden, start, stop) == model[start:stop]
        fresh = [(source, offset + at) for at in range(stop - start)]
        model[start:stop] = fresh if what == "overlay" else [NOTHING] * (stop - start)
    return extents, model


@given(steps_of_a_file)
def test_whole(steps: list[tuple[str, tuple[int, int], int]]) -> None:
    extents, model = play(steps)
    pieces = list(extents)
    assert cells_of(pieces, 0, SIZE) == model
    assert all(piece.start < piece.stop for piece in pieces)
    assert pieces == sorted(pieces, key=lambda piece: piece.start)
    assert len(extents) == len(pieces)
    assert extents.covered == SIZE - model.count(NOTHING)
    assert extents.end == max((at + 1 for at, cell in enumerate(model) if cell != NOTHING), default=0)
    assert list(ExtentMap(pieces[::-1])) == pieces


@given(steps_of_a_file, spans)
def test_find_and_holes(steps: list[tuple[str, tuple[int, int], int]], span: tuple[int, int]) -> None:
    extents, model = play(steps)
    start, stop = span
    assert cells_of(extents.find(start, stop), start, stop) == model[start:stop]
    holes = extents.holes(start, stop)
    assert all(begin < end for begin, end in holes)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(holes))
    empty = {at for begin, end in holes for at in range(begin, end)}
    assert empty == {at for at in range(start, stop) if model[at] == NOTHING}


@given(steps_of_a_file, st.integers(1, 20))
def test_runs(steps: list[tuple[str, tuple[int, int], int]], limit: int) -> None:
    extents, model = play(steps)
    groups = runs(list(extents), limit)
    assert cells_of([piece for group in groups for piece in group], 0, SIZE) == model
    for group in groups:
        assert group[-1].stop - group[0].start <= limit
        assert all(before.stop == after.start for before, after in itertools.pairwise(group))
    for before, after in itertools.pairwise(groups):
        touching = before[-1].stop == after[0].start
        # A run ends at a hole or because it is full, never otherwise.
        assert not touching or before[-1].stop - before[0].start == limit


def test_a_cut_keeps_the_place_in_the_source() -> None:
    assert Piece(10, 20, "s", 100).cut(12, 90) == Piece(12, 20, "s", 102)
    assert Piece(10, 20, "s", 100).cut(0, 15) == Piece(10, 15, "s", 100)


def test_sizes_do_not_matter() -> None:
    extents: ExtentMap[str] = ExtentMap()
    extents.overlay(0, 1, "first")
    extents.overlay(1 << 62, (1 << 62) + 1, "last")
    assert extents.holes(0, 1 << 62) == [(1, 1 << 62)]
    assert extents.truncate(5) == [Piece(1 << 62, (1 << 62) + 1, "last", 0)]
