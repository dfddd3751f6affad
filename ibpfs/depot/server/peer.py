"""The socket of one session, with every wait bounded, every byte counted. The only code of the server that reads or
writes one."""

import os
import socket
import ssl
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import TracebackType

import trio

from ibpfs.depot.server.access import Ip, plain_ip
from ibpfs.depot.server.counters import Traffic
from ibpfs.depot.server.pace import InFlight, Pace
from ibpfs.depot.tls import HANDSHAKE_LIMIT, RECORD, secured
from ibpfs.depot.tls_socket import TlsSocket

READ_SIZE = 64 * 1024
SENDFILE_SIZE = 1 << 20
SOCKET_BUFFER = 1 << 20
_SHORT = 64 * 1024
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class PeerGone(Exception):
    """Internal to the server: the peer closed or broke the connection."""


class PeerStuck(PeerGone):
    """It made no progress for too long."""


class PeerGreedy(PeerGone):
    """It takes what it asked for so slowly that too much of it waits in memory, with what waits for others."""


@dataclass(frozen=True, slots=True)
class Manners:
    """What is expected of all peers: `least` bytes a second, where they are waited for at all."""

    least: float = 0.0
    in_flight: InFlight = field(default_factory=lambda: InFlight(1 << 30))
    traffic: Traffic = field(default_factory=Traffic)


