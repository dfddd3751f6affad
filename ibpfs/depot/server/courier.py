"""Connections that the depot itself opens: to other depots, and to the third party of DELIVER and REMOTE_STORE.

A name is looked up once, and the address that was found permitted is the one that is connected to.
"""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ibpfs.depot.capability import Capability
from ibpfs.depot.server.access import Ip
from ibpfs.depot.server.peer import Manners, Peer, PeerGone, PeerStuck
from ibpfs.depot.server.reach import Purpose, Reach, embedded_ipv4, plain_ip
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.connection import Connection, Role
from ibpfs.depot.wire.errors import DepotUnreachable, ErrorCode, OutOfSockets, RemoteProtocolError, error_for

CONNECT_LIMIT = 10.0


class OtherRefused(Exception):
    """Internal to the server: the other depot answered `code`."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


class Courier:
    """Raises DepotError: -44 for addresses that are not permitted, -13 where nobody answers, -46 for silence."""

    def __init__(self, reach: Reach | None = None) -> None:
        self.reach = reach or Reach()
        self.manners: Manners | None = None

    @asynccontextmanager
    async def connected(
        self, purpose: Purpose, host: str, port: int, origin: Ip | None, limit: float, *, secure: bool = False
    ) -> AsyncIterator[Peer]:
        """`secure`: through TLS or not at all."""
        peer = Peer(await self._connect(purpose, host, port, origin, min(limit, CONNECT_LIMIT)), manners=self.manners)
        try:
            if secure:
                await _secure(peer, host, min(limit, CONNECT_LIMIT))
            yield peer
        except PeerStuck:
            raise error_for(ErrorCode.SERVER_TIMEOUT) from None
        except (PeerGone, RemoteProtocolError):
            raise error_for(ErrorCode.CONNECTION) from None
        finally:
            peer.close()

    async def _connect(
        self, purpose: Purpose, host: str, port: int, origin: Ip | None, limit: float
    ) -> trio.socket.SocketType:
        with trio.move_on_after(limit):
            for address in await self._permitted(purpose, host, port, origin):
                if (sock := await _try(address, port)) is not None:
                    return sock
        raise error_for(ErrorCode.CONNECTION)

    async def _permitted(self, purpose: Purpose, host: str, port: int, origin: Ip | None) -> list[Ip]:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise error_for(ErrorCode.CONNECTION) from None
        addresses = list(dict.fromkeys(plain_ip(str(one[4][0])) for one in found))
        permitted = [ip for ip in addresses if self._permits(purpose, ip, port, origin)]
        if not permitted:
            raise error_for(ErrorCode.INV_IP_ADDR)
        return permitted

    def _permits(self, purpose: Purpose, ip: Ip, port: int, origin: Ip | None) -> bool:
        if port in self.reach.admin_ports and _is_own(ip):
            return False
        inner = embedded_ipv4(ip)
        return all(self.reach.permits(purpose, one, port, origin) for one in (ip, inner) if one is not None)


async def _secure(peer: Peer, name: str, limit: float) -> None:
    try:
        await peer.secure(name, limit)
    except OutOfSockets:
        raise OtherRefused(int(ErrorCode.OUT_OF_SOCKETS)) from None
    except DepotUnreachable:
        raise error_for(ErrorCode.CONNECTION) from None


def _is_own(ip: Ip) -> bool:
    """Whether it is an address of this machine: one can bind to no other."""
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(ip), 0))
        except OSError:
            return False
    return True


async def _try(ip: Ip, port: int) -> trio.socket.SocketType | None:
    sock = trio.socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        await sock.connect((str(ip), port))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENFILE):
            return None
        raise
    return sock


class OtherDepot:
    """One command to another depot, over `peer`. `limit`: seconds without progress."""

    def __init__(self, peer: Peer, limit: float) -> None:
        self.peer = peer
        self._limit = limit
        self._codec = Connection(Role.CLIENT)

    async def begin_store(self, target: Capability, offset: int, length: int, allowed: int) -> None:
        """Then `length` bytes go to the peer. Version 0 of STORE is understood by all. `allowed`: seconds, not 0."""
        if offset == ev.APPEND:
            command: ev.Command = ev.Store(target.wire_key, length, version=0, timeout=allowed)
        else:
            command = ev.Write(target.wire_key, offset, length, version=1, timeout=allowed)
        await self.peer.send(self._codec.send(command), self._limit)
        await self._reply(ev.Ready)

    async def finish_store(self) -> int:
        return (await self._reply(ev.Stored)).length

    async def begin_load(self, source: Capability, offset: int, length: int, allowed: int) -> int:
        """How many bytes come: see `pieces`."""
        command = ev.Load(source.wire_key, offset, length, version=0, timeout=allowed)
        await self.peer.send(self._codec.send(command), self._limit)
        return (await self._reply(ev.Loading)).length

    async def pieces(self, buffer: memoryview) -> AsyncIterator[memoryview]:
        """What a LOAD brings; each piece is valid until the next."""
        while self._codec.raw_remaining:
            if buffered := self._codec.take_raw(len(buffer)):
                yield memoryview(buffered)
                continue
            received = await self.peer.receive_into(buffer[: self._codec.raw_remaining], self._limit)
            self._codec.skip_raw(received)
            yield buffer[:received]

    async def _reply(self, expected: type[ev.Ready] | type[ev.Stored] | type[ev.Loading]) -> "ev.Stored | ev.Loading":
        while (event := self._codec.next_event()) is ev.NEED_DATA:
            data = await self.peer.receive(self._limit)
            if data:
                self._codec.receive_data(data)
            else:
                self._codec.receive_eof()
        if isinstance(event, ev.Failed):
            raise OtherRefused(event.code)
        if isinstance(event, ev.Goodbye):
            raise OtherRefused(int(ErrorCode.OUT_OF_SOCKETS))
        if not isinstance(event, expected):
            raise PeerGone("closed before it answered")
        return event  # type: ignore[return-value]
