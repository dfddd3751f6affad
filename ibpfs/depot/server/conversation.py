"""One connection as those see it who answer commands: replies out in order, synced; data in and out.

Replies gather while more commands are in the buffer. They leave together, after one sync of everything that they
promise: so a client that pipelines pays for one sync per batch, and one that waits for one per command.
"""

from ibpfs.depot.server.commands import Desk
from ibpfs.depot.server.intake import Intake
from ibpfs.depot.server.peer import Peer, PeerStuck
from ibpfs.depot.server.shared import Shared
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.connection import Connection, Role

BATCH_BYTES = 256 * 1024  # of replies
BATCH_FILES = 256
RECEIVE_BUFFER = 256 * 1024
LONGEST_LIMIT = 3600.0


class Conversation:
    """`place`: the HOST, PORT that capabilities allocated here name; `idle_limit`: None waits for ever."""

    def __init__(
        self, peer: Peer, shared: Shared, place: tuple[str, int], *, idle_limit: float | None
    ) -> None:
        self.peer = peer
        self.shared = shared
        self.connection = Connection(Role.SERVER)
        self.desk = Desk(shared.resources, place, Unsynced())
        self.intake = Intake(shared, self.flush)
        self._idle_limit = idle_limit
        self._out = bytearray()
        self._buffer: memoryview | None = None

    # --- replies ------------------------------------------------------------------------------------------

    def reply(self, reply: ev.Reply, data: bytes = b"") -> None:
        """`data` go right behind it."""
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
        if len(self._out) > BATCH_BYTES or len(self.desk.unsynced.descriptors) > BATCH_FILES:
            await self.flush()

    async def announce(self, reply: ev.Reply, limit: float) -> None:
        """A reply behind which the caller sends data itself."""
        await self.flush()
        await self.peer.send(self.connection.send(reply), limit, more=True)

    # --- what comes in ------------------------------------------------------------------------------------

    async def next_event(self) -> ev.Event | None:
        """None when the peer says nothing for too long."""
        while (event := self.connection.next_event()) is ev.NEED_DATA:
            await self.flush()
            if not await self._receive():
                return None
        return event

    async def _receive(self) -> bool:
        limit = self.shared.progress_limit if self.connection.mid_line else self._idle_limit
        try:
            data = await self.peer.receive(limit)
        except PeerStuck:
            return False
        if data:
            self.connection.receive_data(data)
        else:
            self.connection.receive_eof()
        return True

    async def next_piece(self, limit: float) -> memoryview:
        """Of the data behind a line; valid until the next call."""
        if buffered := self.connection.take_raw(RECEIVE_BUFFER):
            return memoryview(buffered)
        await self.flush()
        room = self.buffer[: self.connection.raw_remaining]
        received = await self.peer.receive_into(room, limit)
        self.connection.skip_raw(received)
        return room[:received]

    @property
    def buffer(self) -> memoryview:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(RECEIVE_BUFFER))
        return self._buffer

    # --- deadlines ----------------------------------------------------------------------------------------

    def limit(self, request: ev.Command) -> float:
        """Seconds without progress."""
        return min(request.timeout, LONGEST_LIMIT) if request.timeout else self.shared.progress_limit

    def patience(self, request: ev.Command) -> float:
        """Seconds to wait at a queue; 0 = not at all."""
        return min(request.timeout, LONGEST_LIMIT)

