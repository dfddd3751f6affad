"""Messages between a mail program's add-on and a program: four bytes of length, in the machine's byte order, and JSON.

Knows no pipe.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any, Final

from ibpfs.errors import IbpfsError

_LENGTH: Final = struct.Struct("=I")
#: Of a message to us; the add-on cuts files into smaller pieces. The mail program itself takes up to 1 MiB.
LONGEST: Final = 4 * 1024 * 1024
LONGEST_ANSWER: Final = 1024 * 1024


class BadMessage(IbpfsError):
    """What came is no message, and what follows it cannot be found."""


class Reader:
    """Takes bytes as they come."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield whole messages; BadMessage ends the conversation."""
        self._held += data
        while len(self._held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held)
            if length > LONGEST:
                raise BadMessage(f"a message of {length} bytes")
            if len(self._held) < _LENGTH.size + length:
                return
            body = bytes(self._held[_LENGTH.size : _LENGTH.size + length])
            del self._held[: _LENGTH.size + length]
            yield _parse(body)

    @property
    def is_between(self) -> bool:
        """Whether the other side may stop here."""
        return not self._held


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise BadMessage("a message that is not JSON") from None
    if not isinstance(message, dict):
        raise BadMessage("a message that is no object")
    return message


def frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode("ascii")
    assert len(body) <= LONGEST_ANSWER
    return _LENGTH.pack(len(body)) + body
