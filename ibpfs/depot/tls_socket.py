"""A socket behind TLS: what comes is decrypted in large pieces, straight to where it is wanted.

Has the few methods of a trio socket that client and server use. Trio's own SSLStream takes five turns of the event loop
for each record of 16 KiB, which was most of the time of large loads and stores.
"""

import errno
import os
import ssl
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, cast

import trio

Buffer = bytes | bytearray | memoryview

_RECORD: Final = 18 * 1024 + 5  # the longest there is
_MOST_SEALED: Final = 1024 * 1024  # read from the socket, before it is decrypted
_PIECE: Final = 512 * 1024  # sent as one: progress is seen in such steps
_AT_ONCE: Final = 64 * 1024  # goes through TLS, to stay in the processor's cache; its buffers never shrink
_MOST_ANSWERS: Final = 16 * 1024  # to what the peer says about keys, waiting for the next bytes of ours
_BEGINNING: Final = 64


class TlsSocket:
    """Errors are OSErrors, as of a socket, and trio's ClosedResourceError after `close`. One task may send while
    another receives. A receive that was cancelled has taken nothing; after a `send` that was, nothing more is sent."""

    def __init__(self, sock: trio.socket.SocketType, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._came = memoryview(b"")  # not yet in `incoming`
        self._ended = False
        self._damaged = False
        self._torn = False  # part of what was sealed has not gone out
        self.beginning = b""  # of what the peer has said, as it came

    async def handshake(self) -> None:
        """Raises ConnectionError when the peer does not manage."""
        try:
            while not self._shake():
                await self._transmit(self._outgoing.read())
                await self._fill(_RECORD)
                if self._ended:
                    raise _lost()
            await self._transmit(self._outgoing.read())
        except OSError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "no TLS handshake") from error

    def _shake(self) -> bool:
        self._pass_on()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the peer's certificate."""
        return sha256(self._tls.getpeercert(True) or b"").digest()

    def has_news(self) -> bool:
        """Something came that nobody has received. Takes it: only for connections that are dropped if so."""
        try:
            return self._more and self._open(memoryview(bytearray(1))) is not None
        except OSError:
            return True

    async def recv(self, count: int, flags: int = 0) -> bytes:
        while (data := self._take(count)) is None:
            await self._fill(count)
        return data

    def _take(self, count: int) -> bytes | None:
        if not (self._more or self._ended):  # those who wait hold no memory for what may come
            return None
        with memoryview(bytearray(count)) as room:
            received = self._open(room)
            return None if received is None else bytes(room[:received])

    async def recv_into(self, buffer: memoryview) -> int:
        """No other task runs between the arrival of bytes in `buffer` and the return."""
        while (received := self._open(buffer)) is None:
            await self._fill(len(buffer))
        return received

    @property
    def _more(self) -> bool:
        return bool(self._incoming.pending or self._came or self._tls.pending() or self._damaged)

    def _open(self, room: memoryview) -> int | None:
        """How much of what came is in `room` now: 0 at the end, None if more has to come first."""
        received, length = 0, 0 if self._ended or self._damaged or not self._more else len(room)
        try:
            while received < length:
                if self._came and self._incoming.pending < _RECORD:
                    self._pass_on()
                count = cast("int", self._tls.read(length - received, room[received:]))  # of one record
                if not count:
                    self._ended = True
                    break
                received += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._damaged = True
        if self._damaged and not received:
            raise _lost()
        return received if received or self._ended else None

    def _pass_on(self) -> None:
        self._incoming.write(self._came[:_AT_ONCE])
        self._came = self._came[_AT_ONCE:]

    async def _fill(self, wanted: int) -> None:
        """One read of the socket, when all that came is opened."""
        if self._outgoing.pending > _MOST_ANSWERS:
            raise _lost()
        if self._came:  # behind much that TLS has kept to itself
            return
        try:
            data = await self._sock.recv(min(wanted + _RECORD, _MOST_SEALED))
        except OSError as error:
            raise _lost() from error
        self.beginning = self.beginning or data[:_BEGINNING]
        self._came = memoryview(data)
        self._ended = not data  # without TLS saying so, too: the lines of IBP know their lengths

    async def send(self, data: Buffer, flags: int = 0) -> int:
        """How many of the bytes went out: not always all."""
        with memoryview(data) as view:
            return await self.sendmsg([view], flags)

    async def sendmsg(self, parts: Sequence[memoryview], flags: int = 0) -> int:
        sealed, sent = bytearray(), 0
        for part in parts:
            end = min(len(part), _PIECE - sent)
            for at in range(0, end, _AT_ONCE):
                self._seal(part[at : min(at + _AT_ONCE, end)], sealed)
            sent += end
            if sent == _PIECE:
                break
        await self._transmit(sealed, flags)
        return sent

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        """0 at the end of the file."""
        sealed, sent, length = bytearray(), 0, min(length, _PIECE)
        with memoryview(bytearray(min(length, _AT_ONCE))) as room:
            while count := os.preadv(fd, [room[: length - sent]], offset + sent):
                self._seal(room[:count], sealed)
                sent += count
        await self._transmit(sealed)
        return sent

    def _seal(self, data: Buffer, into: bytearray) -> None:
        if self._torn:
            raise _lost()
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self._torn = True
            raise _lost() from error
        into += self._outgoing.read()

    async def _transmit(self, sealed: Buffer, flags: int = 0) -> None:
        self._torn = True
        try:
            with memoryview(sealed) as rest:
                gone = 0
                while gone < len(rest):
                    gone += await self._sock.send(rest[gone:], flags)
        except OSError as error:
            raise _lost() from error
        self._torn = False

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


def _lost() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
