"""One connection: commands in, replies out in order, data between socket and file.

Replies gather while more commands are in the buffer. They leave together, after one sync of everything that they
promise: so a client that pipelines pays for one sync per batch, and one that waits for one per command.
"""

import logging
import os
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import trio

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server.allocation import HEADER_BYTES, Allocation
from ibpfs.depot.server.commands import Desk
from ibpfs.depot.server.peer import Peer, PeerGone, PeerStuck
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.syncing import SyncThreads, Unsynced, start_writeback
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.connection import Connection, Role
from ibpfs.depot.wire.errors import DepotError, ErrorCode, error_for

log = logging.getLogger(__name__)

BATCH_BYTES = 256 * 1024  # of replies
BATCH_FILES = 256
INLINE_LOAD = 64 * 1024  # below it, copying into the batch of replies beats sendfile's extra system calls
RECEIVE_BUFFER = 256 * 1024
WRITEBACK_EVERY = 2 << 20
LONGEST_LIMIT = 3600.0
LINGER = 2.0


@dataclass(slots=True)
class Shared:
    """What all sessions of a depot have in common. `progress_limit`: seconds, where a command names none."""

    store: AllocationStore
    syncs: SyncThreads
    progress_limit: float
    # One STORE at a time per allocation: each appends at the size that the one before it left.
    turns: "WeakValueDictionary[bytes, trio.Lock]" = field(default_factory=WeakValueDictionary)

    def turn(self, allocation: Allocation) -> trio.Lock:
        return self.turns.setdefault(allocation.id, trio.Lock())


