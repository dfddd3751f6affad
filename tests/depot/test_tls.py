"""TLS on the port of IBP: the depot's own certificate, clients that pin it, and what is refused."""

import socket
import ssl
import stat
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability
from ibpfs.depot.client import DepotClient
from ibpfs.depot.pinning import fingerprint_of, fingerprints_of
from ibpfs.depot.server.certificate import BadCertificate, fingerprint, tls_context
from ibpfs.depot.server.depot import Depot, open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.tls import HANDSHAKE_LIMIT, NoTls, WrongCertificate, client_context
from ibpfs.depot.wire import DepotUnreachable

MIB = 1 << 20
Start = Callable[..., Any]


def secure(text: str) -> Address:
    return Address.parse(text.replace("ibp://", "ibps://"))


def port_of(depot: Any) -> int:
    return int(depot.address.rpartition(":")[2])


def test_the_certificate_is_made_once_and_private(tmp_path: Path) -> None:
    assert tls_context(tmp_path) is not None
    file = tmp_path / "certificate.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = fingerprint(tmp_path)
    assert tls_context(tmp_path) is not None
    assert fingerprint(tmp_path) == first


def test_a_damaged_certificate_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").write_text("nonsense")
    with pytest.raises(BadCertificate, match=r"certificate\.pem: holds no certificate"):
        tls_context(tmp_path)
    assert (tmp_path / "certificate.pem").read_text() == "nonsense"


def test_capabilities_keep_their_scheme() -> None:
    text = "ibps://h:1/k/2/READ"
    assert Capability.parse(text).render() == text
    assert Address.of(Capability.parse(text)) == Address("h", 1, secure=True)


@pytest.mark.parametrize(
    ("text", "local"),
    [("ibp://127.0.0.3:1", True), ("ibp://[::1]:1", True), ("ibp://localhost", True), ("unix:/s", True),
     ("ibp://10.0.0.1", False), ("ibp://depot.example.org", False), ("ibp://[fe80::1]", False)],
)  # fmt: skip
def test_what_stays_on_this_machine(text: str, local: bool) -> None:
    assert Address.parse(text).is_local is local


async def test_the_life_of_an_allocation_through_tls(start_depot: Start) -> None:
    depot = start_depot()
    pin = await fingerprint_of(Address.parse(depot.address))
    assert pin == fingerprint(depot.store)
    assert await fingerprints_of([depot.address], wanted=False) == {}
    assert await fingerprints_of([str(secure(depot.address))], wanted=False)
    async with DepotClient(Address.parse(depot.address), fingerprint=pin) as client:
        caps = await client.allocate(8 * MIB, 600)
        assert not caps.read.secure
        big = bytes(range(256)) * (12 * 1024)
        assert await client.store(caps.write.wire_key, [b"head", memoryview(big), b"t", b"ail"]) == len(big) + 8
        assert await client.load(caps.read.wire_key, 0, len(big) + 8) == b"head" + big + b"tail"
        assert await client.load(caps.read.wire_key, 3, 70_000) == (b"head" + big)[3:70_003]
        assert await client.write(caps.write.wire_key, 1, [b"EA"]) == 2
        assert await client.load(caps.read.wire_key, 0, 4) == b"hEAd"
    plain = depot.connect()
    assert plain.load(caps.read.key, 0, 5) == b"hEAd\0"  # the same port
    plain.close()


async def test_connections_are_kept(start_depot: Start) -> None:
    """Nothing that TLS sends by itself may be taken for the depot's goodbye."""
    depot = start_depot()
    async with DepotClient(secure(depot.address)) as client:
        for _ in range(3):
            await client.status()
        async with client._pool.connection() as (stream, is_new):
            assert not is_new
            assert stream.fingerprint == fingerprint(depot.store)
        caps = await client.allocate(10, 600)
        assert caps.read.secure
        assert caps.manage.render().startswith("ibps://127.0.0.1:")


async def test_another_certificate_is_refused(start_depot: Start) -> None:
    depot = start_depot()
    async with DepotClient(Address.parse(depot.address), fingerprint=bytes(32)) as client:
        with pytest.raises(WrongCertificate, match="its certificate has changed") as refusal:
            await client.status()
    assert "\n" not in str(refusal.value)


