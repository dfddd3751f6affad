"""The relay: what passes, when, and how many times somebody waited for an answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from ibpfs_tools.benchmarks.relay import Line, Relay, place


def test_a_line_is_as_long_as_its_delay_and_as_narrow_as_its_rate() -> None:
    line = Line(delay=0.5, rate=100)
    assert line.arrival(0, now=1.0) == 1.5
    assert line.arrival(100, now=1.0) == 2.5
    assert line.arrival(50, now=1.0) == 3.0, "behind what was sent before"
    assert line.arrival(100, now=10.0) == 11.5, "what was not used is lost"


def test_places() -> None:
    assert place("127.0.0.1:6714") == ("127.0.0.1", 6714)


@asynccontextmanager
async def echo(relay: Relay) -> AsyncIterator[int]:
    """A server behind the relay that says everything again; the relay's port."""

    async def say_again(stream: trio.SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, say_again, 0, host="127.0.0.1"))
        target = listeners[0].socket.getsockname()[:2]
        yield await nursery.start(relay.serve, target)
        nursery.cancel_scope.cancel()


async def exactly(stream: trio.SocketStream, length: int) -> bytes:
    got = b""
    while len(got) < length:
        got += await stream.receive_some(length - len(got)) or pytest.fail("closed too early")
    return got


async def test_bytes_pass_whole_and_late() -> None:
    relay, data = Relay(rtt=0.1, rate=10e6), bytes(range(256)) * 1000
    async with echo(relay) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        began = trio.current_time()
        await stream.send_all(data)
        assert await exactly(stream, len(data)) == data
        assert trio.current_time() - began >= 0.2 + len(data) / 10e6, "the handshake, there and back, and the bytes"
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_turns_count_answers_that_were_waited_for() -> None:
    relay = Relay(rtt=0.0, rate=1e9)
    async with echo(relay) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for _ in range(3):
            await stream.send_all(b"question")
            await exactly(stream, 8)
        assert (relay.turns, relay.most, relay.connections, relay.bytes_back) == (3, 1, 1, 24)


async def test_a_target_that_is_not_there_closes_the_connection() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        target = unused.getsockname()
        async with trio.open_nursery() as nursery:
            port = await nursery.start(Relay(0.0, 1e6).serve, target)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                assert await stream.receive_some() == b""
            nursery.cancel_scope.cancel()
