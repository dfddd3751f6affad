"""JSON exNodes: LoRS' export, UNIS of all ages, hostile ones, round trips."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.address import Address
from ibpfs.exnode_store.documents.exnode import BadDocument, ExNode
from ibpfs.exnode_store.documents.json import EXNODE_SCHEMA, EXTENT_SCHEMA, read_json, write_json

from .shapes import SAMPLES, exnodes

CAP = "ibp://depot1.example.org:6714/1#abc/3862277/READ"
SECONDS = 1795171526


def extent(**changes: Any) -> dict[str, Any]:
    found = {"offset": 0, "size": 10, "mapping": {"read": CAP}, "location": "ibp://depot1.example.org:6714"}
    return {name: value for name, value in {**found, **changes}.items() if value is not ...}


def exnode(*extents: Any, **changes: Any) -> bytes:
    found = {"name": "n", "mode": "file", "size": 10, "created": SECONDS, "modified": SECONDS, "parent": None}
    return json.dumps({**found, "extents": list(extents), **changes}).encode()


def test_the_captured_export() -> None:
    (found,) = read_json((SAMPLES / "in.uef").read_bytes())
    assert (found.name, found.size, len(found.mappings), found.created) == ("in.bin", 1500000, 6, SECONDS * 1_000_000)
    assert found.fields == {"parent": {"href": "", "rel": "full"}}
    first = found.mappings[0]
    assert first.start is not None
    assert first.end is not None
    assert first.end - first.start == 7200 * 1_000_000
    written = json.loads(write_json(found))
    assert written["$schema"] == EXNODE_SCHEMA
    assert written["created"] == written["updated"] == SECONDS * 1_000_000
    assert written["extents"][0]["$schema"] == EXTENT_SCHEMA
    assert written["extents"][0]["location"] == "ibp://127.0.0.1:16715"
    assert written["extents"][0]["lifetime"] == {"start": str(first.start), "end": str(first.end)}


def test_libdlt() -> None:
    """The example of schema 6, with fields this project has no use for."""
    full = extent(
        **{"$schema": EXTENT_SCHEMA, "id": "x1", "parent": {"href": "http://u/exnodes/1", "rel": "full"}, "index": 0},
        alloc_offset=0,
        alloc_length=10,
        lifetime={"start": str(SECONDS * 10**6), "end": str(SECONDS * 10**6 + 5)},
        ts=7,
    )
    text = exnode(full, created=SECONDS * 10**6, modified=SECONDS * 10**6, owner="alice", status="UNKNOWN")
    (found,) = read_json(text)
    assert found.created == SECONDS * 10**6
    assert found.fields == {"owner": "alice", "status": "UNKNOWN"}
    written = json.loads(write_json(found))
    assert {"owner": "alice", "parent": None}.items() <= written.items()
    assert full.items() <= written["extents"][0].items()
    (again,) = read_json(write_json(found))
    assert again.mappings == found.mappings
    assert write_json(again) == write_json(found)


def test_arrays() -> None:
    both = b"[" + exnode(extent()) + b"," + exnode(name="m") + b"]"
    assert [one.name for one in read_json(both)] == ["n", "m"]


@pytest.mark.parametrize("parent", [None, "4f7e", {"href": "http://u/exnodes/1", "rel": "full"}])
def test_parents(parent: Any) -> None:
    (found,) = read_json(exnode(parent=parent))
    assert json.loads(write_json(found))["parent"] == parent


@pytest.mark.parametrize(
    ("offset", "alloc_offset", "expected", "doubtful"),
    [(0, 0, 0, False), (100, 100, 0, False), (100, 0, 0, False), (100, 40, 40, True), (0, 40, 40, True)],
)
def test_the_trap_of_alloc_offset(offset: int, alloc_offset: int, expected: int, doubtful: bool) -> None:
    (found,) = read_json(exnode(extent(offset=offset, alloc_offset=alloc_offset)))
    assert (found.mappings[0].alloc_offset, found.mappings[0].doubtful) == (expected, doubtful)


def test_other_storage_is_kept_untouched() -> None:
    others = [
        {"$schema": "http://unis/ext/rdma#", "location": "rdma://h", "offset": 0, "size": 1, "mapping": {"read": "x"}},
        {"location": "ceph://h/pool", "offset": 0, "size": 1},
        {"href": "http://u/extents/1", "rel": "full"},
        "http://u/extents/2",
    ]
    (found,) = read_json(exnode(*others, extent()))
    assert len(found.mappings) == 1
    assert json.loads(write_json(found))["extents"][1:] == others
    assert found.read_only().foreign == ()


def test_strings_for_numbers_and_capabilities_that_are_missing() -> None:
    (found,) = read_json(exnode(extent(offset="5", mapping={"read": CAP, "write": None, "manage": ""})))
    assert found.mappings[0].offset == 5
    assert found.mappings[0].write is None


@given(exnodes)
def test_round_trip(one: ExNode) -> None:
    found = read_json(write_json(one))
    assert found == [replace_locations(one)]


def replace_locations(one: ExNode) -> ExNode:
    schemas = {"$schema": EXTENT_SCHEMA, "parent": None}
    mappings = tuple(
        replace(
            mapping,
            location=str(Address.of(mapping.capability)) if mapping.capability else "",
            fields={**schemas, **mapping.fields},
        )
        for mapping in one.mappings
    )
    return replace(one, mappings=mappings, fields={"$schema": EXNODE_SCHEMA, **one.fields})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "well-formed"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"[]," * 5_000_000 + b"[]]", "too many values"),
        (b'{"name": "n", "size": NaN}', "well-formed"),
        (b'{"name": "n"}', "no exNode"),
        (b"[1]", "no exNode"),
        (b"3", "no exNode"),
        (exnode(size=-1), "size"),
        (exnode(size=1.5), "size"),
        (exnode(size=True), "size"),
        (exnode(size=2**63), "size"),
        (b'{"name": "n", "size": ' + b"9" * 5000 + b"}", "well-formed"),
        (exnode(extents={}), "array"),
        (exnode(extent(size=...)), "size"),
        (exnode(extent(offset=-1)), "offset"),
        (exnode(extent(mapping={"read": "ibp://x"})), "capability"),
        (exnode(extent(mapping={"read": CAP, "write": CAP})), "write capability"),
        (exnode(extent(mapping={"read": CAP, "write": 7})), "write capability"),
        (exnode(extent(alloc_length=3)), "cannot give"),
        (exnode(extent(function=["x"])), "function"),
        (exnode(lors_metadata=[1]), "metadata"),
    ],
)
def test_hostile_documents(text: bytes, words: str) -> None:
    with pytest.raises(BadDocument, match=words) as caught:
        read_json(text)
    assert "abc" not in str(caught.value)


def test_what_json_cannot_hold() -> None:
    with pytest.raises(BadDocument):
        write_json(ExNode("\ud800", 0))


names = st.sampled_from(["extents", "size", "offset", "mapping", "read", "function", "name", "mode", "lifetime"])
scalars = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner)))
def test_anything_is_an_exnode_or_refused(value: Any) -> None:
    with suppress(BadDocument):
        read_json(json.dumps(value).encode())
