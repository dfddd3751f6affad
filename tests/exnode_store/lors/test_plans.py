"""Plans over mappings, against byte-by-byte models."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.documents.conditioning import checksum_function
from ibpfs.exnode_store.documents.exnode import Mapping
from ibpfs.exnode_store.lors.plans import cover, fragments, holes, pieces, surplus, units

SIZE = 40
plain = st.builds(Mapping, st.integers(0, SIZE), st.integers(0, SIZE))
mappings = st.lists(plain, max_size=8)


def holders(found: list[Mapping], at: int) -> set[int]:
    return {number for number, one in enumerate(found) if one.offset <= at < one.stop}


@given(mappings, st.integers(0, SIZE))
def test_pieces(found: list[Mapping], size: int) -> None:
    seen = {}
    for piece in pieces(found, size):
        assert piece.start < piece.stop
        for at in range(piece.start, piece.stop):
            assert at not in seen
            seen[at] = set(piece.mappings)
    assert seen == {at: holders(found, at) for at in range(size)}


@given(mappings, st.sets(st.integers(0, 7)))
def test_holes(found: list[Mapping], without: set[int]) -> None:
    missing = {at for start, stop in holes(found, SIZE, without=without) for at in range(start, stop)}
    assert missing == {at for at in range(SIZE) if not holders(found, at) - without}
    ends = [end for hole in holes(found, SIZE, without=without) for end in hole]
    assert ends == sorted(set(ends))


@given(mappings, st.integers(1, 10))
def test_units(found: list[Mapping], longest: int) -> None:
    plan = units(found, SIZE, longest)
    assert [at for unit in plan for at in range(unit.start, unit.stop)] == list(range(SIZE))
    for unit in plan:
        assert unit.stop - unit.start <= longest
        assert all(set(unit.mappings) == holders(found, at) for at in range(unit.start, unit.stop))


def test_units_end_where_blocks_do() -> None:
    one = Mapping(100, 95, clear_block=10, function=checksum_function(10), alloc_length=425)
    assert [(unit.start, unit.stop) for unit in units([one], 195, 25) if unit.mappings] == [
        (100, 120), (120, 140), (140, 160), (160, 180), (180, 195)]  # fmt: skip


@given(mappings)
def test_a_cover_has_what_there_is(found: list[Mapping]) -> None:
    groups = cover(found, SIZE)
    have = {at for at in range(SIZE) if holders(found, at)}
    covered = {at for group in groups for at in range(found[group[0]].offset, min(found[group[0]].stop, SIZE))}
    assert covered == have
    for group in groups:
        assert len({(found[number].offset, found[number].length) for number in group}) == 1
    for skipped in range(len(groups)):  # nothing is copied for nothing
        rest = [group for number, group in enumerate(groups) if number != skipped]
        left = {at for group in rest for at in range(found[group[0]].offset, min(found[group[0]].stop, SIZE))}
        assert left != have


@given(mappings, st.integers(1, 3))
def test_surplus(found: list[Mapping], copies: int) -> None:
    gone = set(surplus(found, SIZE, copies, range(len(found))))
    for at in range(SIZE):
        before = holders(found, at)
        assert len(before - gone) >= min(copies, len(before))


def test_fragments() -> None:
    assert fragments(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert fragments(0, 4) == []
