"""Peers that behave as captured depots did, good and bad: a script says what one does on each connection it accepts."""

import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.client import DepotClient

K = Key("1#bIJHzedg9wSlWvpsYKXJPS2wPtS3bdIl", "3862277")
L = f"{K.key} {K.type_key}".encode()
CAPS = b"1 " + b"".join(b"ibp://127.0.0.1:16714/1#%b/3862277/%b " % (k, k) for k in (b"READ", b"WRITE", b"MANAGE"))
PROBED = b"1 1 0 204 1000 583 2 1 \n"
PROBE = b"0 9 %b 40 3 0 0 0 0\n" % L
INQUIRE = b"1 4 0 1 ibp 0\n"
INQUIRED = b"1 41 \nVS:1.4:1.0 CT:1000 UT:30 AT:970 DR:5 RE \n"


class Peer:
    """The depot's end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""

    async def expect(self, wanted: bytes) -> None:
        while len(self._received) < len(wanted):
            more = await self._stream.receive_some()
            assert more, f"closed after {self._received!r}, wanted {wanted!r}"
            self._received += more
        got, self._received = self._received[: len(wanted)], self._received[len(wanted) :]
        assert got == wanted

    async def say(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def hand_over(self, line: bytes, count: int) -> None:
        """Descriptors with a line."""
        with socket.socket() as something:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [something.fileno()] * count))
            await self._stream.socket.sendmsg([line], [rights])

    async def answer(self, *exchanged: bytes) -> None:
        for wanted, said in zip(exchanged[::2], exchanged[1::2], strict=True):
            await self.expect(wanted)
            await self.say(said)

    async def until_closed(self) -> None:
        assert await self._stream.receive_some() == b""


Script = Callable[[Peer], Awaitable[None]]
StartDepot = Callable[..., AbstractAsyncContextManager[DepotClient]]


def says(*exchanged: bytes) -> Script:
    """Answers, then waits for the client to close."""

    async def script(peer: Peer) -> None:
        await peer.answer(*exchanged)
        await peer.until_closed()

    return script


def hangs_up(*exchanged: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.answer(*exchanged)

    return script


@pytest.fixture
def depot(tmp_path: Path) -> StartDepot:
    """A client of a depot whose n-th connection runs the n-th script; no connection more, none less."""

    @asynccontextmanager
    async def start(*scripts: Script, **options: float) -> AsyncIterator[DepotClient]:
        path = tmp_path / "depot.sock"
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen(8)
        client = DepotClient(Address(path=str(path)), **options)  # type: ignore[arg-type]
        with listening:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(serve, listening, scripts))
                yield client
                await client.aclose()
        path.unlink()

    return start


async def serve(listening: trio.socket.SocketType, scripts: tuple[Script, ...]) -> None:
    async with trio.open_nursery() as nursery:
        for script in scripts:
            sock, _ = await listening.accept()
            nursery.start_soon(_run, script, trio.SocketStream(sock))


async def _run(script: Script, stream: trio.SocketStream) -> None:
    async with stream:
        await script(Peer(stream))
