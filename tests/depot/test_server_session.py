"""Time, limits, broken peers and broken disks, seen from one connection of an in-process depot."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.depot.server import syncing
from ibpfs.depot.server.allocation import HEADER_BYTES
from ibpfs.depot.server.depot import SteadyClock, open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.wire.protocol import PERMANENT_SECONDS

InProcess = Callable[..., Any]


class TestPermanentLeases:
    @pytest.mark.parametrize(("version", "duration"), [(0, 0), (1, -1), (0, -1)])
    def test_granted(self, in_process: InProcess, version: int, duration: int) -> None:
        client = in_process(permanent=True, max_lease=None).connect()
        manage = client.allocate(duration=duration, version=version)[2]
        assert client.probe(manage)[4] == PERMANENT_SECONDS
        assert client.ask("0 4 1 ibp 5").split()[4] == b"-1"
        client.close()

    def test_given_and_taken_back(self, in_process: InProcess) -> None:
        depot = in_process(permanent=True, max_lease=None)
        client = depot.connect()
        manage = client.allocate(duration=60)[2]
        assert client.ask(f"0 9 {manage} 1 43 3 1000 0 2 10") == b"1 \n"
        assert client.probe(manage)[4] == PERMANENT_SECONDS
        assert client.ask(f"1 9 {manage} 1 43 3 1000 60 -1 10") == b"1 \n"
        assert client.probe(manage)[4] == 60
        client.close()


class TestEndedAllocations:
    def test_refuse_all_but_probe_and_change(self, in_process: InProcess) -> None:
        depot = in_process(grace=100)
        client = depot.connect()
        read, write, manage = client.allocate(duration=60)
        client.store(write, b"data")
        depot.clock.now += 60
        for line in (f"8 {read} 1 0 4 10", *(f"9 {manage} 1 {f} 10" for f in ("41 1", "42 1", "45 5"))):
            assert client.code(f"1 {line}") == -4
        assert client.probe(manage)[4] == 0
        assert client.ask(f"1 9 {manage} 1 43 3 1000 60 -1 10") == b"1 \n"
        assert client.load(read, 0, 4) == b"data"
        depot.clock.now += 60
        assert client.code(f"1 2 {write} 1 4 10") == -4
        assert client.is_sent_away()
        client.close()


class TestDescriptors:
    def test_are_for_our_own_user(self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        client = in_process().connect()
        read, write, _ = client.allocate()
        client.store(write, b"data")
        assert client.ask(f"1 1001 {read} 1 10") == b"1 %d \n" % HEADER_BYTES
        ours = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: ours + 1)
        assert client.code(f"1 1001 {read} 1 10") == -43
        assert client.load(read, 0, 4) == b"data"
        client.close()


class TestSyncs:
    @pytest.fixture
    def synced(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        synced: list[int] = []
        fdatasync = os.fdatasync
        syncfs = syncing._sync_file_systems
        monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(1), fdatasync(fd)))
        monkeypatch.setattr(syncing, "_sync_file_systems", lambda units: (synced.append(0), syncfs(units)))
        return synced

    def test_each_stable_store_alone_is_synced(self, in_process: InProcess, synced: list[int]) -> None:
        client = in_process().connect()
        _, write, _ = client.allocate()
        del synced[:]
        for n in range(100):
            client.store(write, b"x")
            assert len(synced) == n + 1
        client.close()

    def test_volatile_ones_are_not(self, in_process: InProcess, synced: list[int]) -> None:
        client = in_process().connect()
        reply = client.ask("1 1 1 1 1 600 1000 10").decode()
        client.store(reply.split()[2].split("/")[3], b"x")
        assert synced == []
        client.close()

    def test_a_pipelined_batch_shares_one(self, in_process: InProcess, synced: list[int]) -> None:
        client = in_process().connect()
        client.send("1 1 1 2 1 600 1000 10\n" * 200)
        replies = [client.line() for _ in range(200)]
        assert all(reply.startswith(b"1 ibp://") for reply in replies)
        assert len(synced) < 20
        client.close()

    def test_what_cannot_be_synced_is_not_acknowledged(
        self, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(_: int) -> None:
            raise OSError(5, "Input/output error")

        client = in_process().connect()
        _, write, _ = client.allocate()
        monkeypatch.setattr(os, "fdatasync", broken)
        client.send(f"1 2 {write} 1 4 10\ndata")
        assert client.line() == b""
        assert "disk error" in caplog.text
        client.close()


class TestPeersThatHang:
    def test_data_that_stop_coming(self, in_process: InProcess) -> None:
        depot = in_process()
        stuck, client = depot.connect(), depot.connect()
        read, write, manage = client.allocate()
        stuck.send(f"1 2 {write} 1 100 1\nsome")
        assert stuck.line() == b"1 \n"
        client.store(write, b"mine")  # after the other one's timeout of a second
        assert stuck.read(100) == b""
        assert client.load(read, 0, 4) == b"mine"
        assert client.probe(manage)[2] == 4
        stuck.close()
        client.close()

    def test_waiting_for_a_turn_has_an_end(self, in_process: InProcess) -> None:
        depot = in_process()
        stuck, client = depot.connect(), depot.connect()
        _, write, _ = client.allocate()
        stuck.send(f"1 2 {write} 1 100 60\nsome")
        assert stuck.line() == b"1 \n"
        started = time.monotonic()
        assert client.code(f"1 2 {write} 1 100 1") == -46
        assert time.monotonic() - started >= 1
        assert client.is_sent_away()
        stuck.close()
        client.close()

    def test_a_load_that_nobody_reads(self, in_process: InProcess) -> None:
        client = in_process(idle_timeout=0.5).connect()
        size = 30 << 20
        read, write, _ = client.allocate(size=size)
        client.store(write, bytes(size))
        client.send(f"1 8 {read} 1 0 {size} 1\n")
        assert client.line() == b"1 %d \n" % size
        time.sleep(2)  # the subject is what happens while nothing happens
        assert len(client.read(size)) < size
        client.close()


def test_deleted_in_the_middle_of_a_store(in_process: InProcess) -> None:
    depot = in_process()
    writer, client = depot.connect(), depot.connect()
    _, write, manage = client.allocate()
    writer.send(f"1 2 {write} 1 8 10\nhalf")
    assert writer.line() == b"1 \n"
    assert client.ask(f"1 9 {manage} 1 42 1 10") == b"1 \n"
    writer.send(b"rest")
    assert writer.line() == b"-4 \n"
    assert writer.ask("1 4 3 10") == b"1 1 \n"
    writer.close()
    client.close()


@pytest.mark.parametrize(("size", "code"), [(5, -19), (3, -20)])
def test_truncated_in_the_middle_of_a_store(in_process: InProcess, size: int, code: int) -> None:
    depot = in_process()
    writer, client = depot.connect(), depot.connect()
    read, write, manage = client.allocate()
    client.store(write, b"12345")
    writer.send(f"1 2 {write} 1 8 10\nhalf")
    assert writer.line() == b"1 \n"
    assert client.ask(f"1 9 {manage} 1 45 {size} 10") == b"1 \n"
    if code == -20:
        assert client.ask(f"1 9 {manage} 1 45 1000 10") == b"1 \n"
    writer.send(b"rest")
    assert writer.code("1 4 3 10") == code
    assert client.load(read, 0, size) == b"12345"[:size]
    assert client.probe(manage)[2] == size
    writer.close()
    client.close()


def test_deleted_while_it_is_read(in_process: InProcess) -> None:
    client = in_process().connect()
    data = os.urandom(8 << 20)
    read, write, manage = client.allocate(size=len(data))
    client.store(write, data)
    client.send(f"1 8 {read} 1 0 {len(data)} 10\n")
    assert client.line() == b"1 %d \n" % len(data)
    client.send(f"1 9 {manage} 1 42 1 10\n")
    assert client.read(len(data)) == data
    assert client.line() == b"1 \n"
    client.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    """A tmpfs of 8 MiB."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_full_disk(tiny_disk: Path, in_process: InProcess) -> None:
    depot = in_process(store=tiny_disk / "store", capacity=1 << 30)
    client = depot.connect()
    read, write, manage = client.allocate(size=4 << 20)
    client.store(write, b"before")
    filler = tiny_disk / "filler"
    with filler.open("wb") as file:
        file.truncate(0)
        while True:
            try:
                file.write(bytes(1 << 16))
                file.flush()
            except OSError:
                break
    assert client.code("1 1 1 2 1 600 1000000 10") == -19
    client.send(f"1 2 {write} 1 3000000 10\n".encode() + bytes(3_000_000))
    assert client.line() == b"1 \n"
    assert client.line() == b"-19 \n"
    assert client.probe(manage)[2] == 6
    assert client.load(read, 0, 6) == b"before"
    filler.unlink()
    client.store(write, bytes(3_000_000))
    assert client.probe(manage)[2] == 3_000_006
    client.close()


