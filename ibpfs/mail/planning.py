"""Which parts of a message become links, and why others do not. Pure.

Only what a reader takes for a file goes: not the text, not what its HTML shows, nothing under a signature, and nothing
that does not decode without doubt.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ibpfs.errors import IbpfsError
from ibpfs.mail.file_names import clean_name, name_of
from ibpfs.mail.recipients import BLIND_COPIES
from ibpfs.mail.structure import SEALED, Buffer, Part
from ibpfs.mail.transfer import KNOWN, Undecodable, decode

#: Parents whose children stand for themselves; those of others belong together.
_LISTS = ("multipart/mixed", "multipart/parallel")
#: Sealed, but nobody's signature.
_NO_LETTERS = ("multipart/report", "multipart/appledouble")
#: What programs look for in the message itself.
_FOR_PROGRAMS = (
    "text/calendar", "application/ms-tnef", "application/pgp-signature", "application/pgp-encrypted",
    "application/pkcs7-signature", "application/x-pkcs7-signature", "message/partial", "message/external-body",
    "message/delivery-status", "message/disposition-notification",
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What the sender wants."""

    threshold: int = 5 * 1024 * 1024  # bytes of a decoded file; larger ones become links
    wrap: bool = False  # send what is signed or encrypted as a link to the whole message


@dataclass(frozen=True)
class Attachment:
    """A file in a message: its bytes are `spans` of it, encoded."""

    part: Part
    spans: tuple[tuple[int, int], ...]
    name: str
    kind: str
    encoding: str
    size: int
    boundary: bytes = b""  # of the list it stands in; b"": it is all there is in the message

    def read(self, data: Buffer) -> Iterator[bytes]:
        """Yield the bytes of the file."""
        for start, stop in self.spans:
            yield from decode(data, start, stop, self.encoding)


@dataclass(frozen=True)
class Plan:
    """What becomes a link, and, a line each, what does not although it is large."""

    root: Part
    attachments: tuple[Attachment, ...] = ()
    kept: tuple[str, ...] = ()
    wrapped: bool = False


class _Kept(IbpfsError):
    """Why a large part stays; nothing where nobody would ask."""


def make_plan(data: Buffer, root: Part, rules: Rules) -> Plan:
    """Return what is to be done with a message."""
    if root.stop - root.start <= rules.threshold:
        return Plan(root)
    sealed = _sealed(root)
    if sealed and rules.wrap and not root.damage and root.fields.kind not in _NO_LETTERS:
        return Plan(root, (_whole(data, root),), wrapped=True)
    if sealed or root.damage:
        return Plan(root, (), (f"the message {sealed}" if sealed else f"the message has {root.damage}",))
    found, kept = [], []
    for part, parent in _files(root, None):
        if part.stop - part.body <= rules.threshold:
            continue
        try:
            attachment = _attachment(data, part, parent)
        except _Kept as reason:
            kept += [f"{_shown(part)} {reason}"] if str(reason) else []
            continue
        if attachment.size > rules.threshold:
            found.append(attachment)
    return Plan(root, tuple(found), tuple(kept))


def _sealed(root: Part) -> str:
    if root.fields.kind in SEALED:
        return SEALED[root.fields.kind]
    return "has a DKIM signature" if root.fields.is_dkim_signed else ""


def _files(part: Part, parent: Part | None) -> Iterator[tuple[Part, Part | None]]:
    """Yield the leaves that stand for themselves, with the list they are in; the first text is no file."""
    if not part.parts:
        yield part, parent
        return
    first = part.fields.kind in _LISTS
    for child in part.parts:
        if child.parts:
            yield from _files(child, part)
        elif part.fields.kind in _LISTS and not (first and _is_text(child)):
            yield child, part
        first = False


def _is_text(part: Part) -> bool:
    return part.fields.kind in ("text/plain", "text/html") and part.fields.disposition != "attachment"


def _attachment(data: Buffer, part: Part, parent: Part | None) -> Attachment:
    """_Kept when the part stays, whatever its size."""
    fields = part.fields
    if part.damage:
        raise _Kept(f"has {part.damage}")
    if fields.kind in SEALED:
        raise _Kept(SEALED[fields.kind])
    if fields.kind in _FOR_PROGRAMS or fields.main == "multipart":
        raise _Kept(f"is {fields.kind}, which stays in the message")
    if fields.disposition == "inline" and fields.main == "image":
        raise _Kept("is shown in the text")
    if fields.main == "text" and fields.disposition != "attachment" and (parent is None or not fields.name):
        raise _Kept("")
    if fields.encoding not in KNOWN:
        raise _Kept("has a transfer encoding that is not known")
    boundary = parent.fields.boundary if parent else b""
    spans = ((part.body, part.stop),)
    found = Attachment(part, spans, name_of(data, part), fields.kind, fields.encoding, 0, boundary)
    try:
        size = sum(map(len, found.read(data)))
    except Undecodable:
        raise _Kept("is not encoded as it says") from None
    return Attachment(part, spans, found.name, fields.kind, fields.encoding, size, boundary)


def _whole(data: Buffer, root: Part) -> Attachment:
    """The message as a file, without the fields that no receiver may see."""
    spans = (*_without_blind_copies(data[root.start : root.body], root.start), (root.body, root.stop))
    name = clean_name(root.fields.subject, "message") + ".eml"
    size = sum(stop - start for start, stop in spans)
    return Attachment(root, spans, name, "message/rfc822", "binary", size)


def _without_blind_copies(header: bytes, start: int) -> Iterator[tuple[int, int]]:
    place = 0
    for found in BLIND_COPIES.finditer(header):
        yield start + place, start + found.start()
        place = found.end()
    yield start + place, start + len(header)


def _shown(part: Part) -> str:
    name = clean_name(part.fields.name, "")
    return f"{name!r}" if name else f"a part of type {part.fields.kind}"
