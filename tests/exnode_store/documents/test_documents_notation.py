"""Telling notations apart, and from one into the other."""

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.documents.exnode import BadDocument, ExNode
from ibpfs.exnode_store.documents.notation import Notation, notation_of, pick, read, read_all, recognise, write

from .shapes import SAMPLES, exnodes


@pytest.mark.parametrize(
    ("name", "expected"), [("in.xnd", Notation.XML), ("in.uef", Notation.JSON), ("lstore-ex3.exnode", Notation.LSTORE)]
)
def test_samples(name: str, expected: Notation) -> None:
    data = (SAMPLES / name).read_bytes()
    assert recognise(data) is expected
    if expected is Notation.LSTORE:
        with pytest.raises(BadDocument, match="L-Store"):
            read_all(data)
    else:
        assert read(data).size == 1500000
        assert read(b"\xef\xbb\xbf \n" + data).size == 1500000 if expected is Notation.JSON else True


def test_lstore_without_its_head() -> None:
    assert recognise(b"[view]\ndefault=1\n\n[segment-7]\ntype=lun\n") is Notation.LSTORE


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(BadDocument):
        read(data)


def test_suffixes() -> None:
    words = {"a.xnd": Notation.XML, "a.XML": Notation.XML, "a.json": Notation.JSON, "a.uef": Notation.JSON, "a": None}
    assert {name: notation_of(PurePath(name)) for name in words} == words


@given(exnodes)
def test_nothing_is_lost_on_the_way_there_and_back(exnode: ExNode) -> None:
    there = read(write(exnode, Notation.JSON))
    back = read(write(there, Notation.XML))
    again = read(write(back, Notation.JSON))
    for mapping, other in zip(exnode.mappings, again.mappings, strict=True):
        assert (mapping.read, mapping.function, mapping.metadata) == (other.read, other.function, other.metadata)
        assert (mapping.offset, mapping.alloc_offset, mapping.end) == (other.offset, other.alloc_offset, other.end)
        assert mapping.fields.items() <= other.fields.items()
    assert exnode.fields.items() <= again.fields.items()
    assert (exnode.name, exnode.size, exnode.modified) == (again.name, again.size, again.modified)
    assert set(exnode.metadata) <= set(again.metadata)


def test_picking() -> None:
    found = [ExNode("a", 1), ExNode("a", 2, fields={"id": "x"})]
    assert pick(found, "x").size == 2
    with pytest.raises(BadDocument, match="2 exNodes are called 'a'"):
        pick(found, "a")
