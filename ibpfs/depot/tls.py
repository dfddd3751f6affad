"""TLS on a connection to a depot, for both ends: no authority vouches, the certificate's fingerprint is what is known.

`TlsSocket` has the few methods of a trio socket that client and server use.
"""

import errno
import hmac
import os
import ssl
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import trio

from ibpfs.depot.wire import Connection, DepotUnreachable, OutOfSockets, RemoteProtocolError, Role
from ibpfs.depot.wire import events as ev

RECORD: Final = b"\x16"  # the first byte of a TLS connection; no IBP line begins with it
HANDSHAKE_LIMIT: Final = 15.0
_PIECE: Final = 256 * 1024  # sent as one: progress is seen in such steps
_LONGEST_GOODBYE: Final = 64

Buffer = bytes | bytearray | memoryview


class WrongCertificate(DepotUnreachable):
    """Another certificate than the pinned one: another depot, or somebody in between."""


class NoTls(DepotUnreachable):
    """What answers does not speak TLS."""


class TlsSocket:
    """Errors are OSErrors, as of a socket, and trio's ClosedResourceError after `close`."""

    def __init__(self, sock: trio.socket.SocketType, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._sock = sock
        plain = trio.SocketStream(sock)
        self._beginning = _Beginning(plain)
        self._stream = trio.SSLStream(
            trio.StapledStream(plain, self._beginning), context, server_side=server_side, https_compatible=True
        )

    async def handshake(self) -> None:
        """Raises ConnectionError when the peer does not manage."""
        try:
            await self._stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "no TLS handshake") from error

    @property
    def answered(self) -> bool:
        return bool(self._beginning.seen)

    @property
    def goodbye(self) -> ev.Goodbye | None:
        """What a depot says, in clear, that has no connection left for us."""
        codec = Connection(Role.CLIENT)
        codec.receive_data(self._beginning.seen)
        try:
            event = codec.next_event()
        except RemoteProtocolError:
            return None
        return event if isinstance(event, ev.Goodbye) else None

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the peer's certificate."""
        return sha256(self._stream.getpeercert(True) or b"").digest()

    async def recv(self, count: int, flags: int = 0) -> bytes:
        try:
            return bytes(await self._stream.receive_some(count))
        except trio.BrokenResourceError as error:
            raise _lost() from error

    async def recv_into(self, buffer: memoryview) -> int:
        data = await self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def send(self, data: Buffer, flags: int = 0) -> int:
        """How many of the bytes went out: not always all."""
        with memoryview(data) as view:
            piece = view[:_PIECE]
            try:
                await self._stream.send_all(piece)
            except trio.BrokenResourceError as error:
                raise _lost() from error
            return len(piece)

    async def sendmsg(self, parts: Sequence[memoryview]) -> int:
        if len(parts[0]) >= _PIECE:
            return await self.send(parts[0])
        gathered = bytearray()
        for part in parts:
            gathered += part[: _PIECE - len(gathered)]
            if len(gathered) == _PIECE:
                break
        return await self.send(gathered)

    async def send_file(self, fd: int, offset: int, length: int) -> int:
        """0 at the end of the file."""
        data = os.pread(fd, min(length, _PIECE), offset)
        return await self.send(data) if data else 0

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()


class _Beginning(trio.abc.ReceiveStream):
    """What `stream` brings; remembers how it began."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.seen = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if not self.seen:
            self.seen = bytes(data[:_LONGEST_GOODBYE])
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


def _lost() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared instead
    harden(context)
    return context


def harden(context: ssl.SSLContext) -> None:
    """What both ends insist on."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


async def secured(sock: trio.socket.SocketType, name: str, pin: bytes | None) -> TlsSocket:
    """The depot `name` behind TLS; `pin` None takes any certificate. Closes `sock` on error.

    Raises NoTls, WrongCertificate, OutOfSockets; DepotUnreachable when nothing at all comes back.
    """
    tls = TlsSocket(sock, client_context(), server_side=False)
    try:
        try:
            await tls.handshake()
        except OSError as error:
            if (goodbye := tls.goodbye) is not None:
                raise OutOfSockets(goodbye.backoff) from error
            if not tls.answered:
                raise DepotUnreachable(f"{name}: closed the connection before any answer") from error
            known = "although this volume knows it with TLS; refused" if pin else "use ibp:// if that is meant"
            raise NoTls(f"{name}: does not speak TLS, {known}") from error
        if pin is not None and not hmac.compare_digest(tls.fingerprint, pin):
            raise WrongCertificate(
                f"{name}: refused: its certificate has changed (SHA-256 now {tls.fingerprint.hex()}, "
                f"pinned {pin.hex()}): another depot answers there, or somebody is in between; "
                "ibpfs depots --pin trusts it"
            )
    except BaseException:
        tls.close()
        raise
    return tls


async def probe(host: str, port: int, limit: float) -> bytes | None:
    """The fingerprint of the depot there. None: no TLS within `limit` seconds, or nobody answers."""
    with trio.move_on_after(limit):
        while True:
            try:
                sock = (await trio.open_tcp_stream(host, port)).socket
                tls = await secured(sock, host, None)
            except OutOfSockets as busy:
                await trio.sleep(busy.backoff)
                continue
            except (OSError, DepotUnreachable):
                return None
            tls.close()
            return tls.fingerprint
    return None
