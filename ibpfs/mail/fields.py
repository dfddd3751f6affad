"""The header of a part, as far as it says what the part is.

Bytes of a header are never made anew from what is read here: what stays of a message stays byte for byte.
"""

import email
import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import collapse_rfc2231_value
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.message import Message

#: What the fields that are read here may be long together; a longer one is for no reader.
LONGEST = 64 * 1024

_FIELD = re.compile(
    rb"^(content-[a-z-]+|subject|mime-version|dkim-signature|arc-seal)[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*",
    re.IGNORECASE | re.MULTILINE,
)
_ONCE = ("content-type", "content-transfer-encoding", "content-disposition")
_TROUBLE = (LookupError, ValueError, TypeError, AttributeError, HeaderParseError)


@dataclass(frozen=True)
class Fields:
    """What a part says of itself. `damage` says in a word why it is not to be trusted."""

    kind: str = "text/plain"  # type/subtype in lower case; "" where a multipart/digest says otherwise
    named: bool = False  # whether the header has a Content-Type
    boundary: bytes = b""
    encoding: str = "7bit"
    disposition: str = ""
    name: str = ""  # as sent, not yet fit for a directory
    subject: str = ""
    is_mail: bool = False  # has MIME-Version
    is_dkim_signed: bool = False
    damage: str = ""

    @property
    def main(self) -> str:
        return self.kind.partition("/")[0]


def read_fields(header: bytes) -> Fields:
    """Return what a header block says; never raises."""
    found = [match.group() for match in _FIELD.finditer(header)]
    names = [field.partition(b":")[0].strip().lower().decode("ascii") for field in found]
    if sum(map(len, found)) > LONGEST:
        return Fields(damage="a header that is too long")
    if any(names.count(name) > 1 for name in _ONCE):
        return Fields(damage="a header that says two things")
    try:
        return _fields(email.message_from_string(_text(b"\n".join(found)) + "\n\n"), names)
    except _TROUBLE:
        return Fields(damage="a header that cannot be read")


def _fields(message: "Message[str, str]", names: list[str]) -> Fields:
    boundary = message.get_boundary() if message.get_content_maintype() == "multipart" else None
    return Fields(
        kind=message.get_content_type(),
        named="content-type" in names,
        boundary=(boundary or "").encode("utf-8"),
        encoding=str(message.get("content-transfer-encoding", "7bit")).strip().lower() or "7bit",
        disposition=message.get_content_disposition() or "",
        name=_name(message),
        subject=decode_words(str(message.get("subject", ""))),
        is_mail="mime-version" in names,
        is_dkim_signed="dkim-signature" in names or "arc-seal" in names,
    )


def _text(data: bytes) -> str:
    """Raw eight-bit headers are UTF-8 nowadays; if they are not, any reading is as good as another."""
    data = data.replace(b"\r", b"")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _name(message: "Message[str, str]") -> str:
    for parameter, field in (("filename", "content-disposition"), ("name", "content-type")):
        value = message.get_param(parameter, None, field)
        if value:
            return decode_words(collapse_rfc2231_value(value))
    return ""


def decode_words(text: str) -> str:
    """Return text without the encoded words of RFC 2047, which some mailers put into names, too."""
    if "=?" not in text:
        return text
    try:
        return str(make_header(decode_header(text)))
    except _TROUBLE:
        return text
