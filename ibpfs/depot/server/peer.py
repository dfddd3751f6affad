"""The socket of one session, with every wait bounded. The only code of the server that reads or writes one."""

import math
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import trio

from ibpfs.depot.server.access import Ip, plain_ip
from ibpfs.depot.tls import HANDSHAKE_LIMIT, RECORD, TlsSocket, secured

READ_SIZE = 64 * 1024
SENDFILE_SIZE = 1 << 20
SOCKET_BUFFER = 1 << 20


class PeerGone(Exception):
    """Internal to the server: the peer closed or broke the connection."""


class PeerStuck(PeerGone):
    """It made no progress for too long."""


class Peer:
    """One socket. `limit` arguments are seconds without progress; None waits for ever. With `tls` the peer may
    begin with a TLS record, and is spoken to through TLS then."""

    def __init__(self, sock: trio.socket.SocketType, tls: ssl.SSLContext | None = None) -> None:
        self._sock: trio.socket.SocketType | TlsSocket = sock
        self._tls = tls
        self.local = sock.family == socket.AF_UNIX
        self.origin = _origin(sock)  # None where the peer is a process of this machine
        if self.local:  # the default of 208 KiB halves the speed of loads
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive(self, limit: float | None) -> bytes:
        """b"" at the end of the stream."""
        if self._tls is not None:
            await self._meet(self._tls, limit)
        with _bounded(limit):
            return await self._sock.recv(READ_SIZE)

    async def _meet(self, context: ssl.SSLContext, limit: float | None) -> None:
        sock = self._sock
        assert not isinstance(sock, TlsSocket)
        with _bounded(limit):
            first = await sock.recv(1, socket.MSG_PEEK)
        self._tls = None
        if first == RECORD:
            self._sock = secure = TlsSocket(sock, context, server_side=True)
            try:
                with _bounded(HANDSHAKE_LIMIT if limit is None else min(limit, HANDSHAKE_LIMIT)):
                    await secure.handshake()
            except PeerStuck:  # there is no way to tell it anything
                raise PeerGone("no TLS handshake in time") from None

    async def secure(self, name: str, limit: float) -> None:
        """To a depot: TLS with it from now on, whatever certificate it shows. Raises DepotUnreachable, OutOfSockets."""
        assert not isinstance(self._sock, TlsSocket)
        with _bounded(limit):
            self._sock = await secured(self._sock, name, None)

    async def receive_into(self, buffer: memoryview, limit: float | None) -> int:
        """At least one byte."""
        with _bounded(limit):
            if received := await self._sock.recv_into(buffer):
                return received
        raise PeerGone("closed in the middle of the data")

    async def send(self, data: bytes | bytearray, limit: float | None, *, more: bool = False) -> None:
        """`more`: data follow at once, do not send a small segment for this."""
        flags = socket.MSG_MORE if more and not self.local else 0
        with memoryview(data) as rest:
            sent = 0
            while sent < len(rest):
                with _bounded(limit):
                    sent += await self._sock.send(rest[sent:], flags)

    async def send_file(self, fd: int, offset: int, length: int, limit: float | None) -> None:
        """From the page cache to the socket without passing through Python, but for TLS."""
        if isinstance(self._sock, TlsSocket):
            await self._send_file_sealed(self._sock, fd, offset, length, limit)
            return
        end = offset + length
        while offset < end:
            sent = self._try_sendfile(fd, offset, min(SENDFILE_SIZE, end - offset))
            if sent is None:
                with _bounded(limit):
                    await trio.lowlevel.wait_writable(self._sock.fileno())
                continue
            if sent == 0:
                raise PeerGone("the file is shorter than its header says")
            offset += sent
            await trio.lowlevel.checkpoint()

    async def _send_file_sealed(
        self, sock: TlsSocket, fd: int, offset: int, length: int, limit: float | None
    ) -> None:
        end = offset + length
        while offset < end:
            with _bounded(limit):
                sent = await sock.send_file(fd, offset, end - offset)
            if not sent:
                raise PeerGone("the file is shorter than its header says")
            offset += sent

    def _try_sendfile(self, fd: int, offset: int, count: int) -> int | None:
        try:
            return os.sendfile(self._sock.fileno(), fd, offset, count)
        except BlockingIOError:
            return None
        except OSError as error:
            raise PeerGone(str(error)) from None

    async def linger(self, limit: float) -> None:
        """Ends our direction and reads until the peer has seen it: a reset would destroy our last line on its way."""
        with trio.move_on_after(limit):
            try:
                self._sock.shutdown(socket.SHUT_WR)
                while await self._sock.recv(READ_SIZE):
                    pass
            except OSError:
                return

    def close(self) -> None:
        self._sock.close()


def _origin(sock: trio.socket.SocketType) -> Ip | None:
    if sock.family == socket.AF_UNIX:
        return None
    try:
        return plain_ip(str(sock.getpeername()[0]))
    except OSError:  # gone already
        return IPv4Address(0)


@contextmanager
def _bounded(limit: float | None) -> Iterator[None]:
    """The one place where a deadline that passed and a socket error become ours."""
    try:
        with trio.fail_after(math.inf if limit is None else limit):
            yield
    except trio.TooSlowError:
        raise PeerStuck("no progress") from None
    except OSError as error:
        raise PeerGone(str(error)) from None
