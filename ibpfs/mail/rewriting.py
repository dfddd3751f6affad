"""A message with links in place of files: the original's bytes, but for the spans that are replaced."""

import re
from collections.abc import Sequence

from ibpfs.mail.blocks import Shared, blocks, make_boundary
from ibpfs.mail.planning import Attachment, Plan
from ibpfs.mail.structure import Buffer

_FIELD = rb"[ \t]*:[^\n]*\n?(?:[ \t][^\n]*\n?)*"
_OWN_FIELDS = re.compile(rb"^(?:content-[a-z-]+|mime-version)" + _FIELD, re.IGNORECASE | re.MULTILINE)
#: Signatures of the old body: of use to nobody around a new one.
_SIGNATURES = re.compile(rb"^(?:dkim-signature|arc-[a-z-]+)" + _FIELD, re.IGNORECASE | re.MULTILINE)


def rewrite(data: Buffer, plan: Plan, shares: Sequence[Shared]) -> bytes:
    """Return the new message; shares[n] takes the place of plan.attachments[n]. `checking.check` looks it over."""
    first = plan.attachments[0]
    if not first.boundary:
        return _around(data, plan, first, shares[0])
    html = has_html(plan)
    pieces, place = [], 0
    for attachment, shared in zip(plan.attachments, shares, strict=True):
        part = attachment.part
        new = blocks(shared, data[part.start : part.body], attachment.boundary, with_html=html)
        pieces += [data[place : part.start], new.replace(b"\n", line_end(data))]
        place = part.stop
    return b"".join([*pieces, data[place:]])


def has_html(plan: Plan) -> bool:
    """Whether the message is for readers of HTML, too."""
    return not plan.wrapped and any(
        part.fields.kind == "text/html" and part.fields.disposition != "attachment" for part in plan.root.leaves()
    )


def line_end(data: Buffer) -> bytes:
    """Return the message's own: its first."""
    first = data.find(b"\n")
    return b"\r\n" if first > 0 and data[first - 1 : first] == b"\r" else b"\n"


def _around(data: Buffer, plan: Plan, attachment: Attachment, shared: Shared) -> bytes:
    """The message's own fields, and a new body, because the old one is the file."""
    root = attachment.part
    end = line_end(data)
    header = data[root.start : root.body].rstrip(b"\r\n") + end
    kept = _OWN_FIELDS.sub(b"", header)
    if plan.wrapped:
        kept = _SIGNATURES.sub(b"", kept)
    described = b"" if plan.wrapped else header
    if not described:
        described = b'Content-Type: message/rfc822\nContent-Disposition: attachment; filename="message.eml"\n'
    boundary = make_boundary(shared, "message")
    new = (
        b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="' + boundary + b'"\n\n--' + boundary + b"\n"
        + blocks(shared, described, boundary, with_html=False) + b"\n--" + boundary + b"--\n"
    )  # fmt: skip
    return kept + new.replace(b"\n", end)
