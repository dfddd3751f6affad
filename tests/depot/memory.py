"""Two ends of a connection that is nowhere but in memory, each with what client and depot use of a trio socket."""

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from itertools import cycle

import trio
from trio.testing import memory_stream_pair

Buffer = bytes | bytearray | memoryview


class MemorySocket:
    """Takes and gives bytes in pieces of the given sizes, in turn."""

    family = socket.AF_UNIX

    def __init__(self, stream: "trio.StapledStream[object, object]", pieces: Iterator[int]) -> None:
        self._stream = stream
        self._pieces = pieces
        self._unread = 0
        self._bell = os.eventfd(0)  # to be polled: readable while something is there to be read
        self.peer = self

    def setsockopt(self, *_: int) -> None:
        """There is no kernel to be told."""

    def fileno(self) -> int:
        return self._bell

    async def recv(self, count: int, flags: int = 0) -> bytes:
        data = bytes(await self._stream.receive_some(min(count, next(self._pieces))))
        self._unread -= len(data)
        if data and not self._unread:
            os.eventfd_read(self._bell)
        return data

    async def recv_into(self, buffer: memoryview) -> int:
        data = await self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def send(self, data: Buffer, flags: int = 0) -> int:
        piece = data[: next(self._pieces)]
        self.peer.tell(len(piece))
        try:
            await self._stream.send_all(bytes(piece))
        except trio.BrokenResourceError:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        return len(piece)

    async def sendmsg(self, parts: Iterable[memoryview]) -> int:
        return await self.send(b"".join(parts))

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        return await self.send(os.pread(fd, length, offset))

    def tell(self, count: int) -> None:
        """So many bytes come; 0 = the end."""
        if not self._unread and self._bell >= 0:
            os.eventfd_write(self._bell, 1)
        self._unread += count or 1

    def shutdown(self, how: int) -> None:
        self._stream.send_stream.close()  # type: ignore[attr-defined]
        self.peer.tell(0)

    def close(self) -> None:
        if self._bell >= 0:
            self.shutdown(socket.SHUT_WR)
            self._stream.receive_stream.close()  # type: ignore[attr-defined]
            os.close(self._bell)
            self._bell = -1


def memory_pair(pieces: Iterable[int]) -> tuple[MemorySocket, MemorySocket]:
    one, other = (MemorySocket(stream, cycle(pieces)) for stream in memory_stream_pair())  # type: ignore[arg-type]
    one.peer, other.peer = other, one
    return one, other
