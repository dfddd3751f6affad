"""One connection to a depot: a socket and the codec. The only socket code of the client side.

Socket errors, silence and foreign protocols become DepotUnreachable here and nowhere else.
"""

import errno
import os
import select
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import trio

from ibpfs.alertness import LISTENED, Alertness
from ibpfs.depot.address import Address
from ibpfs.depot.later import Buffer, Filed, FilePart, Later
from ibpfs.depot.tls import secured
from ibpfs.depot.tls_socket import TlsSocket
from ibpfs.depot.wire import (
    NEED_DATA,
    Connection,
    DepotRefused,
    DepotUnreachable,
    ErrorCode,
    NoRoom,
    OutOfSockets,
    RemoteProtocolError,
    Role,
)
from ibpfs.depot.wire import events as ev
from ibpfs.memory import Sendable

CONNECT_LIMIT: Final = 10.0
SILENCE_LIMIT: Final = 60.0
_PRECISION: Final = 0.1  # seconds of a limit of silence: to move it costs 1.5 us, and each command does so thrice
_SHORT: Final = 64 * 1024
_LINE_READ: Final = 4096  # small, so that little of a LOAD passes through the codec
_UNIX_BUFFER: Final = 4 << 20
_LONGEST_UNIX_PATH: Final = 107
_ROOM_FOR_ONE: Final = socket.CMSG_LEN(array("i").itemsize)  # descriptor
_NOT_HERE: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO)  # sendfile(2) to a socket of this machine
_MOST_PARTS: Final = 512  # of one sendmsg; IOV_MAX is 1024

#: Seconds for which the event loop stands still for a reply, where nobody else wants anything of it.
_LINGER: Final = 300e-6
_NAP: Final = 1  # milliseconds, asleep

#: Called when a command is on its way. Whether the event loop may wait for the reply.
Meanwhile: TypeAlias = Callable[[], bool]


class Unanswered(DepotUnreachable):
    """The depot closed the connection before it said anything about the command."""


