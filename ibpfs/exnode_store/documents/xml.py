"""LoRS' exNodes in XML ("version 3.0", `.xnd`): reading any prefix, writing as LoRS does.

What is read is hostile: no DTD, no entities, and limits on size, depth and number of elements.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.sax.saxutils import escape, quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from ibpfs.depot.capability import Capability, CapabilityKind
from ibpfs.exnode_store.documents import lifetimes
from ibpfs.exnode_store.documents.exnode import (
    MAX_DOCUMENT,
    MAX_MAPPINGS,
    MAX_NESTING,
    BadDocument,
    ExNode,
    Function,
    Mapping,
    Metadata,
    Value,
    capability_of,
    check,
    length_of,
)

NAMESPACE: Final = "http://loci.cs.utk.edu/exnode"
_NS: Final = f"{{{NAMESPACE}}}"
_MAX_ELEMENTS: Final = 15 * MAX_MAPPINGS
_MAX_DEPTH: Final = 2 * MAX_NESTING + 8
#: Fields of JSON documents that XML has no word for travel as metadata with this before their name.
_KEPT: Final = "unis:"
_UNWRITABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_FILE_NAMES: Final = frozenset({"filename", "mode", "size", "created", "modified"})
_MAPPING_NAMES: Final = frozenset(
    {"exnode_offset", "logical_length", "alloc_offset", "alloc_length", "e2e_blocksize", "start", "end"}
)


class _Limiter(TreeBuilder):
    """Builds the tree, and stops while a document grows too deep or too wide."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._count = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self._depth += 1
        self._count += 1
        if self._depth > _MAX_DEPTH:
            raise BadDocument("the XML is nested too deeply")
        if self._count > _MAX_ELEMENTS:
            raise BadDocument("the XML has too many elements")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self._depth -= 1
        return super().end(tag)


def read_xml(data: bytes) -> ExNode:
    """Return the exNode; BadDocument says why there is none."""
    root = _parse(data)
    if root.tag.rpartition("}")[2] != "exnode" or (root.tag.startswith("{") and not root.tag.startswith(_NS)):
        raise BadDocument("the XML is no exNode")
    mappings = tuple(_mapping(number, element) for number, element in enumerate(root.iterfind(f"{_NS}mapping")))
    known, others, fields = _sort(_metadata(root), _FILE_NAMES)
    size = known.pop("size", None)
    return check(
        ExNode(
            name=_text(known, "filename"),
            size=length_of(mappings) if size is None else _integer(size, "size"),
            mode=_text(known, "mode") or "file",
            created=_time(known, "created"),
            modified=_time(known, "modified"),
            mappings=mappings,
            metadata=others,
            fields=fields,
        )
    )