async def test_who_sends_much_at_once_leaves_others_their_turn(tmp_path: Path) -> None:
    (greedy, one), (modest, other) = trio.socket.socketpair(), trio.socket.socketpair()
    with greedy, modest, open_depot(Settings(store=tmp_path / "store", capacity=1 << 20), SteadyClock()) as depot:
        commands = depot._shared.counters.commands
        async with trio.open_nursery() as nursery:
            for theirs in (one, other):
                nursery.start_soon(depot.serve_socket, theirs, ("127.0.0.1", 6714))
            await greedy.send(b"1 4 3 10\n" * 5000)
            while not commands:
                await trio.lowlevel.checkpoint()
            await modest.send(b"1 4 3 10\n")
            assert await modest.recv(100) == b"1 1 \n"
            assert sum(commands.values()) < 2500
            nursery.cancel_scope.cancel()


def test_a_byte_that_changed_on_the_disk(in_process: InProcess) -> None:
    depot = in_process()
    client = depot.connect()
    reply = client.ask("1 29 1 100 1 2 1 600 1000 10").decode()
    _, write, manage = (capability.split("/")[3] for capability in reply.split()[1:])
    client.store(write, bytes(range(250)))
    files = [path for path in (depot.settings.store / "allocations").rglob("*") if path.is_file() and not path.suffix]
    with files[0].open("r+b") as file:
        file.seek(HEADER_BYTES + 120)
        file.write(b"!")
    answers = [client.ask(f"1 32 {manage} 1 {correct} 10") for correct in (0, 1, 0)]
    assert answers == [b"1 1 \n", b"1 1 \n", b"1 0 \n"]
    client.close()


@pytest.mark.parametrize("size", [1000, 300_000])
def test_a_file_that_was_cut_on_the_disk(in_process: InProcess, size: int) -> None:
    depot = in_process()
    client = depot.connect()
    read, write, _ = client.allocate(size=size)
    client.store(write, bytes(size))
    files = [path for path in (depot.settings.store / "allocations").rglob("*") if path.is_file() and not path.suffix]
    os.truncate(files[0], HEADER_BYTES + size // 2)
    assert client.code(f"1 8 {read} 1 0 {size} 10") == -15
    assert client.load(read, 0, 100) == bytes(100)
    client.close()