class Peer:
    """One socket. `limit` arguments are seconds without progress; None waits for ever. With `tls` the peer may
    begin with a TLS record, and is spoken to through TLS then."""

    def __init__(
        self, sock: trio.socket.SocketType, tls: ssl.SSLContext | None = None, manners: Manners | None = None
    ) -> None:
        self._sock: trio.socket.SocketType | TlsSocket = sock
        self._tls = tls
        manners = manners or Manners()
        self.pace = Pace(manners.least)
        self.in_flight = manners.in_flight
        self._traffic = manners.traffic
        self.local = sock.family == socket.AF_UNIX
        self.origin = origin_of(sock)  # None where the peer is a process of this machine
        if self.local:  # the default of 208 KiB halves the speed of loads
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def is_own_user(self) -> bool:
        """Whether it is a process of our user, here. A Unix socket that was passed on may be open to others."""
        if not self.local:
            return False
        assert isinstance(self._sock, trio.socket.SocketType)
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())

    async def receive(self, limit: float | None) -> bytes:
        """b"" at the end of the stream."""
        if self._tls is not None:
            await self._meet(self._tls, limit)
        with self._bounded(limit):
            data = await self._sock.recv(READ_SIZE)
        self._came(len(data))
        return data

    async def _meet(self, context: ssl.SSLContext, limit: float | None) -> None:
        sock = self._sock
        assert not isinstance(sock, TlsSocket)
        with self._bounded(limit):
            first = await sock.recv(1, socket.MSG_PEEK)
        self._tls = None
        if first == RECORD:
            self._sock = secure = TlsSocket(sock, context, server_side=True)
            self.pace.begin()
            try:
                with self._bounded(HANDSHAKE_LIMIT if limit is None else min(limit, HANDSHAKE_LIMIT)):
                    await secure.handshake()
            except PeerStuck:  # there is no way to tell it anything
                raise PeerGone("no TLS handshake in time") from None

    async def secure(self, name: str, limit: float) -> None:
        """To a depot: TLS with it from now on, whatever certificate it shows. Raises DepotUnreachable, OutOfSockets."""
        assert not isinstance(self._sock, TlsSocket)
        with self._bounded(limit):
            self._sock = await secured(self._sock, name, None)

    async def receive_into(self, buffer: memoryview, limit: float | None) -> int:
        """At least one byte. No other task runs between their arrival in `buffer` and the return."""
        if not isinstance(self._sock, trio.socket.SocketType):
            with self._bounded(limit):
                received = await self._sock.recv_into(buffer)
        else:
            received = await self._read_into(buffer, limit)
        if not received:
            raise PeerGone("closed in the middle of the data")
        self._came(received)
        return received

    def receive_now(self, buffer: memoryview) -> int:
        """What little has come meanwhile from our machine, without a turn of the event loop; 0: none, wait for it, and
        meet there that nothing comes any more, behind the replies that are owed."""
        if not self.local or len(buffer) > _SHORT or not isinstance(self._sock, trio.socket.SocketType):
            return 0
        try:
            received = os.readv(self._sock.fileno(), [buffer])
        except OSError:
            return 0
        if received:
            self._came(received)
        return received

    async def _read_into(self, buffer: memoryview, limit: float | None) -> int:
        fd = self._sock.fileno()
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return os.readv(fd, [buffer])
            except BlockingIOError:
                with self._bounded(limit):
                    await trio.lowlevel.wait_readable(fd)
            except OSError as error:
                raise PeerGone(str(error)) from None

    async def send(self, data: bytes | bytearray, limit: float | None, *, more: bool = False) -> None:
        """`more`: data follow at once, do not send a small segment for this."""
        flags = socket.MSG_MORE if more and not self.local else 0
        held = len(data)
        try:
            if not self.in_flight.change(0, held):
                raise PeerGreedy("too much waits to be sent")
            with memoryview(data) as rest:
                sent = 0 if more else self._send_now(rest)
                while sent < held:
                    with self._bounded(limit):
                        count = await self._sock.send(rest[sent:], flags)
                    self._went(count)
                    sent += count
        finally:
            self.in_flight.change(held, 0)

    def _send_now(self, data: memoryview) -> int:
        """Short replies without a turn of the event loop and a deadline: 2 us, not 9. 0: not so."""
        if len(data) > _SHORT or not isinstance(self._sock, trio.socket.SocketType):
            return 0
        try:
            count = os.write(self._sock.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PeerGone(str(error)) from None
        self._went(count)
        return count

    async def send_with(self, line: bytes, descriptor: int, limit: float) -> None:
        """A short reply and a copy of a descriptor, over a Unix socket."""
        assert self.local
        assert isinstance(self._sock, trio.socket.SocketType)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))
        with self._bounded(limit):
            sent = await self._sock.sendmsg([line], [rights])
        self._went(sent)
        await self.send(line[sent:], limit)

    async def send_file(self, fd: int, offset: int, length: int, limit: float | None) -> None:
        """From the page cache to the socket without passing through Python, but for TLS."""
        if not isinstance(self._sock, trio.socket.SocketType):
            await self._send_file_sealed(self._sock, fd, offset, length, limit)
            return
        end = offset + length
        while offset < end:
            sent = self._try_sendfile(fd, offset, min(SENDFILE_SIZE, end - offset))
            if sent is None:
                with self._bounded(limit):
                    await trio.lowlevel.wait_writable(self._sock.fileno())
                continue
            if sent == 0:
                raise PeerGone("the file is shorter than its header says")
            self._went(sent)
            offset += sent
            await trio.lowlevel.checkpoint()

    async def _send_file_sealed(
        self, sock: TlsSocket, fd: int, offset: int, length: int, limit: float | None
    ) -> None:
        end = offset + length
        while offset < end:
            with self._bounded(limit):
                sent = await sock.send_file(fd, offset, end - offset)
            if not sent:
                raise PeerGone("the file is shorter than its header says")
            self._went(sent)
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

    def hang_up(self) -> None:
        """Whoever waits for what the peer says next hears the end of it; it can still be told something."""
        with suppress(OSError):  # it is gone already
            self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._sock.close()

    def _came(self, count: int) -> None:
        self._traffic.received += count
        self.pace.moved(count)

    def _went(self, count: int) -> None:
        self._traffic.sent += count
        self.pace.moved(count)

    def _bounded(self, limit: float | None) -> "_Bounded":
        return _Bounded(self.pace, limit)


class _Bounded:
    """The one place where a deadline that passed and a socket error become ours. No generator: it is in every wait."""

    __slots__ = ("_began", "_pace", "_scope")

    def __init__(self, pace: Pace, limit: float | None) -> None:
        self._pace = pace
        self._began = trio.current_time()
        # Who waits for ever needs no scope: a tenth of the CPU time of a STORE from the own mount.
        self._scope = None if limit is None else trio.CancelScope(deadline=self._began + pace.patience(limit))

    def __enter__(self) -> None:
        if self._scope is not None:
            self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        scope = self._scope
        if scope is not None:
            scope.__exit__(kind, error, trace)
        self._pace.waited(trio.current_time() - self._began)
        if scope is not None and scope.cancelled_caught:
            raise PeerStuck("too slow") from None
        if isinstance(error, OSError):
            raise PeerGone(str(error)) from None


def origin_of(sock: trio.socket.SocketType) -> Ip | None:
    """None for a process of this machine, over the Unix socket."""
    if sock.family == socket.AF_UNIX:
        return None
    try:
        return plain_ip(str(sock.getpeername()[0]))
    except OSError:  # gone already
        return IPv4Address(0)
