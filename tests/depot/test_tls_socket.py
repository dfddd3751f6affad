"""The socket behind TLS, both ends of it over a socket pair; and what peers may do that ours never do."""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ibpfs.depot.server.certificate import tls_context
from ibpfs.depot.tls import client_context
from ibpfs.depot.tls_socket import TlsSocket

MIB = 1 << 20


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    context = tls_context(tmp_path)
    assert context is not None
    return context


@contextmanager
def sockets() -> Iterator[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def shaken(
    ours: trio.socket.SocketType, theirs: trio.socket.SocketType, context: ssl.SSLContext
) -> tuple[TlsSocket, TlsSocket]:
    client = TlsSocket(ours, client_context(), server_side=False)
    server = TlsSocket(theirs, context, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake)
        nursery.start_soon(server.handshake)
    return client, server


async def send_all(sock: TlsSocket, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[await sock.sendmsg([rest[:5], rest[5:100_000], rest[100_000:]]) :]


async def receive_all(sock: TlsSocket, length: int, room: int) -> bytes:
    got, buffer = bytearray(), memoryview(bytearray(room))
    while len(got) < length:
        got += await sock.recv(7)
        if len(got) < length:
            got += buffer[: await sock.recv_into(buffer)]
    return bytes(got)


@pytest.mark.parametrize("room", [1000, 70_000, 2 * MIB])
async def test_both_directions_at_once(context: ssl.SSLContext, room: int) -> None:
    data = os.urandom(2 * MIB)
    heard: list[bytes] = []

    async def hear(sock: TlsSocket) -> None:
        heard.append(await receive_all(sock, len(data), room))

    with sockets() as pair:
        client, server = await shaken(*pair, context)
        async with trio.open_nursery() as nursery:
            for sock in (client, server):
                nursery.start_soon(send_all, sock, data)
                nursery.start_soon(hear, sock)
    assert heard == [data, data]


async def test_a_file_and_its_end(context: ssl.SSLContext, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    (tmp_path / "file").write_bytes(data)
    with sockets() as pair, (tmp_path / "file").open("rb") as file:
        client, server = await shaken(*pair, context)
        async with trio.open_nursery() as nursery:

            async def hand_out() -> None:
                assert await server.send_file(file.fileno(), 3, MIB) == len(data) - 3
                assert await server.send_file(file.fileno(), len(data), MIB) == 0

            nursery.start_soon(hand_out)
            assert await receive_all(client, len(data) - 3, MIB) == data[3:]


@pytest.mark.parametrize("politely", [True, False])
async def test_the_end_comes_after_the_data(context: ssl.SSLContext, politely: bool) -> None:
    with sockets() as pair:
        client, server = await shaken(*pair, context)
        await client.send(b"last words")
        if politely:
            with pytest.raises(ssl.SSLWantReadError):
                client._tls.unwrap()
            await pair[0].send(client._outgoing.read())
        client.shutdown(socket.SHUT_WR)
        assert await server.recv(4) == b"last"
        assert await server.recv(100) == b" words"
        assert await server.recv(100) == b""
        assert await server.recv_into(memoryview(bytearray(9))) == 0
        assert await server.send(b"farewell") == 8  # as without TLS
        assert await client.recv(100) == b"farewell"


async def test_a_cancelled_receive_loses_nothing(context: ssl.SSLContext) -> None:
    with sockets() as pair:
        client, server = await shaken(*pair, context)
        await client.send(b"abc" * 100)
        sealed = await pair[1].recv(MIB)
        for at in range(0, len(sealed), 100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.recv, 1000)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await pair[0].send(sealed[at : at + 100])
        assert await server.recv(1000) == b"abc" * 100


async def test_nothing_is_sent_behind_a_cancelled_send(context: ssl.SSLContext) -> None:
    with sockets() as pair:
        client, server = await shaken(*pair, context)
        await server.send(b"still heard")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, bytes(8 * MIB))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(ConnectionResetError):
            await client.send(b"more")
        assert await client.recv(100) == b"still heard"


async def test_damage_is_a_lost_connection(context: ssl.SSLContext) -> None:
    with sockets() as pair:
        client, server = await shaken(*pair, context)
        await client.send(b"good")
        await pair[0].send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert await server.recv(100) == b"good"
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await server.recv(100)
        assert server.has_news()


async def test_what_nobody_received_is_noticed(context: ssl.SSLContext) -> None:
    with sockets() as pair:
        client, server = await shaken(*pair, context)
        assert not client.has_news()
        await server.send(b"answer and more")
        assert await client.recv(6) == b"answer"
        assert client.has_news()


class Rekeying:
    """A client's writing half, by hand: the standard library cannot ask for new keys."""

    def __init__(self, secret: bytes) -> None:
        self._begin(secret)

    def _begin(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._key, self._iv = self._derived(b"key", 32), self._derived(b"iv", 12)

    def _derived(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(hashes.SHA384(), length, info).derive(self._secret)

    def record(self, data: bytes, kind: int = 23) -> bytes:
        header = b"\x17\x03\x03" + (len(data) + 17).to_bytes(2, "big")
        nonce = bytes(a ^ b for a, b in zip(self._iv, self._number.to_bytes(12, "big"), strict=True))
        self._number += 1
        return header + AESGCM(self._key).encrypt(nonce, data + bytes([kind]), header)

    def new_keys(self, *, of_both: bool = True) -> bytes:
        update = self.record(b"\x18\x00\x00\x01" + bytes([of_both]), 22)  # KeyUpdate
        self._begin(self._derived(b"traffic upd", 48))
        return update


async def rekeying(
    pair: tuple[trio.socket.SocketType, trio.socket.SocketType], context: ssl.SSLContext, log: Path
) -> tuple[TlsSocket, TlsSocket, Rekeying]:
    context.keylog_filename = str(log)
    client, server = await shaken(*pair, context)
    assert client._tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    secrets = dict(line.split()[::2] for line in log.read_text().splitlines() if not line.startswith("#"))
    return client, server, Rekeying(bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"]))


async def test_new_keys(context: ssl.SSLContext, tmp_path: Path) -> None:
    with sockets() as pair:
        client, server, peer = await rekeying(pair, context, tmp_path / "keys")
        for text in (b"one", b"two", b"three"):
            await pair[0].send(peer.new_keys() + peer.record(text))
            assert await server.recv(100) == text
            await server.send(text)
            assert await client.recv(100) == text


async def test_data_behind_many_new_keys(context: ssl.SSLContext, tmp_path: Path) -> None:
    with sockets() as pair:
        _, server, peer = await rekeying(pair, context, tmp_path / "keys")
        sealed = b"".join(peer.new_keys(of_both=False) for _ in range(3000)) + peer.record(b"text")
        assert await pair[0].send(sealed) == len(sealed)
        assert await server.recv_into(memoryview(bytearray(MIB))) == 4


async def test_new_keys_without_end(context: ssl.SSLContext, tmp_path: Path) -> None:
    """Nothing that a peer says may fill our memory."""
    with sockets() as pair:
        _, server, peer = await rekeying(pair, context, tmp_path / "keys")

        await pair[0].send(b"".join(peer.new_keys() for _ in range(1000)))
        with pytest.raises(ConnectionResetError):
            await server.recv(100)
