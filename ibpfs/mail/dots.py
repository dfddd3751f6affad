"""The transparency of SMTP's DATA (RFC 5321 section 4.5.2) piece by piece. Knows no socket."""

import re
from collections.abc import Iterable, Iterator

END = b"\r\n.\r\n"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_DOT = re.compile(rb"(?<=\n)\.")
#: What END may begin with at the end of a piece.
_BEGUN = tuple(END[:length] for length in range(len(END) - 1, 0, -1))


def stuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what goes over the wire for a message, its end included; every line end becomes CRLF."""
    held, fresh = b"", True
    for piece in pieces:
        text = held + piece
        held = b"\r" if text.endswith(b"\r") else b""
        lines = _LINE_END.sub(b"\r\n", text[: len(text) - len(held)])
        if lines:
            yield (b"." if fresh and lines.startswith(b".") else b"") + _DOT.sub(b"..", lines)
            fresh = lines.endswith(b"\n")
    if held or not fresh:
        yield b"\r\n"
    yield b".\r\n"


class Unstuffer:
    """Takes bytes as they came, END not among them, and gives the message's."""

    def __init__(self) -> None:
        self._held = b"\r\n"  # before the first line
        self._first = True

    def feed(self, data: bytes) -> bytes:
        text = self._held + data
        self._held = next((begun for begun in _BEGUN if text.endswith(begun)), b"")
        return self._plain(text[: len(text) - len(self._held)])

    def finish(self) -> bytes:
        """Return the rest; the line end before the last dot is the message's."""
        text, self._held = self._held, b""
        return self._plain(text)

    def _plain(self, text: bytes) -> bytes:
        plain = text.replace(b"\r\n.", b"\r\n")
        if text and self._first:
            self._first, plain = False, plain[2:]
        return plain


def may_continue(data: bytes) -> bool:
    """Whether END has begun at the end of `data`, and is not whole."""
    return data.endswith(_BEGUN) and not data.endswith(END)