async def test_a_certificate_changed_behind_a_client(start_depot: Start) -> None:
    depot = start_depot()
    async with DepotClient(secure(depot.address)) as client:
        await client.status()
        depot.stop()
        (depot.store / "certificate.pem").unlink()
        again = start_depot("--listen", depot.address.removeprefix("ibp://"))
        assert again.address == depot.address
        with pytest.raises(WrongCertificate):
            await client.status()


async def test_a_depot_without_tls(start_depot: Start) -> None:
    depot = start_depot("--listen", "127.0.0.1:0", "--no-tls")
    assert not (depot.store / "certificate.pem").exists()
    assert await fingerprint_of(Address.parse(depot.address)) is None
    assert await fingerprints_of([depot.address]) == {}
    with pytest.raises(DepotUnreachable, match="nobody answers there who speaks TLS"):
        await fingerprints_of([str(secure(depot.address))])
    async with DepotClient(Address.parse(depot.address), fingerprint=bytes(32)) as client:
        with pytest.raises(NoTls, match="although it is known with TLS; refused"):
            await client.status()


async def test_who_does_not_answer_has_no_fingerprint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert await fingerprint_of(Address("127.0.0.1", port)) is None
    assert await fingerprint_of(Address(path="/nowhere")) is None


@asynccontextmanager
async def a_silent_one() -> AsyncIterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        yield Address("127.0.0.1", mute.getsockname()[1])


async def test_the_probe_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with a_silent_one() as address:
        began = trio.current_time()
        assert await fingerprint_of(address) is None
        assert trio.current_time() - began == pytest.approx(3.0)


async def test_two_certificates_at_first(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Two first connections at once, behind which there are different ones: one of them is the depot from then on."""
    contexts = []
    for name in "ab":
        (tmp_path / name).mkdir()
        context = tls_context(tmp_path / name)
        assert context is not None
        contexts.append(context)
    turns = iter([0, 1, 1])
    both, heard = trio.Event(), set[int]()

    async def answer(stream: trio.SocketStream) -> None:
        turn = next(turns)
        if turn:
            both.set()
        await both.wait()
        tls = trio.SSLStream(stream, contexts[turn], server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            async for _ in tls:
                heard.add(turn)
                await tls.send_all(b"1 41 \nVS:1.4:1.0 CT:1000 UT:30 AT:970 DR:5 RE \n")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answer, [listener])
    place = Address("127.0.0.1", listener.socket.getsockname()[1], secure=True)

    async def ask() -> None:
        with suppress(WrongCertificate):
            await client.status()

    async with DepotClient(place) as client, trio.open_nursery() as asking:
        asking.start_soon(ask)
        asking.start_soon(ask)
    assert len(heard) == 1
    nursery.cancel_scope.cancel()


async def test_connecting_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with a_silent_one() as address, DepotClient(secure(str(address))) as client:
        with pytest.raises(DepotUnreachable, match="no connection within 10 s"):
            await client.status()


def wrapped(depot: Any) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port_of(depot)), timeout=10))


def test_a_foreign_tls_client(start_depot: Start) -> None:
    """The standard library's, byte by byte."""
    depot = start_depot()
    sock = wrapped(depot)
    shown = sock.getpeercert(True)
    assert shown is not None
    assert sha256(shown).digest() == fingerprint(depot.store)
    client = depot.client_over(sock)
    read, write, _ = client.allocate()
    for byte in f"1 2 {write} 1 3 10\nabc".encode():
        client.send(bytes([byte]))
    assert (client.line(), client.line()) == (b"1 \n", b"1 3 \n")
    assert client.load(read, 0, 3) == b"abc"
    client.close()


def test_nonsense_for_a_handshake(start_depot: Start) -> None:
    depot = start_depot()
    broken = depot.connect()
    broken.send(b"\x16\x03\x01" + bytes(500))
    broken.sock.settimeout(10)
    broken.rest()
    broken.close()
    cut = depot.connect()
    cut.send(b"\x16")
    cut.close()
    other = depot.client_over(wrapped(depot))
    assert other.code("1 4 1 1 10") == 1
    other.close()
    assert depot.stop() == 0
    assert " ERROR " not in depot.errors.read_text()
    assert " WARNING " not in depot.errors.read_text()


@asynccontextmanager
async def served(store: Path, **options: Any) -> AsyncIterator[Depot]:
    """A depot in this very loop, so that its waits take no time."""
    settings = Settings(store=store, listen=(("127.0.0.1", 0),), capacity=1 << 20, **options)
    with open_depot(settings, trio.current_time) as depot:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(depot.serve)
            yield depot
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pause", [100.0, 2.0])
async def test_a_slow_handshake_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, pause: float
) -> None:
    """Silent, or a byte now and then; and nothing is waited for behind it."""
    async with served(tmp_path) as depot:
        place = Address.parse(depot.address)
        stream = await trio.open_tcp_stream(place.host, place.port)
        began = trio.current_time()
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(_dribble, stream, b"\x16\x03\x01\x02\x00" + bytes(100), pause)
            assert await stream.receive_some(1) == b""
            assert trio.current_time() - began == pytest.approx(HANDSHAKE_LIMIT, abs=0.1)
            nursery.cancel_scope.cancel()


