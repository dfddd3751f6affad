"""The connections to one depot that are kept for the next command."""

from collections.abc import Awaitable, Callable
from types import TracebackType
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

    def connection(self, *, fresh: bool = False) -> "_Lent":
        """A connection and whether it is new. It is kept only if the block ends between commands."""
        return _Lent(self, fresh)

    async def lend(self, fresh: bool) -> tuple[DepotStream, bool]:
        """For `connection`: the slot is the caller's, until it gives the stream back or discards it."""
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        try:
            if self._closed:
                raise DepotUnreachable("the client is closed")
            stream, is_new = await self._obtain(fresh)
        except BaseException:
            self._slots.release()
            raise
        self._busy.add(stream)
        return stream, is_new

    def take_back(self, stream: DepotStream, *, sound: bool) -> None:
        """For `connection`."""
        if sound:
            self._give_back(stream)
        else:
            self._discard(stream)
        self._slots.release()

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
        if stream not in self._busy or not (self._keep and stream.idle):  # who takes it next sees whether it is usable
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


class _Lent:
    """The `async with` of a connection. No generator: it is in every command."""

    __slots__ = ("_fresh", "_pool", "_stream")

    def __init__(self, pool: ConnectionPool, fresh: bool) -> None:
        self._pool, self._fresh = pool, fresh

    async def __aenter__(self) -> tuple[DepotStream, bool]:
        self._stream, is_new = await self._pool.lend(self._fresh)
        return self._stream, is_new

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.take_back(self._stream, sound=error is None)