class ShortLoad(NoRoom):
    """The allocation holds less than was asked for."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.WOULD_EXCEED_LIMIT, "the allocation holds fewer bytes than were asked for")


class _Closed(Exception):
    pass


class DepotStream:
    """Carries one command after another; unusable after any exception."""

    def __init__(
        self, sock: trio.socket.SocketType | TlsSocket, address: Address, *, silence_limit: float = SILENCE_LIMIT
    ) -> None:
        self._socket = sock
        self._address = address
        self._silence_limit = silence_limit
        self._codec = Connection(Role.CLIENT)
        self._scope = trio.CancelScope()
        self._heard = False
        self._may_be_short = False
        self._patience = 0.0
        self._descriptors: list[int] | None = None
        self._lent: list[Sendable] = []  # whose pages the depot may not have read yet
        self._was_at_once = False  # the last command, whose reply the event loop waited for
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._alertness, self._promptness = Alertness(), Alertness()

    @classmethod
    async def connect(
        cls, address: Address, *, pin: bytes | None = None, silence_limit: float = SILENCE_LIMIT
    ) -> Self:
        """Through TLS with a `pin`, or where the address says so."""
        with _Unreachable(address):
            with trio.move_on_after(CONNECT_LIMIT):
                plain = await _open(address)
                if address.path is not None or not (address.secure or pin is not None):
                    return cls(plain, address, silence_limit=silence_limit)
                return cls(await secured(plain, str(address), pin), address, silence_limit=silence_limit)
            raise TimeoutError(f"no connection within {CONNECT_LIMIT:.0f} s")

    @property
    def fingerprint(self) -> bytes | None:
        """Of the depot's certificate; None without TLS."""
        return self._socket.fingerprint if isinstance(self._socket, TlsSocket) else None

    @property
    def idle(self) -> bool:
        """Between commands."""
        return self._codec.idle

    @property
    def usable(self) -> bool:
        """`idle`, and the depot has neither closed nor said goodbye meanwhile."""
        if isinstance(self._socket, TlsSocket) and self._socket.has_news():
            return False
        return self._codec.idle and not self._poll.poll(0)

    def close(self) -> None:
        """Also from another task: what is under way then ends with DepotUnreachable."""
        self._socket.close()

    async def transact(
        self,
        command: ev.Command,
        data: Sequence[Buffer] = (),
        into: memoryview | None = None,
        *,
        wait_for_ready: bool = False,
        may_be_short: bool = False,
        patience: float = 0.0,
        meanwhile: Meanwhile | None = None,
        descriptors: list[int] | None = None,
    ) -> ev.Reply:
        """The last reply to `command`, `Failed` included. `data` goes right behind the line; what a LOAD
        brings goes into `into`, exactly filling it unless it `may_be_short`. `patience`: seconds that the depot
        was allowed to take, beside the limit of silence. `descriptors`: where one goes that comes with the reply."""
        self._descriptors = descriptors
        self._heard = False
        self._may_be_short = may_be_short
        self._patience = patience
        with _Unreachable(self._address):
            if trio.current_effective_deadline() <= trio.current_time() + self._silence_limit:
                # The caller waits no longer: a scope of our own were 12 us of each fsync.
                return await self._converse(command, data, into, wait_for_ready, meanwhile)
            with trio.CancelScope() as self._scope:
                self._progress()
                return await self._converse(command, data, into, wait_for_ready, meanwhile)
        raise DepotUnreachable(f"{self._address}: silent for {self._silence_limit:.0f} s")

    async def _converse(
        self, command: ev.Command, data: Sequence[Buffer], into: memoryview | None, wait_for_ready: bool,
        meanwhile: Meanwhile | None,
    ) -> ev.Reply:  # fmt: skip
        try:
            return await self._transact(command, data, into, wait_for_ready, meanwhile)
        except (_Closed, ConnectionResetError, BrokenPipeError) as lost:
            if self._heard:
                raise ConnectionResetError("the depot closed the connection inside an answer") from lost
            raise Unanswered(f"{self._address}: the depot closed the connection") from lost

    async def transact_all(self, commands: Sequence[ev.Command], replies: "list[ev.Reply]") -> None:
        """Commands without data, sent before the first is answered. `replies` grows by one for each, as far as
        they come: of Unanswered, and OutOfSockets, the rest is meant."""
        with _Unreachable(self._address), trio.CancelScope() as self._scope:
            self._heard, self._patience, self._descriptors = False, 0.0, None
            self._progress()
            try:
                with suppress(ConnectionResetError, BrokenPipeError):
                    await self._send([b"".join(map(self._codec.send, commands))])
                for _ in commands:
                    self._heard = False
                    replies.append(await self._reply())
                return
            except (_Closed, ConnectionResetError, BrokenPipeError) as lost:
                raise Unanswered(f"{self._address}: the depot closed the connection") from lost
        raise DepotUnreachable(f"{self._address}: silent for {self._silence_limit:.0f} s")

    async def _transact(
        self, command: ev.Command, data: Sequence[Buffer], into: memoryview | None, wait_for_ready: bool,
        meanwhile: Meanwhile | None,
    ) -> ev.Reply:  # fmt: skip
        line = self._codec.send(command)
        reply: ev.Reply | None = None
        is_sent = False
        # A depot that refuses stops reading; its reason is there to be read even if sending fails.
        with suppress(ConnectionResetError, BrokenPipeError):
            if wait_for_ready and data:
                await self._send([line])
                reply = await self._reply()
                if not isinstance(reply, ev.Ready):
                    return reply
                await self._send(data)
            elif isinstance(data, Filed) and self._takes_pages:
                await self._send([line])
                await self._send_filed(data)
            elif self._was_at_once and isinstance(data, Later) and self._address.path is not None:
                # By it a depot of this machine wakes, and gets ready: 100 us. In the event loop its Ready costs more.
                await self._send([line])
                await self._send(data)
            else:
                await self._send([line, *data])
            is_sent = True
        if meanwhile is not None:
            reply = self._reply_soon() if meanwhile() else None
            self._was_at_once = reply is not None
        if reply is None:
            reply = await self._reply()
        if isinstance(reply, ev.Ready):
            reply = await self._reply()
        if not isinstance(reply, ev.Failed):
            if not is_sent:
                raise RemoteProtocolError("it acknowledges what it has not read")
            self._has_read()
        if isinstance(reply, ev.Loading) or self._codec.raw_remaining:
            await self._load(self._codec.raw_remaining, into)
        return reply

    async def _reply(self) -> ev.Reply:
        while (reply := self._next_reply()) is None:
            if self._descriptors is None:
                received = await self._socket.recv(_LINE_READ)
            else:
                received = await self._receive_with(self._descriptors)
            self._take(received)
        return reply

    def _reply_soon(self) -> ev.Reply | None:
        """The last one, if it comes soon."""
        while (reply := self._next_reply()) is None or isinstance(reply, ev.Ready):
            if reply is None:
                if not self._is_answered_soon():
                    return None
                self._take(os.read(self._socket.fileno(), _LINE_READ))
        return reply

    def _next_reply(self) -> ev.Reply | None:
        """None: more has to come."""
        event = self._codec.next_event()
        if event is NEED_DATA:
            return None
        if isinstance(event, ev.ClosedByPeer):
            raise _Closed
        if isinstance(event, ev.Goodbye):
            if self._heard:
                raise _Closed
            raise OutOfSockets(event.backoff)
        assert isinstance(event, ev.Reply)
        self._heard = True
        return event

    def _take(self, received: bytes) -> None:
        self._progress()
        if received:
            self._codec.receive_data(received)
        else:
            self._codec.receive_eof()

    def _is_answered_soon(self) -> bool:
        """Wait for the reply, awake and then asleep, without the turns of the event loop that it takes to hand a wait
        over: 250 us of the CPU time of each fsync whose reply comes later than that."""
        if not isinstance(self._socket, trio.socket.SocketType):
            return False
        if self._alertness.is_worth_it():
            end = time.perf_counter() + _LINGER
            while time.perf_counter() < end:
                if self._poll.poll(0):
                    self._alertness.paid()
                    return True
            self._alertness.was_in_vain()
        return self._promptness.is_worth_it() and self._nap()

    def _nap(self) -> bool:
        """Asleep, until it has come, or others want something of the event loop."""
        for other in LISTENED:
            self._poll.register(other, select.POLLIN)
        ready = [descriptor for descriptor, _ in self._poll.poll(_NAP)]
        for other in LISTENED:
            self._poll.unregister(other)
        if self._socket.fileno() in ready:
            self._promptness.paid()
            return True
        if not ready:
            self._promptness.was_in_vain()
        return False

    async def _receive_with(self, descriptors: list[int]) -> bytes:
        assert isinstance(self._socket, trio.socket.SocketType)
        received, ancillary, _, _ = await self._socket.recvmsg(_LINE_READ, _ROOM_FOR_ONE, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += array("i", data)
        return received

    @property
    def _takes_pages(self) -> bool:
        return self._address.path is not None and isinstance(self._socket, trio.socket.SocketType)

    async def _send(self, parts: Sequence[Buffer]) -> None:
        takes_pages = self._takes_pages
        waiting: list[memoryview] = []
        for part in parts:
            view = memoryview(part).cast("B")
            if takes_pages and view and not view.readonly and isinstance(view.obj, Sendable):
                await self._send_copies(waiting)
                waiting = []
                await self._send_pages(view, view.obj)
            elif view:
                waiting.append(view)
        await self._send_copies(waiting)

    async def _send_copies(self, waiting: list[memoryview]) -> None:
        first = 0
        while first < len(waiting):
            parts = waiting[first : first + _MOST_PARTS]
            sent = self._send_now(parts) or await self._socket.sendmsg(parts)
            self._progress()
            while first < len(waiting) and sent >= len(waiting[first]):
                sent -= len(waiting[first])
                first += 1
            if sent:
                waiting[first] = waiting[first][sent:]

    async def _send_pages(self, part: memoryview, whole: Sendable) -> None:
        """Without a copy: of 1,600 us of the mount's CPU time for each MiB of a stream, 160."""
        whole.under_way += 1
        self._lent.append(whole)
        start = whole.offset(part)
        sent = await self._send_file(whole.descriptor, start, len(part))
        await self._send_copies([part[sent:]] if sent < len(part) else [])

    async def _send_filed(self, data: Filed) -> None:
        for part in data.parts:
            if not isinstance(part, FilePart):
                await self._send_copies([memoryview(part)])
            elif (sent := await self._send_file(part.descriptor, part.offset, part.length)) < part.length:
                await self._send_copies([memoryview(part.read(sent))])

    async def _send_file(self, descriptor: int, offset: int, length: int) -> int:
        """How many bytes were sent without a copy: all, or those before which that cannot be done here."""
        assert isinstance(self._socket, trio.socket.SocketType)
        at, end = offset, offset + length
        while at < end:
            await trio.lowlevel.checkpoint()
            try:
                sent = os.sendfile(self._socket.fileno(), descriptor, at, end - at)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                continue
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                break  # as where it cannot be read, which who reads it finds out
            if not sent:  # it ends here
                break
            at += sent
            self._progress()
        return at - offset

    def _has_read(self) -> None:
        """The depot has all that was sent."""
        for whole in self._lent:
            whole.under_way -= 1
        self._lent.clear()

    def _send_now(self, parts: Sequence[memoryview]) -> int:
        """A short command without a turn of the event loop, which comes before its reply: 2 us, not 6. 0: not so."""
        if not isinstance(self._socket, trio.socket.SocketType) or sum(map(len, parts)) > _SHORT:
            return 0
        try:
            return os.writev(self._socket.fileno(), parts)
        except BlockingIOError:
            return 0

    async def _load(self, length: int, into: memoryview | None) -> None:
        if into is None or length > len(into):
            raise RemoteProtocolError("more bytes than were asked for")
        if length < len(into) and not self._may_be_short:
            raise ShortLoad
        into = into[:length]
        buffered = self._codec.take_raw(length)
        into[: len(buffered)] = buffered
        rest = into[len(buffered) :]
        while rest:
            received = await self._socket.recv_into(rest)
            self._progress()
            if not received:
                raise _Closed
            self._codec.skip_raw(received)
            rest = rest[received:]
        self._codec.next_event()  # EndOfData

    def _progress(self) -> None:
        deadline = trio.current_time() + self._silence_limit + self._patience
        if not self._scope.deadline - _PRECISION <= deadline <= self._scope.deadline + _PRECISION:
            self._scope.deadline = deadline


class _Unreachable:
    """Errors of sockets and of foreign protocols become ours. No generator: it is in every command."""

    __slots__ = ("_address",)

    def __init__(self, address: Address) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RemoteProtocolError):
            raise DepotUnreachable(f"{self._address}: what answers there does not speak IBP: {error}") from error
        if isinstance(error, trio.ClosedResourceError | trio.BrokenResourceError):
            raise DepotUnreachable(f"{self._address}: the connection was dropped") from error
        if isinstance(error, OSError):
            if _nobody_listens(error):
                raise DepotRefused(f"{self._address}: nobody listens there") from error
            raise DepotUnreachable(f"{self._address}: {error.strerror or error}") from error


def _nobody_listens(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):  # one for each address of a name
        return all(_nobody_listens(one) for one in error.exceptions)
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):  # by TCP or a Unix socket; without a socket
        return True
    return isinstance(error, OSError) and error.errno is None and _nobody_listens(error.__cause__)


async def _open(address: Address) -> trio.socket.SocketType:
    if address.path is None:
        # TCP buffers are left to the kernel's autotuning, which goes further than setsockopt may.
        return (await trio.open_tcp_stream(address.host, address.port)).socket
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _UNIX_BUFFER)
        await _connect_unix(sock, address.path)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_unix(sock: trio.socket.SocketType, path: str) -> None:
    if len(os.fsencode(path)) <= _LONGEST_UNIX_PATH:
        await sock.connect(path)
        return
    # The address of a socket is short; the directory's descriptor makes it so.
    directory = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await sock.connect(f"/proc/self/fd/{directory}/{Path(path).name}")
    finally:
        os.close(directory)