class Session:
    """`place`: the HOST, PORT that capabilities allocated here name; `idle_limit`: None waits for ever."""

    def __init__(
        self, peer: Peer, shared: Shared, place: tuple[str, int], *, idle_limit: float | None
    ) -> None:
        self._peer = peer
        self._shared = shared
        self._store = shared.store
        self._idle_limit = idle_limit
        self._connection = Connection(Role.SERVER)
        self._desk = Desk(shared.store, place, Unsynced())
        self._out = bytearray()
        self._buffer: memoryview | None = None

    async def serve(self) -> None:
        """Until the peer closes, gets stuck, or does something after which it cannot be understood."""
        try:
            await self._serve()
        except PeerGone as gone:
            log.debug("connection lost: %s", gone)
        except OSError as error:  # of a sync, mostly: what may not be durable must not be acknowledged
            log.error("disk error, connection dropped: %s", error)
        finally:
            self._desk.unsynced.close()

    async def _serve(self) -> None:
        while not self._connection.must_close:
            event = self._connection.next_event()
            if event is ev.NEED_DATA:
                await self._flush()
                if not await self._receive():
                    break
            elif isinstance(event, ev.ClosedByPeer):
                return
            else:
                await self._answer(event)  # type: ignore[arg-type]
        await self._say_goodbye()

    async def _receive(self) -> bool:
        limit = self._shared.progress_limit if self._connection.mid_line else self._idle_limit
        try:
            data = await self._peer.receive(limit)
        except PeerStuck:
            return False
        if data:
            self._connection.receive_data(data)
        else:
            self._connection.receive_eof()
        return True

    async def _say_goodbye(self) -> None:
        self._out += self._connection.send(ev.Goodbye())
        await self._flush()
        await self._peer.linger(LINGER)

    # --- answering ----------------------------------------------------------------------------------------

    async def _answer(self, request: ev.Request) -> None:
        try:
            if isinstance(request, ev.Store | ev.Write):
                await self._take_in(request)
            elif isinstance(request, ev.Load):
                await self._hand_out(request)
            else:
                self._reply(self._desk.answer(request))
        except DepotError as refusal:
            self._reply(ev.Failed(refusal.code))
        if len(self._out) > BATCH_BYTES or len(self._desk.unsynced.descriptors) > BATCH_FILES:
            await self._flush()

    def _reply(self, reply: ev.Reply) -> None:
        self._out += self._connection.send(reply)

    async def _flush(self) -> None:
        if self._desk.unsynced:
            unsynced, self._desk.unsynced = self._desk.unsynced, Unsynced()
            await self._shared.syncs.settle(unsynced)
        if self._out:
            out, self._out = self._out, bytearray()
            await self._peer.send(out, self._shared.progress_limit)

    def _limit(self, request: ev.Command) -> float:
        return min(request.timeout, LONGEST_LIMIT) if request.timeout else self._shared.progress_limit

    # --- LOAD ---------------------------------------------------------------------------------------------

    async def _hand_out(self, request: ev.Load) -> None:
        allocation = self._store.find(CapabilityKind.READ, request.key.key)
        if request.offset + request.length > allocation.size:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        fd = self._store.open(allocation)
        try:
            if request.length <= INLINE_LOAD:
                self._load_inline(fd, request)
            else:
                await self._load_directly(fd, request)
        finally:
            os.close(fd)

    def _load_inline(self, fd: int, request: ev.Load) -> None:
        data = self._store.read_data(fd, request.offset, request.length)
        self._reply(ev.Loading(request.length))
        self._out += data

    async def _load_directly(self, fd: int, request: ev.Load) -> None:
        start = HEADER_BYTES + request.offset
        os.posix_fadvise(fd, start, request.length, os.POSIX_FADV_WILLNEED)
        await self._flush()
        limit = self._limit(request)
        await self._peer.send(self._connection.send(ev.Loading(request.length)), limit, more=True)
        await self._peer.send_file(fd, start, request.length, limit)

    # --- STORE, WRITE -------------------------------------------------------------------------------------

    async def _take_in(self, request: ev.Store | ev.Write) -> None:
        allocation = self._writable(request)
        if isinstance(request, ev.Write) and request.offset + request.length <= allocation.size:
            await self._write_at(allocation, request.offset, request)
            return
        turn = self._shared.turn(allocation)
        await self._wait_for(turn, self._limit(request))
        try:
            self._writable(request)  # much can have happened while we waited
            offset = request.offset if isinstance(request, ev.Write) else allocation.size
            await self._write_at(allocation, offset, request)
        finally:
            turn.release()

    def _writable(self, request: ev.Store | ev.Write) -> Allocation:
        allocation = self._store.find(CapabilityKind.WRITE, request.key.key)
        if allocation.read_only:
            raise error_for(ErrorCode.CAP_NOT_WRITE)
        return allocation

    async def _wait_for(self, turn: trio.Lock, limit: float) -> None:
        try:
            turn.acquire_nowait()
        except trio.WouldBlock:
            await self._flush()
            with trio.move_on_after(limit):
                await turn.acquire()
                return
            raise error_for(ErrorCode.SERVER_TIMEOUT) from None

    async def _write_at(self, allocation: Allocation, offset: int, request: ev.Store | ev.Write) -> None:
        if offset + request.length > allocation.max_size:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        fd = self._store.open(allocation)
        try:
            self._reply(ev.Ready())
            await self._fill(allocation, fd, offset, request)
        except BaseException:
            os.close(fd)
            raise
        self._store.hand_over(allocation, fd, self._desk.unsynced)
        self._reply(ev.Stored(request.length))

    async def _fill(self, allocation: Allocation, fd: int, offset: int, request: ev.Store | ev.Write) -> None:
        end = offset + request.length if request.length else 0
        grows = end > allocation.size
        try:
            await self._copy_in(allocation, fd, offset, self._limit(request))
            if isinstance(request, ev.Store) and allocation.size != offset:
                raise error_for(ErrorCode.WOULD_DAMAGE_DATA)  # truncated while we appended
            self._store.keep_data(allocation, fd, end)
        except BaseException:
            if grows:  # only then is it our turn, and nobody else writes behind the size
                self._store.drop_data(allocation, fd)
            raise

    async def _copy_in(self, allocation: Allocation, fd: int, offset: int, limit: float) -> None:
        refusal: DepotError | None = None
        begun = offset
        while self._connection.raw_remaining:
            data = await self._next_piece(limit)
            if refusal is not None:
                continue  # the disk is full: what is under way must pass, or it would be read as commands
            try:
                self._store.write_data(fd, data, offset)
            except DepotError as error:
                refusal = error
            offset += len(data)
            if allocation.stable and offset - begun >= WRITEBACK_EVERY:
                start_writeback(fd, HEADER_BYTES + begun, offset - begun)
                begun = offset
        if refusal is not None:
            raise refusal

    async def _next_piece(self, limit: float) -> memoryview:
        if buffered := self._connection.take_raw(RECEIVE_BUFFER):
            return memoryview(buffered)
        await self._flush()
        if self._buffer is None:
            self._buffer = memoryview(bytearray(RECEIVE_BUFFER))
        room = self._buffer[: self._connection.raw_remaining]
        received = await self._peer.receive_into(room, limit)
        self._connection.skip_raw(received)
        return room[:received]