async def _dribble(stream: trio.SocketStream, data: bytes, pause: float) -> None:
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(pause)


def test_old_versions_and_new_handshakes_are_refused(start_depot: Start, tmp_path: Path) -> None:
    for context in (tls_context(tmp_path), client_context()):
        assert context is not None
        assert context.options & ssl.OP_NO_RENEGOTIATION
    depot = start_depot()
    old = client_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port_of(depot)), timeout=10) as sock, pytest.raises(ssl.SSLError):
        old.wrap_socket(sock)
    recent = client_context()
    recent.maximum_version = ssl.TLSVersion.TLSv1_2
    client = depot.client_over(recent.wrap_socket(socket.create_connection(("127.0.0.1", port_of(depot)), timeout=10)))
    assert client.code("1 4 1 1 10") == 1
    client.close()


async def test_nothing_is_said_to_another_certificate(tmp_path: Path, nursery: trio.Nursery) -> None:
    context = tls_context(tmp_path)
    assert context is not None
    said: list[bytes] = []
    over = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        async with tls:
            said.append(bytes(await tls.receive_some()))
        over.set()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, listen, [listener])
    place = Address("127.0.0.1", listener.socket.getsockname()[1])
    async with DepotClient(place, fingerprint=bytes(32)) as client:
        with pytest.raises(WrongCertificate):
            await client.status()
    await over.wait()
    assert said == [b""]


async def test_a_full_depot_is_asked_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """It has no handshake to spare for those it sends away."""
    async with served(tmp_path, max_connections=1) as depot:
        place = Address.parse(depot.address)
        holder = await trio.open_tcp_stream(place.host, place.port)
        await holder.send_all(b"1 4 3 10\n")
        assert await holder.receive_some(100) == b"1 1 \n"
        async with DepotClient(place, fingerprint=fingerprint(tmp_path)) as client, trio.open_nursery() as nursery:
            nursery.start_soon(_close_after, holder, 0.2)
            assert (await client.status()).total_bytes == 1 << 20
        holder = await trio.open_tcp_stream(place.host, place.port)
        await holder.send_all(b"1 4 3 10\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close_after, holder, 0.2)
            assert await fingerprint_of(place) == fingerprint(tmp_path)


async def _close_after(stream: trio.SocketStream, seconds: float) -> None:
    await trio.sleep(seconds)
    await stream.aclose()


async def test_all_capabilities_of_an_ibps_depot_are_secure(start_depot: Start) -> None:
    depot = start_depot()
    async with DepotClient(secure(depot.address)) as client:
        caps = await client.allocate(100, 600)
        alias = await client.alias(caps.manage.wire_key)
        assert alias.read.secure
        renamed = await client.rename(caps.manage.wire_key)
        assert renamed.read.secure
        assert (await client.split(renamed.manage.wire_key, 10, 60)).write.secure
