"""The client against a real `ibpfs-depot` process, over TCP and over its Unix socket."""

import errno
import os
import random
import signal
import socket
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilityKind, Key
from ibpfs.depot.client import PERMANENT, DepotClient, ShortLoad
from ibpfs.depot.later import Filed, FilePart, Later
from ibpfs.depot.stream import DepotStream
from ibpfs.depot.wire import (
    AllocationKind,
    CapabilityNotFound,
    DepotError,
    DepotUnreachable,
    ErrorCode,
    LeaseTooLong,
    NoRoom,
    NotOffered,
    OutOfSockets,
    PermissionDenied,
    Reliability,
)
from ibpfs.depot.wire.connection import Connection, Role
from ibpfs.depot.wire.events import Open, Opened, Probe, Store, Stored
from ibpfs.errors import DataError
from ibpfs.memory import Sendable, sendable

PROGRAM = Path(sysconfig.get_path("scripts")) / "ibpfs-depot"
MIB = 1 << 20


@dataclass
class RunningDepot:
    directory: Path
    options: tuple[str, ...]
    process: subprocess.Popen[str] | None = None
    tcp: str = ""

    @property
    def unix(self) -> str:
        return f"unix:{self.directory}/depot.sock"

    def start(self) -> None:
        store = self.directory / "store"
        command = [PROGRAM, "--store", store, "--listen", "127.0.0.1:0", "--unix", self.directory / "depot.sock"]
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("ibpfs-depot: ready"), (ready, (self.directory / "log").read_text())
        self.tcp = (store / "address").read_text().strip()

    def stop(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        assert self.process.stdout is not None
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()
        self.process = None


@pytest.fixture
def depot(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningDepot]:
    options = getattr(request, "param", ("--capacity", "64M", "--max-lease", "1h", "--max-connections", "16"))
    running = RunningDepot(tmp_path, options)
    running.start()
    yield running
    running.stop()


@pytest.fixture(params=["tcp", "unix"])
async def client(depot: RunningDepot, request: pytest.FixtureRequest) -> AsyncIterator[DepotClient]:
    address = depot.tcp if request.param == "tcp" else depot.unix
    async with DepotClient(Address.parse(address)) as client:
        yield client


async def test_the_life_of_an_allocation(client: DepotClient) -> None:
    caps = await client.allocate(MIB, 600)
    read, write, manage = (cap.wire_key for cap in (caps.read, caps.write, caps.manage))
    big = bytes(range(256)) * 2000
    assert await client.store(write, [b"head", memoryview(big)]) == 4 + len(big)
    assert await client.write(write, 0, [b"HEAD"]) == 4
    assert await client.load(read, 0, 4 + len(big)) == b"HEAD" + big
    assert await client.load(read, 100, 5) == (b"HEAD" + big)[100:105]
    status = await client.probe(manage)
    assert (status.size, status.max_size, status.reliability) == (4 + len(big), MIB, Reliability.STABLE)
    assert status.seconds_left is not None
    assert 590 < status.seconds_left <= 600
    await client.change(manage, duration=3000)
    left = (await client.probe(manage)).seconds_left
    assert left is not None
    assert left > 2900
    await client.truncate(manage, 4)
    assert await client.load(read, 0, 4) == b"HEAD"
    await client.incr(manage)
    await client.decr(manage)
    await client.decr(manage)
    with pytest.raises(CapabilityNotFound):
        await client.load(read, 0, 4)


@pytest.mark.parametrize(("awake", "asleep"), [(20, 0), (0, 20_000)], ids=["awake", "asleep"])
async def test_what_is_done_while_the_depot_works_and_the_reply_awaited(
    client: DepotClient, monkeypatch: pytest.MonkeyPatch, awake: float, asleep: int
) -> None:
    monkeypatch.setattr("ibpfs.depot.stream._LINGER", awake)
    monkeypatch.setattr("ibpfs.depot.stream._NAP", asleep)
    caps = await client.allocate(100, 600)
    turns: list[int] = []

    async def others() -> None:
        while True:
            turns.append(len(turns))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        while not turns:
            await trio.lowlevel.checkpoint()
        before = len(turns)
        assert await client.store(caps.write.wire_key, [b"bytes"], lambda: True) == 5
        assert len(turns) == before  # nobody else had a turn
        while len(turns) == before:  # a reply may be here already, and ours may be the first turn
            assert await client.store(caps.write.wire_key, [b" more"], lambda: False) == 5
        nursery.cancel_scope.cancel()
    assert await client.load(caps.read.wire_key, 0, 10) == b"bytes more"


async def test_data_that_are_made_when_the_depot_knows_of_them(client: DepotClient) -> None:
    caps = await client.allocate(100, 600)
    made: list[int] = []

    def make() -> list[bytes]:
        made.append(1)
        return [b"by", b"tes"]

    data = Later(5, make)
    assert await client.store(caps.write.wire_key, data, lambda: True) == 5
    assert await client.store(caps.write.wire_key, data) == 5
    assert await client.load(caps.read.wire_key, 0, 10) == b"bytesbytes"
    assert (made, len(data), data[1], data[:1]) == ([1], 2, b"tes", [b"by"])


async def test_data_that_cannot_be_made(client: DepotClient) -> None:
    caps = await client.allocate(100, 600)

    def make() -> list[bytes]:
        raise MemoryError

    with pytest.raises(MemoryError):
        await client.store(caps.write.wire_key, Later(5, make), lambda: True)
    assert await client.store(caps.write.wire_key, [b"other"]) == 5
    assert await client.load(caps.read.wire_key, 0, 5) == b"other"


async def test_a_line_goes_before_data_that_are_made_later() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = DepotStream(trio.socket.from_stdlib_socket(ours), Address.parse("unix:/nowhere"))
        heard: list[bytes] = []
        stream._was_at_once = True

        def make() -> list[bytes]:
            heard.append(theirs.recv(100))
            theirs.sendall(b"1 \n")
            return [b"data"]

        def meanwhile() -> bool:
            heard.append(theirs.recv(100))
            theirs.sendall(b"1 4 \n")
            return True

        assert await stream.transact(
            Store(Key("1#key", "1"), 4, version=0), Later(4, make), meanwhile=meanwhile
        ) == Stored(4)
        assert heard == [b"0 2 1#key 1 4 0\n", b"data"]
        stream.close()


async def test_data_that_come_long_after_their_line(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(100, 600)
        for last in (b"", b"es"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(depot.unix.removeprefix("unix:"))
                sock.sendall(Connection(Role.CLIENT).send(Store(caps.write.wire_key, 5, version=0)))
                assert sock.recv(100) == b"1 \n"
                sock.sendall(b"byt")
                await trio.sleep(0.05)
                sock.sendall(last)
                if last:
                    assert sock.recv(100) == b"1 5 \n"
        assert await client.load(caps.read.wire_key, 0, 5) == b"bytes"  # and not what was broken off


async def test_replies_that_are_owed_come_before_data_that_break_off(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(100, 600)
    probe = Connection(Role.CLIENT).send(Probe(caps.manage.wire_key, version=0))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(depot.unix.removeprefix("unix:"))
        sock.sendall(probe + Connection(Role.CLIENT).send(Store(caps.write.wire_key, 5, version=0)) + b"by")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100).startswith(b"1 1 0 0 100 ")


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_depot_that_acknowledges_what_it_has_not_read(at_once: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"1 \n1 4 \n")
        theirs.shutdown(socket.SHUT_RD)
        stream = DepotStream(trio.socket.from_stdlib_socket(ours), Address.parse("unix:/nowhere"))
        stream._was_at_once = at_once
        with pytest.raises(DepotUnreachable, match="has not read"):
            await stream.transact(Store(Key("1#key", "1"), 4, version=0), Later(4, lambda: [b"data"]))
        stream.close()


def filled(seed: int, length: int) -> tuple[memoryview, Sendable, bytes]:
    part = sendable(length)
    part[:] = random.Random(seed).randbytes(length)
    assert isinstance(part.obj, Sendable)
    return part, part.obj, bytes(part)


async def test_what_is_sent_without_a_copy(client: DepotClient) -> None:
    """Between other parts, and more of it than a socket takes at once."""
    caps = await client.allocate(32 * MIB, 600)
    expected = b""
    for seed, length in enumerate((4 * MIB, 300_000, 4 * MIB)):
        part, whole, data = filled(seed, length)
        parts = [b"abc", part[: MIB // 4], part[:0], part[MIB // 4 : -9], part[-9:].toreadonly(), b"defg"]
        pieces = Later(length + 7, partial(list, parts))
        assert await client.store(caps.write.wire_key, pieces) == length + 7
        expected += b"abc" + data + b"defg"
        assert whole.under_way == 0
        part[:] = bytes(length)  # as whoever gets this memory next
    assert await client.load(caps.read.wire_key, 0, len(expected)) == expected


async def test_where_a_socket_takes_no_pages_they_are_copied(
    depot: RunningDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "sendfile", refuse)
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(4 * MIB, 600)
        part, whole, data = filled(1, MIB)
        assert await client.store(caps.write.wire_key, [part]) == MIB
        assert await client.load(caps.read.wire_key, 0, MIB) == data
        assert whole.under_way == 0


@pytest.fixture
def lying(tmp_path: Path) -> Iterator[tuple[Filed, bytes]]:
    """Data of which most lies in a file, and all of them."""
    content = random.Random(9).randbytes(9 * MIB)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        number = file.fileno()
        parts = [b"abc", FilePart(number, 5, 4 * MIB), FilePart(number, 0, 1), b"", FilePart(number, 4 * MIB, 5 * MIB)]
        whole = [b"abc", content[5 : 5 + 4 * MIB], content[:1], content[4 * MIB :], b"def"]
        yield Filed([*parts, b"def"]), b"".join(whole)


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_lies_in_a_file_is_sent_from_there(
    client: DepotClient, lying: tuple[Filed, bytes], at_once: bool
) -> None:
    data, expected = lying
    caps = await client.allocate(32 * MIB, 600)
    if at_once:
        await client.store(caps.write.wire_key, Later(1, lambda: [b"x"]), lambda: True)
        expected = b"x" + expected
    assert await client.store(caps.write.wire_key, data) == data.length
    assert await client.load(caps.read.wire_key, 0, len(expected)) == expected
    assert b"".join(data) == expected[-data.length :]


@pytest.mark.parametrize("taken", [0, 100_000])
async def test_where_a_socket_takes_no_pages_a_file_is_read(
    depot: RunningDepot, lying: tuple[Filed, bytes], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after some of them."""
    sendfile, left = os.sendfile, [taken, 0]

    def refuse(out: int, source: int, offset: int, count: int) -> int:
        if not (most := left.pop(0) if left else 0):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return sendfile(out, source, offset, min(count, most))

    data, expected = lying
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(16 * MIB, 600)
        with monkeypatch.context() as patch:
            patch.setattr(os, "sendfile", refuse)
            assert await client.store(caps.write.wire_key, data) == len(expected)
        assert await client.load(caps.read.wire_key, 0, len(expected)) == expected


async def test_a_file_that_is_shorter_than_it_was(client: DepotClient, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(MIB))
    caps = await client.allocate(4 * MIB, 600)
    with (tmp_path / "short").open("rb") as file, pytest.raises(DataError, match="shorter"):
        await client.store(caps.write.wire_key, Filed([FilePart(file.fileno(), 1, MIB)]))
    assert (await client.probe(caps.manage.wire_key)).size == 0


async def test_a_file_that_cannot_be_read_is_not_the_depot_s_fault(
    client: DepotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    caps = await client.allocate(4 * MIB, 600)
    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", fail)
        patch.setattr(os, "pread", fail)
        with pytest.raises(DataError, match="cannot be read"):
            await client.store(caps.write.wire_key, Filed([FilePart(0, 0, MIB)]))
    assert await client.store(caps.write.wire_key, [b"data"]) == 4


async def test_pages_stay_as_they_are_where_the_depot_refuses_or_says_nothing(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(MIB, 600)
        part, whole, _ = filled(1, 2 * MIB)
        with pytest.raises(NoRoom):
            await client.store(caps.write.wire_key, [part])
        assert whole.under_way > 0
        assert depot.process is not None
        depot.process.send_signal(signal.SIGSTOP)
        try:
            part, whole, _ = filled(3, MIB)
            with trio.move_on_after(0.2) as scope:
                await client.store(caps.write.wire_key, [part])
        finally:
            depot.process.send_signal(signal.SIGCONT)
        assert scope.cancelled_caught
        assert whole.under_way > 0


@pytest.mark.parametrize("asks", [False, True])
async def test_nobody_sleeps_while_others_ask_something(asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the event loop, which would have answered them."""
    monkeypatch.setattr("ibpfs.depot.stream._LINGER", 0)
    monkeypatch.setattr("ibpfs.depot.stream._NAP", 200)
    ours, theirs = socket.socketpair()
    other, asking = socket.socketpair()
    with theirs, other, asking, monkeypatch.context() as patch:
        patch.setattr("ibpfs.depot.stream.LISTENED", {other.fileno()})
        if asks:
            asking.sendall(b"something")
        stream = DepotStream(trio.socket.from_stdlib_socket(ours), Address.parse("unix:/nowhere"))
        turns: list[float] = []

        async def answer() -> None:
            turns.append(trio.current_time())
            theirs.sendall(b"1 \n1 4 \n")

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            store = Store(Key("1#key", "1"), 4, version=0)
            stored = await stream.transact(store, [b"data"], meanwhile=lambda: True)
        assert stored == Stored(4)
        assert (turns[0] - began < 0.2) == asks
        stream.close()


async def test_refusals(client: DepotClient) -> None:
    with pytest.raises(NoRoom):
        await client.allocate(65 * MIB, 600)
    with pytest.raises(LeaseTooLong):
        await client.allocate(10, 7200)
    caps = await client.allocate(10, 600)
    with pytest.raises(NoRoom):
        await client.store(caps.write.wire_key, [bytes(MIB)])
    with pytest.raises(CapabilityNotFound):
        await client.store(caps.read.wire_key, [bytes(MIB)])
    with pytest.raises(ShortLoad):
        await client.load(caps.read.wire_key, 0, 1)
    with pytest.raises(CapabilityNotFound):
        await client.probe(Key("1#nosuchkey", "1"))
    with pytest.raises(LeaseTooLong):
        await client.change(caps.manage.wire_key, max_size=10, duration=7200)
    await client.incr(caps.manage.wire_key, CapabilityKind.WRITE)
    await client.decr(caps.manage.wire_key, CapabilityKind.WRITE)
    with pytest.raises(PermissionDenied):
        await client.store(caps.write.wire_key, [b"x"])
    status = await client.status()
    assert (status.total_bytes, status.max_lease) == (64 * MIB, 3600)


async def test_a_descriptor_to_read_an_allocation_with(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(MIB, 600)
        await client.store(caps.write.wire_key, [b"0123456789"])
        descriptor, begin = await client.open(caps.read.wire_key)
        assert os.pread(descriptor, 4, begin + 3) == b"3456"
        await client.store(caps.write.wire_key, [b"abc"])
        assert os.pread(descriptor, 99, begin + 8)[:5] == b"89abc"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"x", begin)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
        before = list(Path("/proc/self/fd").iterdir())
        for key in (caps.write.wire_key, caps.manage.wire_key, Key("1#nosuchkey", "1")):
            with pytest.raises(CapabilityNotFound):
                await client.open(key)
        assert list(Path("/proc/self/fd").iterdir()) == before
        assert await client.load(caps.read.wire_key, 0, 3) == b"012", "the connection goes on"


async def test_no_descriptor_of_a_queue_or_of_a_part_or_for_other_machines(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.unix)) as client, DepotClient(Address.parse(depot.tcp)) as remote:
        queue = await client.allocate(MIB, 600, kind=AllocationKind.FIFO)
        caps = await client.allocate(MIB, 600)
        alias = await client.alias(caps.manage.wire_key, 0, 100)
        for one in (queue, alias):
            with pytest.raises(DepotError) as refused:
                await client.open(one.read.wire_key)
            assert refused.value.code == ErrorCode.TYPE_NOT_SUPPORTED
        with pytest.raises(NotOffered):
            await remote.open(caps.read.wire_key)
        with pytest.raises(NotOffered):  # also to who asks
            await remote._call(Open(caps.read.wire_key), Opened)


async def test_many_at_once(client: DepotClient) -> None:
    caps = await client.allocate(MIB, 600)

    async def store_and_load(number: int) -> None:
        mine = await client.allocate(1000, 600)
        await client.store(mine.write.wire_key, [b"%1000d" % number])
        assert await client.load(mine.read.wire_key, 0, 1000) == b"%1000d" % number
        await client.store(caps.write.wire_key, [b"%10d" % number])

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(store_and_load, number)
    together = await client.load(caps.read.wire_key, 0, 500)
    assert sorted(map(int, together.decode().split())) == list(range(50))


@pytest.mark.parametrize("depot", [("--permanent",)], indirect=True)
async def test_permanent_leases(client: DepotClient) -> None:
    assert (await client.status()).max_lease is None
    caps = await client.allocate(10, None)
    assert (await client.probe(caps.manage.wire_key)).seconds_left is None
    await client.change(caps.manage.wire_key, duration=60)
    assert (await client.probe(caps.manage.wire_key)).seconds_left is not None
    await client.change(caps.manage.wire_key, duration=PERMANENT)
    await client.change(caps.manage.wire_key, max_size=20)
    status = await client.probe(caps.manage.wire_key)
    assert (status.seconds_left, status.max_size) == (None, 20)


async def test_a_killed_depot_is_unreachable_until_it_is_back(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.unix)) as client:
        caps = await client.allocate(10, 600)
        await client.store(caps.write.wire_key, [b"abc"])
        depot.stop(kill=True)
        with pytest.raises(DepotUnreachable):
            await client.load(caps.read.wire_key, 0, 3)
        depot.start()
        assert await client.load(caps.read.wire_key, 0, 3) == b"abc"


async def test_a_depot_that_ended_while_a_connection_was_kept(depot: RunningDepot) -> None:
    async with DepotClient(Address.parse(depot.tcp)) as client:
        caps = await client.allocate(10, 600)
        depot.stop()
        depot.start()
        assert await client.store(caps.write.wire_key, [b"abc"]) == 3


@pytest.mark.parametrize("depot", [("--max-connections", "1")], indirect=True)
async def test_a_crowded_depot(depot: RunningDepot) -> None:
    address = Address.parse(depot.tcp)
    async with DepotClient(address) as client:
        with trio.fail_after(10):
            while True:
                other = await trio.open_tcp_stream(address.host, address.port)
                await other.send_all(b"1 4 ")  # in the middle of a command, so that its place is not given away
                try:
                    await client.status()
                except OutOfSockets:
                    break
                await other.aclose()  # the depot looked at us before it read that
            await other.aclose()
            await client.status()
