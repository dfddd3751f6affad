"""What a link names as it lies, and what is sealed anew for it: against a byte-by-byte model."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.extents import Piece
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.sealing import AES_256_GCM, CHACHA20_POLY1305, MAX_SLICE, PLAIN_XXH3, RAW, SliceForm
from ibpfs.exnode_store.sharing.planning import plan_share


def ref(row: int, segment: int, offset: int, length: int, function: int = AES_256_GCM) -> SliceRef:
    return SliceRef(row, SliceForm(bytes([row]) * 16, bytes(16), 1, function, 16, length), segment, offset)


@st.composite
def volumes(draw: st.DrawFn) -> list[SliceRef]:
    refs: list[SliceRef] = []
    for segment in range(draw(st.integers(1, 3))):
        at = 0
        for _ in range(draw(st.integers(1, 4))):
            at += draw(st.sampled_from([0, 0, 5]))  # what is dead lies between
            function = draw(st.sampled_from([AES_256_GCM, AES_256_GCM, CHACHA20_POLY1305, PLAIN_XXH3, RAW]))
            refs.append(ref(len(refs), segment, at, draw(st.integers(1, 60)), function))
            at += refs[-1].form.stored_length
    return refs


@st.composite
def shared(draw: st.DrawFn) -> tuple[list[list[Piece[SliceRef]]], set[int]]:
    refs = draw(volumes())
    files: list[list[Piece[SliceRef]]] = [[] for _ in range(draw(st.integers(1, 3)))]
    ends = [0] * len(files)
    for one in refs:
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.integers(0, one.form.length - 1))
            stop = draw(st.integers(start + 1, one.form.length))
            if draw(st.booleans()):
                start, stop = 0, one.form.length
            number = draw(st.integers(0, len(files) - 1))
            at = ends[number] + draw(st.sampled_from([0, 3]))
            files[number].append(Piece(at, at + stop - start, one, start))
            ends[number] = at + stop - start
    return files, draw(st.sets(st.sampled_from([one.row for one in refs])))


@given(shared())
def test_plans(drawn: tuple[list[list[Piece[SliceRef]]], set[int]]) -> None:
    files, refused = drawn
    plan = plan_share(files, lambda one: one.row in refused)
    mapped: dict[int, set[int]] = {}
    for piece in (piece for file in files for piece in file):
        length = piece.stop - piece.start
        mapped.setdefault(piece.source.row, set()).update(range(piece.offset, piece.offset + length))
    named = [one for span in plan.spans for one in span.slices]
    for one in named:
        assert one.form.function == AES_256_GCM
        assert one.row not in refused
        assert mapped[one.row] == set(range(one.form.length)), "a link opens no byte that is not shared"
    assert len({one.row for one in named}) == len(named)
    for span in plan.spans:
        at = span.offset
        for one in span.slices:
            assert (one.segment, one.segment_offset) == (span.segment, at)
            at += one.form.stored_length
        assert span.length == at - span.offset
    rows = {one.row for one in named}
    wanted = sorted((number, at, piece.source.row, piece.offset + at - piece.start) for number, file in enumerate(files)
                    for piece in file if piece.source.row not in rows for at in range(piece.start, piece.stop))
    found = []
    for group in plan.anew:
        assert sum(one.length for one in group) <= MAX_SLICE
        assert len({one.file for one in group}) == 1
        found += [(one.file, at, one.piece.source.row, one.piece.offset + at - one.piece.start)
                  for one in group for at in range(one.piece.start, one.piece.stop)]  # fmt: skip
    assert sorted(found) == wanted
    assert plan.copied_bytes == len(wanted)


def test_long_pieces_become_several_slices() -> None:
    long = ref(1, 1, 0, 3 * MAX_SLICE, RAW)
    plan = plan_share([[Piece(0, 2 * MAX_SLICE + 5, long, 7)]], lambda _: False)
    assert [sum(one.length for one in group) for group in plan.anew] == [MAX_SLICE, MAX_SLICE, 5]
