"""LoRS' XML exNodes: captured ones, other prefixes, hostile ones, round trips."""

import dataclasses
import time
from collections.abc import Iterator

import pytest
from hypothesis import given

from ibpfs.exnode_store.documents.exnode import BadDocument, ExNode, Function, Mapping, Metadata
from ibpfs.exnode_store.documents.xml import read_xml, write_xml

from .shapes import SAMPLES, exnodes

URI = "http://loci.cs.utk.edu/exnode"
XND = sorted(SAMPLES.glob("*.xnd"))
CAP = "ibp://127.0.0.1:6714/1#abc/3862277/READ"


@pytest.fixture(params=["UTC", "America/New_York"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def document(body: str) -> bytes:
    return f'<?xml version="1.0"?><exnode xmlns:exnode="{URI}">{body}</exnode>'.encode()


def mapping(body: str = "", length: object = 5) -> str:
    return (
        '<exnode:mapping><exnode:metadata name="exnode_offset" type="integer">0</exnode:metadata>'
        f'<exnode:metadata name="logical_length" type="integer">{length}</exnode:metadata>{body}</exnode:mapping>'
    )


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("path", XND, ids=lambda path: path.name)
def test_captured_documents_are_written_as_lors_does(path: object) -> None:
    text = (SAMPLES / str(path)).read_bytes()
    empty = b'  <exnode:metadata name="parent" type="string"></exnode:metadata>\n'
    assert write_xml(read_xml(text)) == text.replace(empty, b"")


def test_a_captured_document() -> None:
    exnode = read_xml((SAMPLES / "e_kze.xnd").read_bytes())
    assert (exnode.name, exnode.size, exnode.mode, len(exnode.mappings)) == ("in.bin", 1500000, "file", 3)
    assert exnode.created == 1795172051 * 1_000_000
    assert Metadata("duration", "double", 7200.0) in exnode.metadata
    first = exnode.mappings[0]
    assert (first.offset, first.length, first.alloc_length, first.clear_block) == (1048576, 451424, 451658, 451424)
    assert first.end is not None
    assert first.start is not None
    assert first.end - first.start == 7200 * 1_000_000
    assert first.function is not None
    assert [one.name for one in first.function.chain()] == ["des_encrypt", "zlib_compress", "checksum"]
    assert first.function.key == "[%e+KI6"
    assert first.function.inner is not None
    assert first.function.inner.blocksize == 451649
    assert first.read is not None
    assert first.read.port == 16714


def test_no_key_and_no_capability_shows() -> None:
    text = repr(read_xml((SAMPLES / "e_kze.xnd").read_bytes()))
    assert "%e+KI6" not in text
    assert "1#" not in text


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"exnode:", b"e:"), (b"xmlns:exnode", b"xmlns:x"), (b"<exnode:", b"<")],
)
def test_any_prefix(old: bytes, new: bytes) -> None:
    text = (SAMPLES / "in.xnd").read_bytes()
    expected = read_xml(text)
    if old == b"<exnode:":
        text = text.replace(b"<exnode:", b"<").replace(b"</exnode:", b"</").replace(b"xmlns:exnode=", b"xmlns=")
    elif old == b"exnode:":
        text = text.replace(b"exnode:", b"e:").replace(b"xmlns:exnode=", b"xmlns:e=")
    else:
        text = text.replace(b"exnode:", b"x:").replace(b"xmlns:exnode=", b"xmlns:x=")
    assert read_xml(text) == expected


def test_what_is_left_out() -> None:
    exnode = read_xml(document(mapping() + mapping(f"<exnode:read>\n {CAP}\n</exnode:read>", 7)))
    assert (exnode.size, exnode.name, exnode.created, exnode.mode) == (7, "", None, "file")
    first, second = exnode.mappings
    assert (first.read, first.alloc_length, first.function) == (None, 5, None)
    assert second.read is not None
    assert second.read.render() == CAP


def test_nothing_empty_is_written() -> None:
    empty = Metadata("empty", "string", "")
    exnode = ExNode("", 0, metadata=(empty, Metadata("nest", "meta", ())))
    assert b"></" not in write_xml(exnode)
    assert b"empty" not in write_xml(exnode)


def test_fields_of_json_travel_along() -> None:
    exnode = ExNode("n", 0, fields={"id": "x", "properties": {"a": [1, None]}})
    assert read_xml(write_xml(exnode)).fields == exnode.fields


@pytest.mark.usefixtures("zone")
@given(exnodes)
def test_round_trip(exnode: ExNode) -> None:
    found = read_xml(write_xml(exnode))
    defaults = ("Version", "lorsversion")
    kept = tuple(one for one in found.metadata if one.name not in defaults)
    assert dataclasses.replace(found, metadata=kept) == exnode


def test_what_xml_cannot_hold() -> None:
    with pytest.raises(BadDocument):
        write_xml(ExNode("a\x01b", 0))


BOMB = '<!DOCTYPE exnode [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "well-formed"),
        (b"<exnode>", "well-formed"),
        (b"<other/>", "no exNode"),
        (b'<e:exnode xmlns:e="http://other"/>', "no exNode"),
        (f"{BOMB}<exnode>&b;</exnode>".encode(), "entities"),
        (b'<!DOCTYPE exnode SYSTEM "file:///etc/passwd"><exnode/>', "entities"),
        (b'<?xml version="1.0" encoding="rot13"?><exnode/>', "well-formed"),
        (b'<?xml version="1.0" encoding="no-such"?><exnode/>', "well-formed"),
        (b"<exnode>" + b"<a>" * 100_000, "too deeply"),
        (document(mapping(length=-1)), "negative"),
        (document(mapping(length=2**63)), "too large"),
        (document(mapping(length="9" * 5000)), "integer"),
        (document(mapping(length="five")), "integer"),
        (document("<exnode:mapping/>"), "logical_length"),
        (document(mapping("<exnode:read>ibp://x</exnode:read>")), "capability"),
        (document(mapping(f"<exnode:write>{CAP}</exnode:write>")), "another kind"),
        (
            document(mapping('<exnode:metadata name="alloc_length" type="integer">1</exnode:metadata>')),
            "cannot give",
        ),
    ],
)
def test_hostile_documents(text: bytes, words: str) -> None:
    with pytest.raises(BadDocument, match=words) as caught:
        read_xml(text)
    assert "127.0.0.1" not in str(caught.value)


def test_nested_functions_end() -> None:
    function = '<exnode:function name="f">' * 17 + "</exnode:function>" * 17
    with pytest.raises(BadDocument, match="nested functions"):
        read_xml(document(mapping(function)))


def test_too_many_elements() -> None:
    with pytest.raises(BadDocument, match="too many elements"):
        read_xml(document("<a/>" * 3_000_001))


def test_a_document_too_large() -> None:
    with pytest.raises(BadDocument, match="too large"):
        read_xml(b" " * (64 * 1024 * 1024 + 1))


def test_a_permanent_lease_has_no_end() -> None:
    text = write_xml(ExNode("n", 1, mappings=(Mapping(0, 1, alloc_length=1, function=Function("identity")),)))
    assert b'"end"' not in text
    assert not read_xml(text).mappings[0].conditioned
