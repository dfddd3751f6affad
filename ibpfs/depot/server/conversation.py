"""One connection as those see it who answer commands: replies out in order, synced; data in and out.

Replies gather while more commands are in the buffer. They leave together, after one sync of everything that they
promise: so a client that pipelines pays for one sync per batch, and one that waits for one per command.
"""

from ibpfs.depot.server.commands import Desk
from ibpfs.depot.server.intake import Intake
from ibpfs.depot.server.peer import Peer, PeerStuck
from ibpfs.depot.server.shared import Shared
from ibpfs.depot.server.store import MOST_HELD
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.connection import Connection, Role

BATCH_BYTES = 256 * 1024  # of replies
BATCH_FILES = 256


class Conversation:
    """`place`: the HOST, PORT that capabilities allocated here name; `idle_limit`: None waits for ever."""

    def __init__(
        self, peer: Peer, shared: Shared, place: tuple[str, int], *, idle_limit: float | None
    ) -> None:
        self.peer = peer
        self.shared = shared
        self.connection = Connection(Role.SERVER, shared.max_line)
        self.desk = Desk(shared.resources, place, Unsynced())
        self.intake = Intake(shared, self.flush)
        self._idle_limit = idle_limit
        self._out = bytearray()
        self._unwanted = False
        self._held = 0  # of the memory for what is in flight
        self.refused: int | None = None  # with which number, since it was last set to None

    # --- replies ------------------------------------------------------------------------------------------

    def reply(self, reply: ev.Reply, data: bytes = b"") -> None:
        """`data` go right behind it."""
        if isinstance(reply, ev.Failed):
            self.refused = reply.code
        self._out += self.connection.send(reply)
        self._out += data

    async def flush(self) -> None:
        if self.desk.unsynced:
            unsynced, self.desk.unsynced = self.desk.unsynced, Unsynced()
            await self.shared.syncs.settle(unsynced)
        if self._out:
            out, self._out = self._out, bytearray()
            await self.peer.send(out, self.shared.progress_limit)

    async def flush_if_much(self) -> None:
        unsynced = self.desk.unsynced
        if len(self._out) > BATCH_BYTES or len(unsynced) > BATCH_FILES or len(unsynced.deleted) >= MOST_HELD:
            await self.flush()

    async def announce(self, reply: ev.Reply, limit: float) -> None:
        """A reply behind which the caller sends data itself."""
        await self.flush()
        await self.peer.send(self.connection.send(reply), limit, more=True)

    async def hand_over(self, reply: ev.Reply, descriptor: int) -> None:
        """A reply with which a descriptor goes."""
        await self.flush()
        await self.peer.send_with(self.connection.send(reply), descriptor, self.shared.progress_limit)

    # --- what comes in ------------------------------------------------------------------------------------

    async def next_event(self) -> ev.Event | None:
        """None when the peer says nothing for too long."""
        while (event := self.connection.next_event()) is ev.NEED_DATA:
            await self.flush()
            if not await self._receive():
                return None
        return event

    async def _receive(self) -> bool:
        self._hold(self.connection.buffered)
        waits = not (self.connection.mid_line or self.connection.outstanding)
        try:
            data = await (self._receive_next() if waits else self.peer.receive(self.shared.progress_limit))
        except PeerStuck:
            self._count_end("idle" if waits else "slow")
            return False
        if self._unwanted:
            self._count_end("full")
            return False
        if data:
            self.connection.receive_data(data)
        else:
            self.connection.receive_eof()
        return self._hold(self.connection.buffered)

    async def _receive_next(self) -> bytes:
        """Between two commands."""
        self.peer.pace.begin()
        if self.peer.local:
            return await self.peer.receive(self._idle_limit)
        self.shared.door.rests(self)
        try:
            return await self.peer.receive(self._idle_limit)
        finally:
            self.shared.door.rises(self)
            self.peer.pace.begin()

    def dismiss(self) -> None:
        """While it waits for the next command."""
        self._unwanted = True
        self.peer.hang_up()

    def _hold(self, count: int) -> bool:
        fits = self.peer.in_flight.change(self._held, count)
        self._held = count
        if not fits:
            self._count_end("memory")
            self.connection.forget()
            self._hold(0)
        return fits

    def _count_end(self, reason: str) -> None:
        self.shared.counters.dismissed[reason] += 1

    def end(self) -> None:
        self.desk.unsynced.close()
        self._hold(0)

    async def next_piece(self, limit: float) -> memoryview:
        """Of the data behind a line; to be used before anything is waited for."""
        if buffered := self.connection.take_raw(len(self.buffer)):
            self._hold(self.connection.buffered)
            return memoryview(buffered)
        room = self.buffer[: self.connection.raw_remaining]
        received = self.peer.receive_now(room)
        if not received:
            await self.flush()
            received = await self.peer.receive_into(room, limit)
        self.connection.skip_raw(received)
        return room[:received]

    @property
    def buffer(self) -> memoryview:
        """Of all connections: what is in it is used before anything is waited for."""
        return self.shared.buffer

    # --- deadlines ----------------------------------------------------------------------------------------

    def limit(self, request: ev.Command) -> float:
        """Seconds without progress."""
        return min(request.timeout, self.shared.longest_timeout) if request.timeout else self.shared.progress_limit

    def patience(self, request: ev.Command) -> float:
        """Seconds to wait at a queue; 0 = not at all."""
        return min(request.timeout, self.shared.longest_timeout)
