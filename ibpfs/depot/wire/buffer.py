"""Bytes that have arrived and are not consumed yet: whole lines, or raw pieces."""

from ibpfs.depot.wire.protocol import MAX_LINE

_COMPACT_AT = 64 * 1024


class LineTooLong(Exception):
    """Internal to the codec: too many bytes without an LF."""


class ReceiveBuffer:
    """Consuming never moves the rest: a pipelined batch of lines costs one pass."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._bytes = bytearray()
        self._start = 0
        self._searched = 0

    def __len__(self) -> int:
        return len(self._bytes) - self._start

    def append(self, data: bytes | bytearray | memoryview) -> None:
        self._compact()
        self._bytes += data

    def next_line(self) -> bytes | None:
        """The next line without its LF."""
        end = self._bytes.find(b"\n", max(self._start, self._searched))
        if (len(self._bytes) if end < 0 else end) - self._start > self._max_line:
            raise LineTooLong
        if end < 0:
            self._searched = len(self._bytes)
            return None
        line = bytes(memoryview(self._bytes)[self._start : end])
        self._consume(end + 1)
        return line

    def take(self, limit: int) -> bytes:
        end = min(len(self._bytes), self._start + limit)
        piece = bytes(memoryview(self._bytes)[self._start : end])
        self._consume(end)
        return piece

    def clear(self) -> None:
        self._consume(len(self._bytes))

    def _consume(self, end: int) -> None:
        self._start = self._searched = end
        if end == len(self._bytes):
            self._bytes.clear()
            self._start = self._searched = 0

    def _compact(self) -> None:
        if self._start >= _COMPACT_AT:
            del self._bytes[: self._start]
            self._searched -= self._start
            self._start = 0
