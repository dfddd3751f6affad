"""Our depot with the manners of others, as far as a client has to live with them."""

import trio

from ibpfs.depot.server.depot import Depot
from ibpfs.depot.server.peer import Peer
from ibpfs.depot.server.session import Session
from ibpfs.depot.wire import events as ev

PLACE = ("127.0.0.1", 6714)
OLDEST = (ev.Allocate, ev.Store, ev.Load, ev.Probe, ev.Increment, ev.Decrement, ev.Change, ev.StatusInquire, ev.Send,
          ev.Deliver, ev.RemoteStore)  # fmt: skip


class OldSession(Session):
    """One command of version 0 per connection; hangs up on everything else, without a word."""

    async def _serve(self) -> None:
        event = await self._talk.next_event()
        if isinstance(event, OLDEST) and event.version == 0:
            await self._answer(event)
            await self._talk.flush()


class BriefSession(Session):
    """One command per connection, and says so."""

    async def _serve(self) -> None:
        event = await self._talk.next_event()
        if event is not None and not isinstance(event, ev.ClosedByPeer | ev.EndOfData):
            await self._answer(event)  # type: ignore[arg-type]
            await self._say_goodbye()


async def serve_old(depot: Depot, sock: trio.socket.SocketType) -> None:
    await _serve(OldSession, depot, sock)


async def serve_brief(depot: Depot, sock: trio.socket.SocketType) -> None:
    await _serve(BriefSession, depot, sock)


async def _serve(kind: type[Session], depot: Depot, sock: trio.socket.SocketType) -> None:
    peer = Peer(sock)
    try:
        await kind(peer, depot._shared, PLACE, idle_limit=None).serve()
    finally:
        peer.close()


async def serve_normal(depot: Depot, sock: trio.socket.SocketType) -> None:
    await depot.serve_socket(sock, PLACE)


class Crowded:
    """Sends three of its first connections away: no command can meet them as often as it is tried."""

    def __init__(self) -> None:
        self._count = 0

    async def __call__(self, depot: Depot, sock: trio.socket.SocketType) -> None:
        self._count += 1
        if self._count in (1, 3, 5):
            with sock:
                await sock.send(b"-66 0.01 \n")
        else:
            await depot.serve_socket(sock, PLACE)
