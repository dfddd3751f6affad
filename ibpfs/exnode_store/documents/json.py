"""exNodes in JSON: UNIS and libdlt (schemas 3 to 6), LoRS' export (UEF); one object or an array of them.

Reads all, writes the present form; fields without a meaning here are kept. Knows no network: extents that are only
linked to stay links.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilityKind
from ibpfs.exnode_store.documents import lifetimes
from ibpfs.exnode_store.documents.exnode import (
    LARGEST,
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

EXNODE_SCHEMA: Final = "http://unis.crest.iu.edu/schema/exnode/6/exnode#"
EXTENT_SCHEMA: Final = "http://unis.crest.iu.edu/schema/exnode/ext/1/ibp#"
#: Metadata of XML documents; and the word that an alloc_offset equal to `offset` is meant as it stands.
_METADATA: Final = "lors_metadata"
_MEANT: Final = "alloc_offset_within"
_ALLOCATION: Final = "allocation"
_TAIL: Final = b"\0 \t\r\n"  # LoRS ends its files with the NUL of a C string
#: A value takes up to a hundred bytes of memory, and two of the document.
_MOST_VALUES: Final = 25 * MAX_MAPPINGS

_FILE_FIELDS: Final = frozenset({"name", "mode", "size", "created", "modified", "extents", _METADATA})
_EXTENT_FIELDS: Final = frozenset(
    {"mapping", "location", "offset", "size", "alloc_offset", "alloc_length", "lifetime", "lifetimes", "function"}
    | {"e2e_blocksize", _METADATA, _MEANT}
)

Fields = dict[str, Any]


def read_json(data: bytes) -> list[ExNode]:
    """Return every exNode in the document; BadDocument says why there is none."""
    if len(data) > MAX_DOCUMENT:
        raise BadDocument("the document is too large for an exNode")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise BadDocument("the JSON has too many values")
    try:
        found = json.loads(data.rstrip(_TAIL), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadDocument(f"not well-formed JSON: {what}") from None
    objects = found if isinstance(found, list) else [found]
    if not all(isinstance(one, dict) and ("extents" in one or "size" in one or "mode" in one) for one in objects):
        raise BadDocument("the JSON is no exNode")
    return [_exnode(one) for one in objects]


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _exnode(found: Fields) -> ExNode:
    extents = found.get("extents")
    extents = [] if extents is None else extents
    if not isinstance(extents, list):
        raise BadDocument("`extents` is no array")
    ours = [one for one in extents if _is_ibp(one)]
    mappings = tuple(_mapping(number, one) for number, one in enumerate(ours))
    fields = {name: value for name, value in found.items() if name not in _FILE_FIELDS}
    if fields.get("parent", "") is None:
        del fields["parent"]
    modified = lifetimes.from_any(found.get("modified"))
    updated = lifetimes.from_any(found.get("updated"))
    modified = updated if modified is None else modified
    if updated == modified:
        fields.pop("updated", None)
    size = found.get("size")
    return check(
        ExNode(
            name=_text(found, "name"),
            size=length_of(mappings) if size is None else _integer(size, "size"),
            mode=_text(found, "mode") or "file",
            created=lifetimes.from_any(found.get("created")),
            modified=modified,
            mappings=mappings,
            metadata=_read_metadata(found),
            fields=fields,
            foreign=tuple(one for one in extents if not _is_ibp(one)),
        )
    )


def _is_ibp(extent: Any) -> bool:
    """Whether the extent is spelled out and on depots: only then it is used."""
    if not isinstance(extent, dict) or not isinstance(extent.get("mapping"), dict):
        return False
    texts = [extent["mapping"].get(kind.name.lower()) for kind in CapabilityKind]
    return any(isinstance(text, str) and text.startswith(("ibp://", "ibps://")) for text in texts)


def _mapping(number: int, extent: Fields) -> Mapping:
    where = f"extent {number}"
    offset, length = (_integer(extent.get(name), f"{where}: {name}") for name in ("offset", "size"))
    alloc_offset = _integer(extent.get("alloc_offset") or 0, f"{where}: alloc_offset")
    meant = extent.get(_MEANT) == _ALLOCATION
    if alloc_offset == offset and not meant:
        alloc_offset = 0  # libdlt writes the place in the file
    stored, given = extent.get("alloc_length"), extent["mapping"]
    start, end = _lifetime(extent)
    return Mapping(
        offset=offset,
        length=length,
        alloc_offset=alloc_offset,
        alloc_length=_integer(length if stored is None else stored, f"{where}: alloc_length"),
        clear_block=_integer(extent.get("e2e_blocksize") or 0, f"{where}: e2e_blocksize"),
        function=_function(extent.get("function"), where),
        read=capability_of(given.get("read"), CapabilityKind.READ, where),
        write=capability_of(given.get("write"), CapabilityKind.WRITE, where),
        manage=capability_of(given.get("manage"), CapabilityKind.MANAGE, where),
        start=start,
        end=end,
        location=_text(extent, "location"),
        doubtful=alloc_offset > 0 and not meant,
        metadata=_read_metadata(extent),
        fields={name: value for name, value in extent.items() if name not in _EXTENT_FIELDS},
    )


def _lifetime(extent: Fields) -> tuple[int | None, int | None]:
    found = extent.get("lifetime")
    if not isinstance(found, dict):
        several = extent.get("lifetimes")
        found = several[-1] if isinstance(several, list) and several and isinstance(several[-1], dict) else {}
    return lifetimes.from_any(found.get("start")), lifetimes.from_any(found.get("end"))


def _function(found: Any, where: str, depth: int = 0) -> Function | None:
    if found is None or found == "" or found == {}:
        return None
    if isinstance(found, str):
        return Function(found)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or depth > MAX_NESTING:
        raise BadDocument(f"{where}: a function that cannot be understood")
    return Function(
        name=found["name"],
        arguments=_read_metadata(found, "arguments"),
        metadata=_read_metadata(found),
        inner=_function(found.get("function"), where, depth + 1),
    )


def _read_metadata(found: Fields, name: str = _METADATA) -> tuple[Metadata, ...]:
    rows = found.get(name) or []
    if not isinstance(rows, list):
        raise BadDocument(f"`{name}` is no array")
    return tuple(_one(row, 0) for row in rows)


def _one(row: Any, depth: int) -> Metadata:
    if isinstance(row, dict) and depth <= MAX_NESTING:
        name, kind, value = row.get("name"), row.get("type"), row.get("value")
        if isinstance(value, list):
            value = tuple(_one(inner, depth + 1) for inner in value)
        if isinstance(name, str) and isinstance(kind, str) and isinstance(value, str | int | float | tuple):
            return Metadata(name, kind, value)
    raise BadDocument("metadata that cannot be understood")


def _integer(value: Any, name: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise BadDocument(f"{name}: not a length or offset in bytes")
    return value


def _text(found: Fields, name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""


# --- writing


def write_json(exnode: ExNode) -> bytes:
    """Return the document as UNIS and libdlt have it now."""
    modified = exnode.created if exnode.modified is None else exnode.modified
    known = {
        "$schema": EXNODE_SCHEMA,
        "name": exnode.name,
        "mode": exnode.mode,
        "size": exnode.size,
        **_present(created=exnode.created, modified=modified, updated=modified),
        "parent": None,
        **exnode.fields,
        **_write_metadata(exnode.metadata),
        "extents": [*map(_extent, exnode.mappings), *exnode.foreign],
    }
    try:
        return (json.dumps(known, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    except ValueError:
        raise BadDocument("a name or value holds what JSON cannot hold") from None


def _present(**values: int | str | None) -> dict[str, int | str]:
    return {name: value for name, value in values.items() if value is not None}


def _extent(mapping: Mapping) -> Fields:
    capabilities = [one for one in (mapping.read, mapping.write, mapping.manage) if one is not None]
    moments = {"start": mapping.start, "end": mapping.end}
    lifetime = {name: str(moment) for name, moment in moments.items() if moment is not None}
    function = {} if mapping.function is None else {"function": _function_object(mapping.function)}
    meant = bool(mapping.alloc_offset) and not mapping.doubtful
    return {
        "$schema": EXTENT_SCHEMA,
        "location": _location(mapping),
        "parent": None,
        **mapping.fields,
        "offset": mapping.offset,
        "size": mapping.length,
        "alloc_offset": mapping.alloc_offset,
        "alloc_length": mapping.alloc_length,
        **({_MEANT: _ALLOCATION} if meant else {}),
        **({"e2e_blocksize": mapping.clear_block} if mapping.clear_block else {}),
        **function,
        **({"lifetime": lifetime} if lifetime else {}),
        **_write_metadata(mapping.metadata),
        "mapping": {one.kind.name.lower(): one.render() for one in capabilities},
    }


def _location(mapping: Mapping) -> str:
    """The depot: libdlt connects there, not to where the capability says."""
    if mapping.location not in ("", "ibp://") or mapping.capability is None:
        return mapping.location
    return str(Address.of(mapping.capability))


def _function_object(function: Function) -> Fields:
    inner = {} if function.inner is None else {"function": _function_object(function.inner)}
    arguments = [*_rows(function.arguments)]
    return {"name": function.name, "arguments": arguments, **_write_metadata(function.metadata), **inner}


def _write_metadata(found: tuple[Metadata, ...]) -> Fields:
    return {_METADATA: [*_rows(found)]} if found else {}


def _rows(found: tuple[Metadata, ...]) -> Iterator[Fields]:
    for one in found:
        value: Value | list[Fields] = [*_rows(one.value)] if isinstance(one.value, tuple) else one.value
        yield {"name": one.name, "type": one.type, "value": value}
