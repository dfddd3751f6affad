"""The connections to one depot that are kept for the next command."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from ibpfs.depot.stream import DepotStream
from ibpfs.depot.wire import DepotUnreachable

_IDLE_LIMIT: Final = 50.0  # below the 60 s after which depots close by themselves


class ConnectionPool:
    """At most `max_connections` at once; who wants one more waits for one that comes back."""

    def __init__(self, connect: Callable[[], Awaitable[DepotStream]], max_connections: int = 8) -> None:
        self._keep = True
        self._connect = connect
        self._slots = trio.Semaphore(max_connections)
        self._idle: list[tuple[float, DepotStream]] = []  # when it came back; the latest last
        self._busy: set[DepotStream] = set()
        self._closed = False

    @asynccontextmanager
    async def connection(self, *, fresh: bool = False) -> AsyncIterator[tuple[DepotStream, bool]]:
        """A connection and whether it is new. It is kept only if the block ends between commands."""
        async with self._slots:
            if self._closed:
                raise DepotUnreachable("the client is closed")
            stream, is_new = await self._obtain(fresh)
            self._busy.add(stream)
            try:
                yield stream, is_new
            except BaseException:
                self._discard(stream)
                raise
            self._give_back(stream)

    def keep_connections(self, keep: bool) -> None:
        """Not for depots that take one command per connection."""
        self._keep = keep
        if not keep:
            self._close_idle()

    def drop(self) -> None:
        """Closes every connection, those in use too: their commands end with DepotUnreachable."""
        self._close_idle()
        for stream in list(self._busy):
            self._discard(stream)

    def close(self) -> None:
        self._closed = True
        self.drop()

    async def _obtain(self, fresh: bool) -> tuple[DepotStream, bool]:
        while self._idle and not fresh:
            _, stream = self._idle.pop()
            if stream.usable:
                return stream, False
            stream.close()
        return await self._connect(), True

    def _give_back(self, stream: DepotStream) -> None:
        if stream not in self._busy or not (self._keep and stream.usable):
            self._discard(stream)
            return
        self._busy.remove(stream)
        now = trio.current_time()
        self._idle.append((now, stream))
        while self._idle[0][0] < now - _IDLE_LIMIT:
            self._idle.pop(0)[1].close()

    def _close_idle(self) -> None:
        for _, stream in self._idle:
            stream.close()
        self._idle.clear()

    def _discard(self, stream: DepotStream) -> None:
        self._busy.discard(stream)
        stream.close()
