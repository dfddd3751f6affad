"""Which parts a file is made of: by the document alone, against a model of bytes; and what a stranger may claim."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.capability import Capability, CapabilityKind
from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.exnode import BadDocument, ExNode, Function, Mapping, Metadata
from ibpfs.exnode_store.documents.notation import Notation, read, write
from ibpfs.exnode_store.documents.sealed import HOLES, BadSlice, open_slice, sealed_function, slice_of, with_holes
from ibpfs.exnode_store.lors import importing
from ibpfs.exnode_store.lors.fetching import Unavailable
from ibpfs.exnode_store.lors.importing import MOST_REPLICAS, Found, plan, request
from ibpfs.exnode_store.sealing import AES_256_GCM, ForeignSlice, SliceForm, seal
from ibpfs_tools.exnode import caveats, faults_of

FORM = SliceForm(b"s" * 16, b"v" * 16, 3, AES_256_GCM, 64, 300)
KEY = b"k" * 32


def capability(number: int, port: int = 6714) -> Capability:
    return Capability("h", port, f"key{number}", "1", CapabilityKind.READ)


def mapping(offset: int, length: int, number: int = 0, *, at: int = 0) -> Mapping:
    return Mapping(offset, length, alloc_offset=at, alloc_length=length, read=capability(number))


def sealed(offset: int, length: int, begin: int, key: bytes | None = None) -> Mapping:
    function = sealed_function(ForeignSlice(FORM, begin, key))
    return Mapping(offset, length, 7, FORM.stored_length, function=function, read=capability(0))


mappings = st.lists(st.builds(lambda o, n, k, at: mapping(o, n, k, at=at), st.integers(0, 30), st.integers(0, 15),
                              st.integers(0, 3), st.integers(0, 9)), max_size=6)  # fmt: skip


@given(mappings, st.integers(0, 40))
def test_every_part_is_where_its_mappings_say(found: list[Mapping], size: int) -> None:
    exnode = with_holes(ExNode("x", size, mappings=tuple(found)))
    parts = plan(exnode)
    rows = request(exnode, parts, Found())
    covered = [False] * size
    for part, row in zip(parts, rows, strict=True):
        assert 0 <= part.start < part.stop <= size
        for at in range(part.start, part.stop):
            assert not covered[at]
            covered[at] = True
        told = {(one["read"], one["base"]) for one in row["replicas"]}
        expected = {
            (f"key{one.read.key[3:]}/1", one.alloc_offset + part.start - one.offset)
            for one in found
            if one.read and one.offset <= part.start and part.stop <= one.stop
        }
        assert told == expected
    assert covered == [any(one.offset <= at < one.stop for one in found) for at in range(size)]


def test_gaps_must_be_meant() -> None:
    exnode = ExNode("x", 10, mappings=(mapping(0, 5),))
    with pytest.raises(Unavailable, match="bytes 5 to 10"):
        plan(exnode)
    assert len(plan(with_holes(exnode))) == 1


def test_conditioned_bytes_are_copied_or_refused() -> None:
    function = Function("checksum", (Metadata("blocksize", "integer", 100),))
    bad = replace(mapping(0, 5, 1), function=function)
    with pytest.raises(UsageError, match=r"'checksum'.*--copy"):
        plan(ExNode("x", 5, mappings=(bad,)))
    (part,) = plan(ExNode("x", 5, mappings=(bad, mapping(0, 5, 2))))
    assert part.mappings == (1,)
    with pytest.raises(UsageError, match="no read capability"):
        plan(ExNode("x", 5, mappings=(replace(mapping(0, 5), read=None),)))


def test_what_a_stranger_may_claim_is_bounded() -> None:
    many = tuple(mapping(0, 5, number) for number in range(100))
    (part,) = plan(ExNode("x", 5, mappings=many))
    assert len(part.mappings) == MOST_REPLICAS
    spread = tuple(replace(mapping(n, 1), read=capability(0, port=n + 1)) for n in range(65))
    with pytest.raises(UsageError, match="65 depots"):
        plan(ExNode("x", 65, mappings=spread))


def test_no_file_is_too_large_to_be_refused() -> None:
    with pytest.raises(UsageError, match="claims"):
        plan(ExNode("x", 1 << 62, mappings=(mapping(0, 1 << 62),)))


def test_parts_that_overlap_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_MAPPINGS", 100)
    stairs = tuple(mapping(at, 100, at) for at in range(50))
    with pytest.raises(UsageError, match="more than 100 parts"):
        plan(with_holes(ExNode("x", 200, mappings=stairs)))


@pytest.mark.parametrize("notation", [Notation.XML, Notation.JSON])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_sealed_slice_travels(notation: Notation, key: bytes | None) -> None:
    exnode = ExNode("x", 150, mappings=(sealed(0, 100, 20, key), sealed(100, 50, 250, key)), metadata=(HOLES,))
    again = read(write(exnode, notation))
    assert [slice_of(one) for one in again.mappings] == [slice_of(one) for one in exnode.mappings]
    parts = plan(again)
    assert [(part.start, part.stop, part.sealed) for part in parts] == [
        (0, 100, ForeignSlice(FORM, 20, key)),
        (100, 150, ForeignSlice(FORM, 250, key)),
    ]
    row = request(again, parts, Found())[0]
    assert row["replicas"][0]["base"] == 7
    assert row["sealed"]["key"] == (None if key is None else key.hex())
    assert KEY.hex() not in repr(again)
    told = " ".join(caveats(again, notation))
    assert ("LoRS and libdlt cannot read" in told, "carries keys" in told) == (True, key is not None)


def test_a_part_of_a_part_begins_later_in_the_slice() -> None:
    """A mapping that begins in the middle of another cuts it; the slice is read whole, its bytes from further on."""
    exnode = ExNode("x", 100, mappings=(sealed(0, 100, 20), sealed(40, 60, 60)))
    first, second = plan(exnode)
    assert first.sealed is not None
    assert second.sealed is not None
    assert (first.stop, first.sealed.offset) == (40, 20)
    assert (second.start, second.sealed.offset, len(second.mappings)) == (40, 60, 2)


def test_sealed_bytes_open_with_their_key_alone() -> None:
    clear = bytes(range(256)) + bytes(44)
    stored = b"".join(seal(FORM, KEY, clear))
    assert open_slice(sealed_function(ForeignSlice(FORM, 20, KEY)), stored) == clear[20:]
    with pytest.raises(BadSlice, match="carries no key"):
        open_slice(sealed_function(ForeignSlice(FORM, 20)), stored)
    with pytest.raises(BadSlice, match="not those of its slice"):
        open_slice(sealed_function(ForeignSlice(FORM, 20, KEY)), stored[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slice", "xyz"), ("slice", "00"), ("volume", ""), ("KEY", "00"), ("KEY", "zz"), ("epoch", -1),
        ("frame_size", 0), ("frame_size", 1 << 40), ("slice_length", 0), ("slice_length", 1 << 62),
        ("slice_offset", 300), ("slice_offset", "x"), ("slice_length", 299),
    ],
)  # fmt: skip
def test_slices_that_make_no_sense(name: str, value: str | int) -> None:
    good = sealed(0, 100, 20, KEY)
    assert good.function is not None
    arguments = tuple(replace(one, value=value) if one.name == name else one for one in good.function.arguments)
    bad = replace(good, function=replace(good.function, arguments=arguments))
    with pytest.raises(BadDocument, match="mapping 0: "):
        plan(ExNode("x", 100, mappings=(bad,)))
    assert faults_of(ExNode("x", 100, mappings=(bad,)))
    assert not faults_of(with_holes(ExNode("x", 200, mappings=(good,))))
    nested = replace(good, function=replace(good.function, inner=Function("checksum")))
    with pytest.raises(BadDocument, match="conditioned once more"):
        plan(ExNode("x", 100, mappings=(nested,)))
