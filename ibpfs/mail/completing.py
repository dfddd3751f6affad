"""Fields that every message has (RFC 5322 section 3.6): a sendmail adds missing ones, an SMTP server need not."""

import re
from email.utils import format_datetime, formataddr, localtime, make_msgid

_THERE = re.compile(rb"^(from|date|message-id)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BEGINS = re.compile(rb"[!-9;-~]+[ \t]*:|\r?\n")
#: A line of mailboxes, which some programs leave at the top; to an SMTP server it is the end of the header.
_MBOX_LINE = re.compile(rb"\A>?From [^\n]*\n")


def completed(header: bytes, sender: str, name: str, line_end: bytes) -> bytes:
    """The header with what was missing on top; `sender` and `name` are those of the call."""
    rest = _MBOX_LINE.sub(b"", header)
    if not _BEGINS.match(rest):  # text alone
        rest = line_end + rest
    there = {found.group(1).lower() for found in _THERE.finditer(rest)}
    fields = {
        b"from": formataddr((name, sender), "utf-8") if sender.isascii() else f"<{sender}>",
        b"date": format_datetime(localtime()),
        b"message-id": make_msgid(domain=sender.rpartition("@")[2] or None),
    }
    missing = (b"%b: %b" % (name.title(), value.encode()) for name, value in fields.items() if name not in there)
    return b"".join(field + line_end for field in missing) + rest
