"""Depots behind relays of the tests' own: as slow as is wanted, or stuck, and it is known what went through."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio

from tests.cache.stack import run_depot

_PIECE = 16 * 1024


class Relay:
    """A port in front of a depot. `rate` in bytes a second, both ways together; 0 lets nothing through."""

    def __init__(self, depot: Path) -> None:
        self.depot = depot
        self.rate = float("inf")
        self.stored = 0  # bytes towards the depot
        self.port = 0
        self._due = 0.0  # when what is on its way will have passed
        self._going = trio.Event()

    @property
    def address(self) -> str:
        return f"ibp://127.0.0.1:{self.port}"

    def stick(self) -> None:
        self.rate, self._going = 0.0, trio.Event()

    def go_on(self) -> None:
        self.rate = float("inf")
        self._going.set()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._relay, [listener])

    async def _relay(self, client: trio.SocketStream) -> None:
        with suppress(OSError):
            depot = await trio.open_unix_socket(str(self.depot / "depot.sock"))
            async with client, depot, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, depot, nursery.cancel_scope)
                nursery.start_soon(self._pump, depot, client, nursery.cancel_scope)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(_PIECE):
                await self._pass(len(data))
                if sink.socket.family == trio.socket.AF_UNIX:
                    self.stored += len(data)
                await sink.send_all(data)
        scope.cancel()

    async def _pass(self, length: int) -> None:
        while not self.rate:
            await self._going.wait()
        self._due = max(self._due, trio.current_time()) + length / self.rate
        await trio.sleep_until(self._due)


@asynccontextmanager
async def relayed_depots(directory: Path, count: int) -> AsyncIterator[list[Relay]]:
    """So many depots, each behind a relay."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        relays = [Relay(directory / f"depot{number}") for number in range(count)]
        for relay in relays:
            await stack.enter_async_context(run_depot(relay.depot))
            await nursery.start(relay.serve)
        yield relays
        nursery.cancel_scope.cancel()
