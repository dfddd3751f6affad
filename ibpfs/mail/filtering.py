"""A mail server's filter: takes messages by SMTP, rewrites them, hands them on by SMTP, on aiosmtpd.

250 is said only after the next server has said it: until then the one before us has the message, and keeps it.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import IO, Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from ibpfs.mail.dots import END, Unstuffer, may_continue
from ibpfs.mail.handling import Deferred, Handled, Sharer, take_back
from ibpfs.mail.next_hop import AGAIN, UNSURE, NextHop, Reply
from ibpfs.mail.spooled import mapped, open_spool
from ibpfs.mail.structure import Buffer

_log = logging.getLogger(__name__)
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
#: In which messages that are being passed on when the filter is stopped come to an end.
_LAST_SECONDS = 60.0
_SPARE_THREADS = 4
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Limits:
    """What one who connects may have."""

    message: int = 2 << 30  # bytes
    connections: int = 20
    idle: float = 300.0  # seconds without a byte
    whole: float = 7200.0  # seconds for a message, its links and the next server
    allowed: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(frozen=True)
class Filter:
    """What is done with messages. `rewrite` blocks and raises Deferred; it runs in a thread."""

    next_hop: tuple[str, int]
    rewrite: Callable[[Buffer], Handled]
    sharer: Sharer
    limits: Limits = Limits()


class _Refused(Exception):
    """A reply instead of a message."""


class _Door(SMTP):
    """aiosmtpd's server, but for messages, which go to a file as they come, and for what follows them."""

    def __init__(self, one: Filter, doors: "_Doors") -> None:
        limits = one.limits
        super().__init__(
            _Hooks(one), data_size_limit=limits.message, timeout=limits.idle, ident="ibpfs mail-filter",
            hostname="localhost", enable_SMTPUTF8=True, loop=asyncio.get_running_loop(),
        )  # fmt: skip
        self._filter = one
        self._doors = doors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        refused = _unwelcome(str(peer[0]), len(self._doors.open) + 1, self._filter.limits)
        if refused:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.write(refused)
            transport.close()
            return
        self._doors.open.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._doors.open:
            self._doors.open.discard(self)
            assert self.session is not None
            next_hop_of(self.session, self._filter).close()
            super().connection_lost(error)

    def end(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def smtp_DATA(self, arg: str) -> None:
        if await self.check_helo_needed() or self.envelope is None or self.session is None:
            return
        if arg or not self.envelope.rcpt_tos:
            await self.push("501 Syntax: DATA" if arg else "503 Error: need RCPT command")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        self._reset_timeout(self._filter.limits.whole)  # from here on the limits are ours
        with self._doors.busy(self), open_spool() as file:
            try:
                async with asyncio.timeout(self._filter.limits.whole):
                    await self._receive(file)
                    reply = await self._pass_on(file, next_hop_of(self.session, self._filter))
            except _Refused as refused:
                reply = 0, str(refused).encode()
            except TimeoutError:
                await self.push("421 4.4.2 too slow")
                self.end()
                return
            except (asyncio.IncompleteReadError, ConnectionError):
                _log.info("who sent a message went away in the middle of it")
                self.end()
                return
        self.envelope = Envelope()
        self._reset_timeout()
        await self.push(_line(reply))

    async def _receive(self, file: IO[bytes]) -> None:
        """_Refused when there was too much, after all of it has come."""
        unstuffer, size = Unstuffer(), 0
        async for piece in self._wire():
            plain = unstuffer.feed(piece)
            size += len(plain)
            if size <= self._filter.limits.message:
                file.write(plain)
        file.write(unstuffer.finish())
        if size > self._filter.limits.message:
            raise _Refused("552 5.3.4 the message is too large")

    async def _wire(self) -> AsyncIterator[bytes]:
        """Yield the message as it comes, without the last dot; nothing behind it is read."""
        begin = b"\r\n" + await self._some(3)
        while may_continue(begin):
            begin += await self._some(1)
        if begin.endswith(END):
            yield begin[2 : -len(END) + 2] if begin != END else b""
            return
        yield begin[2:]
        while True:
            try:
                async with asyncio.timeout(self._filter.limits.idle):
                    piece = await self._reader.readuntil(END)
            except asyncio.LimitOverrunError as more:
                yield await self._reader.readexactly(more.consumed)
                continue
            yield piece[: -len(END) + 2]
            return

    async def _some(self, count: int) -> bytes:
        async with asyncio.timeout(self._filter.limits.idle):
            return await self._reader.readexactly(count)

    async def _pass_on(self, file: IO[bytes], hop: NextHop) -> Reply:
        return await asyncio.to_thread(_rewrite_and_send, self._filter, file, hop)


def _rewrite_and_send(one: Filter, file: IO[bytes], hop: NextHop) -> Reply:
    with mapped(file) as data:
        if _BARE.search(data):  # servers disagree about what that is; some saw two messages in it
            return 550, b"5.6.0 lines of a message end in CRLF"
        try:
            handled = one.rewrite(data)
        except Deferred as error:
            return 451, b"4.3.0 " + str(error).encode("ascii", "replace")
        if handled.trouble:
            _log.warning("a message was passed on as it was: %s", handled.trouble)
        reply = hop.data(handled.message)
        _log.info("%d bytes, links %s: %d", len(data), [one.id for one in handled.shares], reply[0])
        if reply[0] // 100 != 2 and reply != UNSURE:
            take_back(handled.shares, one.sharer)
        return reply


class _Hooks:
    """The answers to MAIL and RCPT are those of the next server."""

    def __init__(self, one: Filter) -> None:
        self._filter = one

    async def handle_MAIL(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        hop = next_hop_of(session, self._filter)
        wanted = tuple(one for one in options if not one.upper().startswith("SIZE="))
        code, text = await asyncio.to_thread(hop.mail, address, wanted)
        if code // 100 == 2:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return _line((code, text))

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        code, text = await asyncio.to_thread(next_hop_of(session, self._filter).rcpt, address)
        if code // 100 == 2:
            envelope.rcpt_tos.append(address)
        return _line((code, text))

    async def handle_RSET(self, server: Any, session: Session, envelope: Envelope) -> str:
        next_hop_of(session, self._filter).close()
        return "250 OK"

    async def handle_exception(self, error: Exception) -> str:
        _log.error("a message could not be passed on", exc_info=error)
        return _line(AGAIN)


def next_hop_of(session: Session, one: Filter) -> NextHop:
    """Return the session's own."""
    if not hasattr(session, "next_hop"):
        session.next_hop = NextHop(*one.next_hop)  # type: ignore[attr-defined]
    found: NextHop = session.next_hop  # type: ignore[attr-defined]
    return found


def _line(reply: Reply) -> str:
    code, text = reply
    said = " ".join(text.decode("ascii", "replace").split())
    return f"{code} {said}" if code else said


def _unwelcome(peer: str, count: int, limits: Limits) -> bytes:
    address = ip_address(peer.partition("%")[0])
    if not any(address in network for network in limits.allowed):
        return b"554 5.7.1 not for you\r\n"
    return b"421 4.3.2 too many connections\r\n" if count > limits.connections else b""


class _Doors:
    """Those who are connected, and those of them in the middle of a message."""

    def __init__(self) -> None:
        self.open: set[_Door] = set()
        self._busy: set[_Door] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def busy(self, door: _Door) -> Iterator[None]:
        self._busy.add(door)
        self._idle.clear()
        try:
            yield
        finally:
            self._busy.discard(door)
            if not self._busy:
                self._idle.set()

    async def close(self, seconds: float) -> None:
        """End all connections; those with a message have so much time, then the one before us keeps it."""
        for door in self.open - self._busy:
            door.end()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        await asyncio.sleep(0)  # the last reply goes out
        for door in list(self.open):
            door.end()


@asynccontextmanager
async def serving(one: Filter, host: str, port: int) -> AsyncIterator[int]:
    """Serve while in the block; gives the port."""
    doors = _Doors()
    # Each may wait in a thread for the depots, or for the next server; who only greets does not wait for those.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(one.limits.connections + _SPARE_THREADS))
    server = await asyncio.get_running_loop().create_server(lambda: _Door(one, doors), host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await doors.close(_LAST_SECONDS)
