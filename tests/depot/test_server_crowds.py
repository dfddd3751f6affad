"""Crowds of idle, slow and lying peers: a well-behaved client beside them goes on, memory is bounded, nothing leaks.

`IBPFS_CROWD`, `IBPFS_EXCHANGES`, `IBPFS_PATIENCE` (seconds) and `IBPFS_STEP` make a run with more of them.
"""

import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ibpfs.depot.server.operator import ask

Start = Callable[..., Any]
CROWD = int(os.environ.get("IBPFS_CROWD", "1500"))
SLOW = min(500, CROWD)
EXCHANGES = int(os.environ.get("IBPFS_EXCHANGES", "40"))
PATIENCE = os.environ.get("IBPFS_PATIENCE", "4")
TURNS = 10
MIB = 1 << 20
PER_CONNECTION = 48 * 1024  # bytes of memory, at most
TCP = ("--listen", "127.0.0.1:0")


def stat(depot: Any) -> dict[str, Any]:
    said: dict[str, Any] = ask(depot.store, {"do": "stat"})["stat"]
    return said


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # a real process is the subject


def memory(depot: Any, line: str = "VmRSS") -> int:
    found = re.search(rf"{line}:\s+(\d+) kB", Path(f"/proc/{depot.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def descriptors(depot: Any) -> int:
    return len(list(Path(f"/proc/{depot.process.pid}/fd").iterdir()))


def files_of(depot: Any) -> set[Path]:
    return {path for path in depot.store.rglob("*") if path.is_file()}


class Good:
    """A client that behaves: writes 4 KiB at a time and loads it again. Volatile, so that no disk is measured."""

    def __init__(self, client: Any) -> None:
        self.client = client
        reply = client.ask(f"1 1 1 1 1 600 {MIB} 10").decode()
        self.read, self.write = (capability.split("/")[3] for capability in reply.split()[1:3])
        self.size = 0

    def work(self, exchanges: int = EXCHANGES) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        for number in range(exchanges):
            data = bytes([number % 256]) * 4096
            offset = number % 256 * 4096
            self.client.write(self.write, offset, data)
            assert self.client.load(self.read, offset, 4096) == data
            self.size = max(self.size, offset + 4096)
        return time.monotonic() - began


class Watched:
    """What a depot holds before a crowd comes, and that it holds no more when the crowd has gone."""

    def __init__(self, start: Start, depot: Any) -> None:
        self.depot = depot
        self.good = Good(depot.connect())
        self.undisturbed = Good(start(store=depot.store.parent / "undisturbed").connect())
        self.good.work()
        self.before = stat(depot)
        self.descriptors = descriptors(depot)
        self.memory = memory(depot)

    def beside(self, crowd: str) -> None:
        """The client's rate now, as a share of that at a depot without a crowd, in turns."""
        turn = max(1, EXCHANGES // TURNS)
        taken = [(self.undisturbed.work(turn), self.good.work(turn)) for _ in range(TURNS)]
        share, rate = median(alone / beside for alone, beside in taken), median(turn / beside for _, beside in taken)
        peak, before = memory(self.depot, "VmHWM") // MIB, self.memory // MIB
        print(f"{crowd}: {rate:.0f} exchanges/s, share {share:.2f}; peak memory {peak} MiB, before {before} MiB")

    def assert_as_before(self, *, dismissed: bool = False) -> None:
        until(lambda: stat(self.depot)["connections"] == self.before["connections"])
        until(lambda: stat(self.depot)["tasks"] <= self.before["tasks"])
        until(lambda: descriptors(self.depot) <= self.descriptors)
        assert bool(stat(self.depot)["dismissed"]) == dismissed
        self.good.client.close()
        self.undisturbed.client.close()
        assert self.depot.stop() == 0
        assert "level=warning" not in self.depot.errors.read_text()
        assert "level=error" not in self.depot.errors.read_text()

    def assert_only_mine(self) -> None:
        """No allocation, no byte of a store that did not come."""
        [resource] = stat(self.depot)["resources"]
        assert resource["stored_bytes"] == self.good.size
        sizes = [path.stat().st_size for path in (self.depot.store / "allocations").rglob("*") if path.is_file()]
        assert sum(sizes) == self.good.size + 4096 * resource["allocations"]


@contextmanager
def crowd(kind: str, depot: Any, number: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, Path(__file__).with_name("crowd.py"), kind, depot.address.removeprefix("ibp://")]
    process = subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def sent_away(process: "subprocess.Popen[str]") -> int:
    return int(process.communicate("")[0])


def test_very_many_who_say_nothing(start_depot: Start) -> None:
    depot = start_depot(*TCP, "--max-connections", str(CROWD + 10))
    watched = Watched(start_depot, depot)
    with crowd("idle", depot, CROWD) as idlers:
        until(lambda: stat(depot)["connections"] == CROWD + 1)
        watched.beside(f"{CROWD} idle")
        assert memory(depot, "VmHWM") - watched.memory < CROWD * PER_CONNECTION
        assert sent_away(idlers) == 0
    watched.assert_as_before()


def test_more_than_there_is_room_for(start_depot: Start) -> None:
    """Whoever is new is let in, whoever has been idle longest goes."""
    depot = start_depot(*TCP, "--max-connections", "100")
    watched = Watched(start_depot, depot)
    with crowd("idle", depot, 90), crowd("idle", depot, 9):
        until(lambda: stat(depot)["connections"] == 100)
        watched.good.work()
        newcomers: list[Any] = []

        def is_let_in() -> bool:
            client = depot.connect()
            if client.ask("1 4 3 10") != b"1 1 \n":
                client.close()
                return False
            newcomers.append(client)
            return True

        until(is_let_in)
        Good(newcomers[0]).work()
        watched.good.work()
        newcomers[0].close()
    watched.assert_as_before(dismissed=True)


def test_as_many_as_one_address_may_have(start_depot: Start) -> None:
    depot = start_depot(*TCP, "--max-connections-per-address", "3")
    clients = [depot.connect() for _ in range(3)]
    for client in clients:
        client.allocate()
    refused = depot.connect()
    assert refused.is_sent_away()
    other = socket.create_connection(clients[0].sock.getpeername(), timeout=10, source_address=("127.0.5.1", 0))
    one_more = depot.client_over(other)
    one_more.allocate()
    assert stat(depot)["refused"] == {"address": 1}
    for client in (*clients, refused, one_more):
        client.close()


def test_slow_writers(start_depot: Start) -> None:
    """A byte now and then does not keep a place for ever."""
    depot = start_depot(*TCP, "--idle-timeout", PATIENCE, "--longest-timeout", PATIENCE)
    watched = Watched(start_depot, depot)
    with crowd("slow", depot, SLOW) as writers:
        watched.beside(f"{SLOW} slow writers")
        while stat(depot)["connections"] > 1:
            watched.good.work()
        assert stat(depot)["commands"]["store"]["connection_lost"] == SLOW // 2
        assert stat(depot)["dismissed"] == {"slow": SLOW // 2}
        assert sent_away(writers) == SLOW
    watched.assert_only_mine()
    watched.assert_as_before(dismissed=True)


def test_announced_and_never_sent(start_depot: Start) -> None:
    depot = start_depot(*TCP)
    watched = Watched(start_depot, depot)
    with crowd("announced", depot, 3):
        until(lambda: stat(depot)["connections"] == 4)
        watched.beside("3 stores of 1 GiB that do not come")
        assert memory(depot, "VmHWM") - watched.memory < 16 * MIB
    until(lambda: stat(depot)["connections"] == 1)
    watched.assert_only_mine()
    watched.assert_as_before()


# --- disconnected at every byte ---------------------------------------------------------------------------


def conversations(client: Any) -> list[bytes]:
    """Every kind of exchange, on allocations that are there."""
    read, write, manage = client.allocate(size=1 << 28)
    client.store(write, bytes(1000))
    queue = [one.split("/")[3] for one in client.ask("1 1 1 1 3 600 100000 10").decode().split()[1:]]
    digested = [one.split("/")[3] for one in client.ask("1 29 1 16 1 1 1 600 100000 10").decode().split()[1:]]
    alias = [one.split("/")[3] for one in client.ask(f"1 14 {manage} 1 0 100 0 10").decode().split()[1:]]
    port = client.sock.getpeername()[1]
    target = f"ibp://127.0.0.1:{port}/{write}/1/WRITE"
    return [text.encode() for text in (
        f"1 2 {write} 1 10 10\n0123456789",
        f"1 13 {write} 1 3 4 10\nabcd1 8 {read} 1 0 10 10\n",
        f"0 2 {write} 1 5\nhello0 8 {read} 1 0 5\n",
        f"1 33 {write} 1 2 0 3 10 4 10\nabcdefg1 35 {read} 1 2 0 3 10 4 10\n",
        f"1 28 1 4 {digested[1]} 1 4 10\nabcd1 31 {digested[2]} 1 0 10\n1 32 {digested[2]} 1 0 10\n",
        f"1 24 1 4 {read} 1 0 100 10\n",
        f"1 2 {queue[1]} 1 8 1\n012345671 8 {queue[0]} 1 0 8 1\n",
        f"1 9 {manage} 1 40 3 0 0 0 10\n1 9 {manage} 1 41 1 10\n1 9 {manage} 1 42 1 10\n",
        f"0 9 {manage} MANAGE 43 0 268435456 600 -1 10\n",
        f"1 15 {alias[2]} 1 40 3 {manage} 1 10\n1 8 {alias[0]} 1 0 50 10\n",
        f"1 5 {read} {target} 1 0 10 10 10 10\n",
        "1 1 1 1 1 1 1000 10\n0 1 1 1 1 1000\n0 4 1 ibp 10\n1 4 5 10\n1 4 3 10\n",
        f"1 8 {read} 1 0 500 10\n1 8 {read} 1 0 99999999999 10\nnonsense\n",
    )]  # fmt: skip


def cut_off(depot: Any, said: bytes, *, reset: bool) -> None:
    host, _, port = depot.address.removeprefix("ibp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock, suppress(ConnectionError):
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(said)


def heard_until(depot: Any, said: bytes, count: int) -> bool:
    """Disconnected after so many bytes of the answers; whether there were so many."""
    host, _, port = depot.address.removeprefix("ibp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock, suppress(ConnectionError):
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        while count and (piece := sock.recv(count)):
            count -= len(piece)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return count == 0


def cut_everywhere(depot: Any, exchanges: list[bytes], step: int) -> None:
    cuts = 0
    for number, said in enumerate(exchanges):
        for end in range(number % step, len(said), step):
            cut_off(depot, said[:end], reset=bool(end % 2))
            cuts += 1
        end = number % step
        while heard_until(depot, said, end):
            end += 5 * step
            cuts += 1
    print(f"disconnected {cuts} times")


@pytest.mark.parametrize("step", [int(os.environ.get("IBPFS_STEP", "7"))])
def test_disconnected_at_every_byte(start_depot: Start, step: int) -> None:
    """In CI at every few bytes, another few for each exchange."""
    depot = start_depot(*TCP, "--idle-timeout", "5", "--max-lease", "600", "--grace", "1")
    watched = Watched(start_depot, depot)
    exchanges = conversations(watched.good.client)
    files, allocations = files_of(depot), stat(depot)["resources"][0]["allocations"]
    vandal = threading.Thread(target=cut_everywhere, args=(depot, exchanges, step))
    vandal.start()
    while vandal.is_alive():
        watched.beside("disconnects")
    vandal.join()
    until(lambda: stat(depot)["resources"][0]["allocations"] == allocations)  # all but those are leased for a second
    assert files_of(depot) == files
    watched.assert_as_before()