def _parse(data: bytes) -> Element:
    if len(data) > MAX_DOCUMENT:
        raise BadDocument("the document is too large for an exNode")
    parser = DefusedXMLParser(target=_Limiter(), forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(data)
        root = parser.close()
    except DefusedXmlException as error:
        raise BadDocument(f"the XML declares a document type or entities ({type(error).__name__})") from None
    except ParseError as error:
        raise BadDocument(f"not well-formed XML: {error}") from None
    except (ValueError, LookupError):
        raise BadDocument("not well-formed XML: an encoding that is not known") from None
    assert isinstance(root, Element)
    return root


def _metadata(parent: Element, tag: str = "metadata") -> tuple[Metadata, ...]:
    return tuple(_one(element) for element in parent.iterfind(f"{_NS}{tag}"))


def _one(element: Element) -> Metadata:
    name, kind = element.get("name", ""), element.get("type", "string")
    return Metadata(name, kind, _metadata(element) if kind == "meta" else _value(element.text or "", kind, name))


def _value(text: str, kind: str, name: str) -> Value:
    if kind not in ("integer", "double") or not text.strip():
        return text
    try:
        number = int(text) if kind == "integer" else float(text)
    except ValueError:
        raise BadDocument(f"metadata {name[:40]!a}: not of type {kind}") from None
    if isinstance(number, int) and not -(2**63) <= number < 2**64:
        raise BadDocument(f"metadata {name[:40]!a}: more than 64 bits")
    return number


def _sort(
    found: Sequence[Metadata], names: frozenset[str]
) -> tuple[dict[str, Value], tuple[Metadata, ...], dict[str, Any]]:
    """What the model has a place for, what is only kept, and what once was JSON."""
    known: dict[str, Value] = {}
    others: list[Metadata] = []
    fields: dict[str, Any] = {}
    for one in found:
        if one.name in names and one.name not in known:
            known[one.name] = one.value
        elif one.name.startswith(_KEPT) and isinstance(one.value, str):
            fields[one.name.removeprefix(_KEPT)] = _kept_json(one)
        else:
            others.append(one)
    return known, tuple(others), fields


def _kept_json(one: Metadata) -> Any:
    try:
        return json.loads(str(one.value))
    except (ValueError, RecursionError):
        raise BadDocument(f"metadata {one.name[:40]!a}: its value is not JSON") from None


def _text(known: dict[str, Value], name: str) -> str:
    value = known.get(name, "")
    return value if isinstance(value, str) else ""


def _integer(value: Value, name: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,20}\s*", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int):
        raise BadDocument(f"metadata {name[:40]!a}: not an integer")
    return value


def _time(known: dict[str, Value], name: str) -> int | None:
    value = known.get(name)
    return lifetimes.from_any(int(value) if isinstance(value, float) and abs(value) < 1e17 else value)


def _mapping(number: int, element: Element) -> Mapping:
    known, others, fields = _sort(_metadata(element), _MAPPING_NAMES)
    try:
        offset = _integer(known.get("exnode_offset", 0), "exnode_offset")
        length = _integer(known["logical_length"], "logical_length")
    except KeyError:
        raise BadDocument(f"mapping {number}: has no logical_length") from None
    function = element.find(f"{_NS}function")
    start, end = lifetimes.from_any(known.get("start")), lifetimes.from_any(known.get("end"))
    moments = (("start", start), ("end", end))
    unread = [Metadata(name, "string", known[name]) for name, at in moments if at is None and known.get(name)]
    return Mapping(
        offset=offset,
        length=length,
        alloc_offset=_integer(known.get("alloc_offset", 0), "alloc_offset"),
        alloc_length=_integer(known.get("alloc_length", length), "alloc_length"),
        clear_block=_integer(known.get("e2e_blocksize", 0), "e2e_blocksize"),
        function=None if function is None else _function(function),
        read=_capability(number, element, CapabilityKind.READ),
        write=_capability(number, element, CapabilityKind.WRITE),
        manage=_capability(number, element, CapabilityKind.MANAGE),
        start=start,
        end=end,
        metadata=(*others, *unread),
        fields=fields,
    )


def _function(element: Element) -> Function:
    inner = element.find(f"{_NS}function")
    return Function(
        name=element.get("name", ""),
        arguments=_metadata(element, "argument"),
        metadata=_metadata(element),
        inner=None if inner is None else _function(inner),
    )


def _capability(number: int, mapping: Element, kind: CapabilityKind) -> Capability | None:
    return capability_of(mapping.findtext(f"{_NS}{kind.name.lower()}"), kind, f"mapping {number}")


# --- writing


def write_xml(exnode: ExNode) -> bytes:
    """Return the document as LoRS writes it; nothing empty, which LoRS cannot read."""
    lines = ['<?xml version="1.0"?>', f'<exnode xmlns:exnode="{NAMESPACE}">']
    lines += _lines("metadata", _file_metadata(exnode), 1)
    for mapping in exnode.mappings:
        lines += ["  <exnode:mapping>", *_mapping_lines(mapping), "  </exnode:mapping>"]
    return "\n".join([*lines, "</exnode>", ""]).encode()


def _file_metadata(exnode: ExNode) -> list[Metadata]:
    found = [
        Metadata("filename", "string", exnode.name),
        Metadata("mode", "string", exnode.mode),
        Metadata("size", "integer", exnode.size),
        *_seconds("created", exnode.created),
        *_seconds("modified", exnode.modified),
        *exnode.metadata,
        *_kept(exnode.fields),
    ]
    names = {one.name for one in found}
    missing = [Metadata("Version", "string", "3.0"), Metadata("lorsversion", "double", 0.82)]
    return [*found, *(one for one in missing if one.name not in names)]


def _seconds(name: str, micros: int | None) -> list[Metadata]:
    return [] if micros is None else [Metadata(name, "integer", micros // lifetimes.MICRO)]


def _kept(fields: dict[str, Any]) -> Iterator[Metadata]:
    for name, value in fields.items():
        yield Metadata(_KEPT + name, "string", json.dumps(value))


def _mapping_lines(mapping: Mapping) -> Iterator[str]:
    found = [
        Metadata("exnode_offset", "integer", mapping.offset),
        Metadata("logical_length", "integer", mapping.length),
        Metadata("alloc_offset", "integer", mapping.alloc_offset),
        Metadata("alloc_length", "integer", mapping.alloc_length),
        Metadata("e2e_blocksize", "integer", mapping.clear_block),
        *mapping.metadata,
        *_kept(mapping.fields),
    ]
    for name, moment in (("start", mapping.start), ("end", mapping.end)):
        text = None if moment is None else lifetimes.to_text(moment)
        found += [] if text is None else [Metadata(name, "string", text)]
    yield from _lines("metadata", found, 2)
    if mapping.function is not None:
        yield from _function_lines(mapping.function, 2)
    for capability in (mapping.read, mapping.write, mapping.manage):
        if capability is not None:
            tag = capability.kind.name.lower()
            yield f"    <exnode:{tag}>{escape(capability.render())}</exnode:{tag}>"


def _function_lines(function: Function, depth: int) -> Iterator[str]:
    indent = "  " * depth
    yield f"{indent}<exnode:function name={_attribute(function.name)}>"
    yield from _lines("metadata", function.metadata, depth + 1)
    yield from _lines("argument", function.arguments, depth + 1)
    if function.inner is not None:
        yield from _function_lines(function.inner, depth + 1)
    yield f"{indent}</exnode:function>"


def _lines(tag: str, found: Sequence[Metadata], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for one in sorted(found, key=lambda one: one.name):
        head = f"{indent}<exnode:{tag} name={_attribute(one.name)} type={_attribute(one.type)}>"
        if isinstance(one.value, tuple):
            if one.value:
                yield head
                yield from _lines("metadata", one.value, depth + 1)
                yield f"{indent}</exnode:{tag}>"
        elif one.value != "":
            yield f"{head}{_content(one.value)}</exnode:{tag}>"


def _content(value: str | int | float) -> str:
    return f"{value:f}" if isinstance(value, float) else escape(_writable(str(value)), {"\r": "&#13;"})


def _attribute(text: str) -> str:
    return quoteattr(_writable(text), {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def _writable(text: str) -> str:
    if _UNWRITABLE.search(text):
        raise BadDocument("a name or value holds characters that XML cannot hold")
    return text
