"""Which bytes of a message are the header and the body of which part.

Works on spans of the original, so that what is not replaced stays byte for byte. Where readers of mail could disagree
about a message (no closing delimiter, two Content-Types, a bare carriage return at a delimiter), the part has
`damage` and nobody looks inside.
"""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ibpfs.mail.fields import Fields, read_fields

Buffer = bytes | mmap.mmap

#: Deeper or richer messages are no letters.
DEEPEST = 30
MOST_PARTS = 2_000
LONGEST_HEADER = 4 * 1024 * 1024

_NO_HEADER = re.compile(rb"\r?\n")
_END_OF_HEADER = re.compile(rb"\n\r?\n")
_NO_FIELD = re.compile(rb"^(?![ \t]|[!-9;-~]+:|>?From |\r?\n|\Z)", re.MULTILINE)
_BARE_RETURN = re.compile(rb"\r(?!\n)")
#: Inside of these nothing may change: signatures cover it, or it is one thing in several parts.
SEALED = {
    "multipart/signed": "is signed",
    "multipart/encrypted": "is encrypted",
    "application/pkcs7-mime": "is signed or encrypted (S/MIME)",
    "application/x-pkcs7-mime": "is signed or encrypted (S/MIME)",
    "multipart/appledouble": "is one file in two parts",
    "multipart/report": "is a report",
}


@dataclass(frozen=True)
class Part:
    """Header [start, body), body [body, stop). A multipart that was taken apart has `parts`."""

    start: int
    body: int
    stop: int
    fields: Fields
    parts: tuple["Part", ...] = ()
    damage: str = ""  # why nobody looked inside, or nobody should

    def walk(self) -> Iterator["Part"]:
        yield self
        for part in self.parts:
            yield from part.walk()

    def leaves(self) -> Iterator["Part"]:
        return (part for part in self.walk() if not part.parts)


def scan(data: Buffer) -> Part:
    """Return the structure of a message."""
    return _Scan(data).part(0, len(data), 0)


class _Scan:
    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._count = 0

    def part(self, start: int, stop: int, depth: int) -> Part:
        self._count += 1
        body = self._end_of_header(start, stop)
        header = self._data[start:body] if body - start <= LONGEST_HEADER else b""
        damage = _damage(header, body - start)
        fields = read_fields(header) if not damage else Fields()
        damage = damage or fields.damage
        if damage or fields.main != "multipart" or fields.kind in SEALED:
            return Part(start, body, stop, fields, (), damage)
        return self._multipart(start, body, stop, fields, depth)

    def _end_of_header(self, start: int, stop: int) -> int:
        found = _NO_HEADER.match(self._data, start, stop) or _END_OF_HEADER.search(self._data, start, stop)
        return found.end() if found else stop

    def _multipart(self, start: int, body: int, stop: int, fields: Fields, depth: int) -> Part:
        if fields.encoding not in ("7bit", "8bit", "binary"):
            return Part(start, body, stop, fields, (), "an encoded multipart")
        if not fields.boundary or b"\n" in fields.boundary:
            return Part(start, body, stop, fields, (), "a multipart without a boundary")
        spans, damage = self._split(body, stop, fields.boundary)
        if not damage and (depth == DEEPEST or self._count + len(spans) > MOST_PARTS):
            damage = "too many parts"
        if damage:
            return Part(start, body, stop, fields, (), damage)
        parts = tuple(self.part(one, other, depth + 1) for one, other in spans)
        return Part(start, body, stop, fields, parts)

    def _split(self, body: int, stop: int, boundary: bytes) -> tuple[list[tuple[int, int]], str]:
        """Return the spans between delimiters; the line break before a delimiter belongs to it."""
        delimiter = re.compile(rb"(?:^|(?<=\r))--" + re.escape(boundary) + rb"(--)?[ \t]*(?:\r?\n|\r|\Z)", re.M)
        spans: list[tuple[int, int]] = []
        after = None
        for found in delimiter.finditer(self._data, body, stop):
            if found.start() > body and self._data[found.start() - 1 : found.start()] == b"\r":
                return [], "a delimiter behind a bare carriage return"
            if found.group().endswith(b"\r"):
                return [], "a delimiter before a bare carriage return"
            if after is not None:
                spans.append((after, max(after, self._before(found.start()))))
            after = found.end()
            if found.group(1):
                return (spans, "") if spans else ([], "a multipart without parts")
        return [], "a multipart without an end" if after is not None else "a multipart without its boundary"

    def _before(self, place: int) -> int:
        return place - (2 if self._data[place - 2 : place] == b"\r\n" else 1)


def _damage(header: bytes, length: int) -> str:
    if length > LONGEST_HEADER:
        return "a header that is too long"
    if _BARE_RETURN.search(header) or _NO_FIELD.search(header):
        return "a header with a line that is no field"
    return ""
