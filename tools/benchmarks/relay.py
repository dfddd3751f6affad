"""A link between two processes that is long and narrow: a TCP relay that delays and limits both directions.

`python -m ibpfs_tools.benchmarks.relay --rtt MS --rate MBIT HOST:PORT...` prints a port for each target; they share one
link. SIGUSR1: it prints how many times a client has spoken and waited for an answer (see `Relay.turns`).
"""

import math
import signal
import sys
from collections.abc import Callable, Sequence

import click
import trio

#: Seconds for which the narrow place keeps bytes, as a router does; who sends more is held up.
_QUEUE = 0.05
_CHUNK = 16 * 1024
Place = tuple[str, int]


class Line:
    """One direction of the link, shared by all who use it. Knows no clock."""

    def __init__(self, delay: float, rate: float) -> None:
        """`delay` in seconds, `rate` in bytes per second."""
        self._delay = delay
        self._rate = rate
        self.free_at = -math.inf  # when the narrow place has let pass all that it was given

    def arrival(self, length: int, now: float) -> float:
        """When the last of `length` bytes, sent now, is at the other end."""
        self.free_at = max(self.free_at, now) + length / self._rate
        return self.free_at + self._delay


class Relay:
    """`turns`: how often a client began to speak after it had heard something, or for the first time.

    Round trips one after another are at most so many; those of several connections may pass at the same time: `most`
    is how many clients have waited at once. `bytes_back` came from the targets.
    """

    def __init__(self, rtt: float, rate: float) -> None:
        self._rtt = rtt
        self._there, self._back = Line(rtt / 2, rate), Line(rtt / 2, rate)
        self.turns = self.most = self._waiting = 0
        self.bytes_back = 0
        self.connections = 0

    async def serve(
        self, target: Place, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Carry connections to `target`, for ever; tells its port on loopback."""

        async def handle(near: trio.SocketStream) -> None:
            await self._connect(near, target)

        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(handle, [listener])

    async def _connect(self, near: trio.SocketStream, target: Place) -> None:
        self.connections += 1
        await trio.sleep(self._rtt)  # of TCP's handshake: near has got the answer to its own already
        try:
            far = await trio.open_tcp_stream(*target)
        except OSError:
            await near.aclose()
            return
        talk = _Talk(self)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(_carry, near, far, self._there, talk.said)
            await _carry(far, near, self._back, talk.heard)
        talk.heard(0)

    def asked(self) -> None:
        self.turns += 1
        self._waiting += 1
        self.most = max(self.most, self._waiting)

    def answered(self) -> None:
        self._waiting -= 1


class _Talk:
    """Who speaks on one connection."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._listening = True

    def said(self, _: int) -> None:
        if self._listening:
            self._relay.asked()
        self._listening = False

    def heard(self, length: int) -> None:
        self._relay.bytes_back += length
        if not self._listening:
            self._relay.answered()
        self._listening = True


async def _carry(source: trio.SocketStream, to: trio.SocketStream, line: Line, noted: Callable[[int], None]) -> None:
    # Bounded by the line: what is in it is what it holds, and _QUEUE.
    given, taken = trio.open_memory_channel[tuple[float, bytes]](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_deliver, taken, to)
        async with given:
            while chunk := await _received(source):
                noted(len(chunk))
                await given.send((line.arrival(len(chunk), trio.current_time()), chunk))
                await trio.sleep_until(line.free_at - _QUEUE)
            await given.send((line.arrival(0, trio.current_time()), b""))


async def _received(source: trio.SocketStream) -> bytes:
    try:
        return bytes(await source.receive_some(_CHUNK))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


async def _deliver(taken: trio.MemoryReceiveChannel[tuple[float, bytes]], to: trio.SocketStream) -> None:
    try:
        async for at, chunk in taken:
            await trio.sleep_until(at)
            if chunk:
                await to.send_all(chunk)
            else:
                await to.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        async for _ in taken:  # nobody hears it any more
            pass


async def run(relay: Relay, targets: Sequence[Place]) -> None:
    async with trio.open_nursery() as nursery:
        ports = [await nursery.start(relay.serve, target) for target in targets]
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            print(*ports, flush=True)
            async for _ in signals:
                print(relay.turns, flush=True)


def place(text: str) -> Place:
    host, _, port = text.rpartition(":")
    return host, int(port)


@click.command()
@click.option("--rtt", type=float, required=True)
@click.option("--rate", type=float, required=True)
@click.argument("targets", nargs=-1, required=True)
def main(rtt: float, rate: float, targets: Sequence[str]) -> None:
    """Milliseconds; Mbit per second."""
    trio.run(run, Relay(rtt / 1e3, rate * 1e6 / 8), [place(target) for target in targets])


if __name__ == "__main__":
    sys.exit(main())
