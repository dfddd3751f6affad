"""Which notation a document is in, and reading and writing all of them: the door to this package."""

from collections.abc import Sequence
from enum import Enum
from pathlib import PurePath

from ibpfs.exnode_store.documents.exnode import BadDocument, ExNode
from ibpfs.exnode_store.documents.json import read_json, write_json
from ibpfs.exnode_store.documents.xml import read_xml, write_xml


class Notation(Enum):
    """The word is the one a person uses for it."""

    XML = "xml"
    JSON = "json"
    LSTORE = "lstore"


_BLANKS = b" \t\r\n"
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def recognise(data: bytes) -> Notation:
    """Return the notation by the first characters; BadDocument when it is none of them."""
    if data.startswith(_MARKS[1:]):
        return Notation.XML  # UTF-16, which JSON never is
    text = data.removeprefix(_MARKS[0]).lstrip(_BLANKS)
    if text.startswith(b"<"):
        return Notation.XML
    if _is_lstore(text):
        return Notation.LSTORE
    if text.startswith((b"{", b"[")):
        return Notation.JSON
    raise BadDocument("neither XML nor JSON: no exNode")


def _is_lstore(text: bytes) -> bool:
    """INI text with the sections of L-Store's ex3."""
    lines = [line.strip() for line in text[:65536].splitlines()]
    return any(line == b"[exnode]" or line.startswith((b"[segment-", b"[block-")) for line in lines)


def read_all(data: bytes) -> list[ExNode]:
    """Return every exNode in a document of any notation that can be used."""
    match recognise(data):
        case Notation.XML:
            return [read_xml(data)]
        case Notation.JSON:
            return read_json(data.removeprefix(_MARKS[0]))
        case Notation.LSTORE:
            raise BadDocument("an exNode of L-Store, whose segment drivers only L-Store has; read it with lio_get")


def read(data: bytes) -> ExNode:
    """Return the only exNode in a document."""
    found = read_all(data)
    if len(found) != 1:
        raise BadDocument(f"holds {len(found)} exNodes; take one out with: ibpfs exnode convert --pick NAME")
    return found[0]


def pick(found: Sequence[ExNode], word: str) -> ExNode:
    """Return the one exNode of that name or id."""
    chosen = [one for one in found if word in (one.name, one.fields.get("id"))]
    if len(chosen) != 1:
        names = ", ".join(sorted({ascii(one.name[:40]) for one in found})[:10])
        raise BadDocument(f"{len(chosen)} exNodes are called {word!r}; there are: {names}")
    return chosen[0]


def write(exnode: ExNode, notation: Notation) -> bytes:
    if notation is Notation.LSTORE:
        raise BadDocument("exNodes of L-Store cannot be written")
    return write_xml(exnode) if notation is Notation.XML else write_json(exnode)


def notation_of(path: PurePath) -> Notation | None:
    """Return what a file's suffix promises; None when it promises nothing."""
    suffix = path.suffix.lower()
    if suffix in (".xnd", ".xml"):
        return Notation.XML
    return Notation.JSON if suffix in (".json", ".uef") else None
