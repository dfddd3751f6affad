"""How a file from a message is called: a name of somebody else's, made fit for a directory and a terminal."""

import mimetypes
import re
import unicodedata

from ibpfs.mail.fields import read_fields
from ibpfs.mail.structure import Buffer, Part

LONGEST_NAME = 200  # bytes in UTF-8, below the 255 of file systems, with room for a suffix
_SUBJECT_WITHIN = 64 * 1024


def name_of(data: Buffer, part: Part) -> str:
    """Return the part's own name; of a forwarded message its subject; else one that tells the type."""
    if part.fields.kind == "message/rfc822":
        inner = data[part.body : min(part.stop, part.body + _SUBJECT_WITHIN)]
        subject = read_fields(re.split(rb"\n\r?\n", inner, maxsplit=1)[0]).subject
        return clean_name(part.fields.name, "") or clean_name(subject, "message") + ".eml"
    return clean_name(part.fields.name, "attachment" + (mimetypes.guess_extension(part.fields.kind) or ".bin"))


def clean_name(text: str, otherwise: str) -> str:
    """Return the last part of a name, without what a terminal or a directory could take amiss."""
    last = re.split(r"[/\\]", text.strip())[-1]
    shown = "".join(sign for sign in last if unicodedata.category(sign)[0] != "C")
    shown = " ".join(shown.split()).lstrip(".-").strip()
    if not shown:
        return otherwise
    stem, dot, suffix = shown.rpartition(".")
    if len(shown.encode()) <= LONGEST_NAME or not dot or len(suffix.encode()) > 20:
        return _cut(shown, LONGEST_NAME)
    return f"{_cut(stem, LONGEST_NAME - 1 - len(suffix.encode()))}.{suffix}"


def _cut(text: str, length: int) -> str:
    return text.encode()[:length].decode(errors="ignore")
