"""What stands in a message in the place of a file: a block for people, in text and, where the message has HTML, in
HTML, too; and a message/external-body part (RFC 2046, RFC 2017) for programs.
"""

import hashlib
import quopri
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from html import escape
from textwrap import wrap

from ibpfs.quantities import format_size

_LONGEST_LINE = 900  # RFC 5322 allows 998
_WORD = 40  # of an URL in a Content-Type, RFC 2017 section 3
_NOT_IN_QUOTES = re.compile(r'[^!#-\[\]-~]|"')
_ENCODING = re.compile(rb"^content-transfer-encoding[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*\n?", re.IGNORECASE | re.MULTILINE)
_CONTENT_FIELD = re.compile(rb"^content-[a-z-]+[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*\n?", re.IGNORECASE | re.MULTILINE)
_CONTENT_ID = re.compile(rb"^content-id[ \t]*:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Shared:
    """A file that has become a link. `link` may go through a gateway; `ibpfs_link` needs none. Both are secrets."""

    id: str
    name: str
    size: int
    expires: int  # Unix seconds
    link: str = field(repr=False)
    ibpfs_link: str = field(repr=False)


def blocks(shared: Shared, header: bytes, boundary: bytes, *, with_html: bool) -> bytes:
    """Return the two parts that replace one, as the inside of a multipart with this boundary; lines end in LF.

    `header` is the replaced part's: it is what the external body says of itself.
    """
    people = _alternatives(shared) if with_html else _text_part("plain", _plain(shared))
    return people + b"\n--" + boundary + b"\n" + _external_body(shared, header)


def _alternatives(shared: Shared) -> bytes:
    boundary = make_boundary(shared, "alternatives")
    parts = (_text_part("plain", _plain(shared)), _text_part("html", _html(shared)))
    inside = b"".join(b"--" + boundary + b"\n" + part + b"\n" for part in parts)
    head = b'Content-Type: multipart/alternative; boundary="' + boundary + b'"\n\n'
    return head + inside + b"--" + boundary + b"--\n"


def make_boundary(shared: Shared, purpose: str) -> bytes:
    """Return a boundary that nobody else has: of the share's secret, which it does not tell."""
    digest = hashlib.sha256(f"ibpfs-mail/1 {purpose}\0{shared.ibpfs_link}".encode()).hexdigest()
    return f"=_ibpfs_{digest[:32]}".encode("ascii")


def _text_part(kind: str, text: str) -> bytes:
    data = text.encode()
    plain = data.isascii() and all(len(line) <= _LONGEST_LINE for line in data.splitlines())
    charset, encoding = ("us-ascii", "7bit") if plain else ("utf-8", "quoted-printable")
    header = (
        f"Content-Type: text/{kind}; charset={charset}\n"
        f"Content-Transfer-Encoding: {encoding}\nContent-Disposition: inline\n\n"
    )
    return header.encode("ascii") + (data if plain else quopri.encodestring(data))


def _plain(shared: Shared) -> str:
    gateway = "" if shared.link == shared.ibpfs_link else f"    <{shared.link}>\n\n  or, without a browser,\n\n"
    return (
        f"  File: {shared.name} ({format_size(shared.size)})\n"
        f"  It is not in this message: this link has it, until {_day(shared.expires)}:\n\n"
        f"{gateway}    <{shared.ibpfs_link}>\n\n"
        f"  which is for `ibpfs get -`: pipe this message or paste the link into it.\n"
    )


def _html(shared: Shared) -> str:
    name, size = escape(shared.name), escape(format_size(shared.size))
    shown = f"<strong>{name}</strong> ({size})"
    if shared.link.startswith(("https://", "http://")):
        shown = f'<a href="{escape(shared.link)}">{name}</a> ({size})'
    return (
        f"<div>\n<p>File: {shown}<br>\nIt is not in this message: the link has it, until {_day(shared.expires)}.</p>\n"
        f"<p>Without a browser: pipe this message, or paste this link, into <code>ibpfs get -</code><br>\n"
        f'<code style="word-break: break-all">{escape(shared.ibpfs_link)}</code></p>\n</div>\n'
    )


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%-d %B %Y, %H:%M UTC")


def _external_body(shared: Shared, header: bytes) -> bytes:
    url = _NOT_IN_QUOTES.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), shared.link)
    expires = format_datetime(datetime.fromtimestamp(shared.expires, UTC))
    lines = [
        "Content-Type: message/external-body; access-type=URL;",
        ' URL="' + "\n  ".join(wrap(url, _WORD, break_on_hyphens=False)) + '";',
        f' size={shared.size}; expiration="{expires}"',
        f"X-IBPFS-Share: {shared.id}",
    ]
    return "\n".join(lines).encode("ascii") + b"\n\n" + _phantom(shared, header)


def _phantom(shared: Shared, header: bytes) -> bytes:
    """The header of the body that is elsewhere: as it was, but for the encoding."""
    fields = b"".join(_line_end(found.group()) for found in _CONTENT_FIELD.finditer(header.replace(b"\r\n", b"\n")))
    kept = _ENCODING.sub(b"", fields)
    if not _CONTENT_ID.search(kept):
        kept += f"Content-ID: <{shared.id}.share@ibpfs.invalid>\n".encode("ascii")
    return kept + b"Content-Transfer-Encoding: binary\n\n"


def _line_end(field: bytes) -> bytes:
    return field if field.endswith(b"\n") else field + b"\n"
