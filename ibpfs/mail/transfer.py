"""Undoing a Content-Transfer-Encoding piece by piece, strictly: what does not decode without doubt is refused.

The line ends of text are those that a reader on this system would store: in a message they are the transport's.
"""

import binascii
import re
from collections.abc import Iterable, Iterator

from ibpfs.errors import IbpfsError
from ibpfs.mail.structure import Buffer

_PIECE = 1 << 20
_LONGEST_LINE = 1 << 20
_BAD_QUOTED = re.compile(rb"=(?![0-9A-Fa-f]{2}|[ \t]*\n)|[^\t\n -~]")

#: Encodings that can be undone.
KNOWN = ("7bit", "8bit", "binary", "base64", "quoted-printable")


class Undecodable(IbpfsError):
    """Bytes that are not what their encoding says."""


def decode(data: Buffer, start: int, stop: int, encoding: str) -> Iterator[bytes]:
    """Yield the decoded bytes of data[start:stop]; Undecodable, perhaps after some pieces."""
    pieces = (data[place : min(place + _PIECE, stop)] for place in range(start, stop, _PIECE))
    match encoding:
        case "binary":
            return pieces
        case "7bit" | "8bit":
            return _lines(pieces)
        case "base64":
            return _base64(pieces)
        case "quoted-printable":
            return _quoted(_lines(pieces))
    raise Undecodable(f"the transfer encoding {encoding!r} is unknown")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for piece in pieces:
        piece = held + piece
        held = piece[-1:] if piece.endswith(b"\r") else b""
        yield piece[: len(piece) - len(held)].replace(b"\r\n", b"\n")
    if held:
        yield held


def _base64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held, ended = b"", False
    for piece in pieces:
        signs = held + piece.translate(None, b" \t\r\n")
        whole = len(signs) - len(signs) % 4
        held = signs[whole:]
        if signs and ended:
            raise Undecodable("base64 goes on behind its end")
        ended = signs[:whole].endswith(b"=")
        yield _strict(signs[:whole])
    if held:
        raise Undecodable("base64 ends too early")


def _strict(signs: bytes) -> bytes:
    try:
        return binascii.a2b_base64(signs, strict_mode=True) if signs else b""
    except binascii.Error as error:
        raise Undecodable(f"not base64: {error}") from None


def _quoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held = b""
    for piece in pieces:
        text = held + piece
        whole = text.rfind(b"\n") + 1
        held = text[whole:]
        if len(held) > _LONGEST_LINE:
            raise Undecodable("a quoted-printable line without an end")
        yield _unquoted(text[:whole])
    yield _unquoted(held + b"=\n") if held else b""


def _unquoted(text: bytes) -> bytes:
    if _BAD_QUOTED.search(text):
        raise Undecodable("not quoted-printable")
    return binascii.a2b_qp(text)
