"""A record log: sealed, numbered records one behind the other, in allocations that hold the same bytes each.

Head: `IBPRLOG1`, log id (16 bytes), length of a text (4), the text: JSON that says how the key is opened. Record:
`rec1`, kind (1), three zeros, number (8), length of the body (4), nonce (12), then the body, sealed (AES-256-GCM) under
the log's key; associated data: log id and the record's first 20 bytes. All big endian. Knows no depot and no database.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ibpfs.errors import DataError
from ibpfs.exnode_store.keys import derive

_MAGIC = b"IBPRLOG1"
_HEAD = struct.Struct(">8s16sI")
_MARK = b"rec1"
_RECORD = struct.Struct(">4sB3xQI12s")
HEADER_SIZE = _RECORD.size
_AUTHENTICATED = 20
_TAG = 16

#: Kinds of records: some changed pages; the end of a checkpoint; where a checkpoint's log is; where the next log is.
PAGES, COMMIT, PLACE, SUCCESSOR = 1, 2, 3, 4
#: What a reader takes, at most; a writer stays below.
MOST_BODY = 4 * 1024 * 1024
MOST_TEXT = 256 * 1024
HEAD_SIZE = _HEAD.size


class DamagedLog(DataError):
    """Bytes are not what a record log has there."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a sealed body; `length` is the body's, with its tag."""

    kind: int
    number: int
    length: int
    nonce: bytes
    authenticated: bytes


@dataclass(frozen=True, slots=True)
class Record:
    kind: int
    number: int
    body: bytes
    stop: int  # offset in the log of the byte behind it


class LogSeal:
    """Seals and opens the records of one log."""

    def __init__(self, checkpoint_key: bytes, log: bytes) -> None:
        self.log = log
        self._cipher = AESGCM(derive(checkpoint_key, b"log " + log))

    def seal(self, kind: int, number: int, body: bytes) -> bytes:
        """The whole record. Nonces are random: after a crash a number may be sealed again."""
        length = len(body) + _TAG
        if length > MOST_BODY:
            raise ValueError("a record's body is too long")
        nonce = os.urandom(12)
        header = _RECORD.pack(_MARK, kind, number, length, nonce)
        return header + self._cipher.encrypt(nonce, body, self.log + header[:_AUTHENTICATED])

    def open(self, header: Header, sealed: bytes) -> bytes:
        """The body. DamagedLog."""
        try:
            return self._cipher.decrypt(header.nonce, sealed, self.log + header.authenticated)
        except (InvalidTag, ValueError):
            raise DamagedLog(f"record {header.number} does not open") from None

    def records(self, data: bytes, start: int) -> Iterator[Record]:
        """Every sound record, also those behind a damaged one: the last valid one of a root counts."""
        at = start
        while (at := data.find(_MARK, at)) >= 0:
            try:
                header = parse_header(data[at : at + HEADER_SIZE])
                stop = at + HEADER_SIZE + header.length
                body = self.open(header, data[at + HEADER_SIZE : stop])
            except DamagedLog:
                at += 1
                continue
            yield Record(header.kind, header.number, body, stop)
            at = stop


def make_head(log: bytes, text: bytes) -> bytes:
    return _HEAD.pack(_MAGIC, log, len(text)) + text


def parse_head(data: bytes) -> tuple[bytes, int]:
    """(log id, length of the text) from the first HEAD_SIZE bytes. DamagedLog."""
    if len(data) < HEAD_SIZE:
        raise DamagedLog("not a record log: it is too short")
    magic, log, length = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise DamagedLog("not a record log")
    if length > MOST_TEXT:
        raise DamagedLog("its head has an unreasonable length")
    return log, length


def parse_header(data: bytes) -> Header:
    """DamagedLog when these bytes begin no record, or an unreasonable one."""
    if len(data) < HEADER_SIZE:
        raise DamagedLog("a record is cut off")
    mark, kind, number, length, nonce = _RECORD.unpack_from(data)
    if mark != _MARK:
        raise DamagedLog("no record begins there")
    if not _TAG <= length <= MOST_BODY:
        raise DamagedLog(f"record {number} has an unreasonable length")
    return Header(kind, number, length, nonce, bytes(data[:_AUTHENTICATED]))
