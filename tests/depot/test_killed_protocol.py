"""`kill -9` of the real depot under load of every kind, at moments that a printed seed decides: every acknowledged byte
is there, and nothing is left over. `IBPFS_KILLS` and `IBPFS_SEED` make a longer run, or the same one again."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[..., Any]
ROUNDS = int(os.environ.get("IBPFS_KILLS", "20"))
SEED = int(os.environ.get("IBPFS_SEED", "20261120"))


def ask_keys(client: Any, line: str) -> list[str]:
    reply = client.ask(line).decode()
    assert reply.startswith("1 ibp://")
    return [capability.split("/")[3] for capability in reply.split()[1:]]


class Load:
    """Works until the depot dies; remembers what was acknowledged and what was under way."""

    def __init__(self, depot: Any, dice: random.Random) -> None:
        self.client = depot.connect()
        self.dice = dice
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError

    def step(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        try:
            while True:
                self.step()
        except (OSError, AssertionError, IndexError, ValueError):
            self.client.close()

    def verify(self, client: Any) -> None:
        raise NotImplementedError


class Plain(Load):
    """A byte array that grows and is overwritten."""

    LARGEST = 400_000

    def begin(self) -> None:
        self.read, self.write, self.manage = self.client.allocate(size=self.LARGEST)
        self.data = bytearray()
        self.under_way: tuple[int, bytes] | None = None

    def step(self) -> None:
        chunk = self.dice.randbytes(self.dice.randrange(1, 20_000))
        if len(self.data) + len(chunk) <= self.LARGEST and self.dice.random() < 0.6:
            self.client.store(self.write, chunk)
            self.data += chunk
        elif self.data:
            offset = self.dice.randrange(len(self.data))
            chunk = chunk[: len(self.data) - offset]
            self.under_way = offset, chunk
            self.client.write(self.write, offset, chunk)
            self.data[offset : offset + len(chunk)] = chunk
            self.under_way = None

    def verify(self, client: Any) -> None:
        assert client.probe(self.manage)[2] >= len(self.data)  # a store may have been done and not yet acknowledged
        held = client.load(self.read, 0, len(self.data))
        offset, chunk = self.under_way or (0, b"")
        end = offset + len(chunk)
        assert held[:offset] + held[end:] == self.data[:offset] + self.data[end:]
        for at, new in enumerate(chunk, offset):  # a write that was not acknowledged may have been done in part
            assert held[at] in (self.data[at], new)


class Fifo(Load):
    """Numbers go in and come out in order; none is lost that was acknowledged, none comes twice but the last."""

    def begin(self) -> None:
        self.read, self.write, self.manage = ask_keys(self.client, "0 1 2 3 600 4096 10")
        self.stored = self.taken = 0

    def step(self) -> None:
        if self.dice.random() < 0.6 and self.stored - self.taken < 400:
            self.client.store(self.write, b"%08d" % self.stored)
            self.stored += 1
        elif self.stored > self.taken:
            assert self.client.ask(f"0 8 {self.read} 1 0 8 0") == b"1 8 \n"
            assert self.client.read(8) == b"%08d" % self.taken
            self.taken += 1

    def verify(self, client: Any) -> None:
        size = client.probe(self.manage)[2]
        first = int(client.load(self.read, 0, 8)) if size else self.stored
        count = size // 8
        # Bytes leave a FIFO when they have been sent: killed between the two, it gives the last ones again.
        assert self.taken - 1 <= first <= self.taken + 1
        assert first + count in (self.stored, self.stored + 1)
        for number in range(first + 1, first + count):
            assert int(client.load(self.read, 0, 8)) == number


class Circular(Load):
    def begin(self) -> None:
        self.read, self.write, self.manage = ask_keys(self.client, "0 1 2 4 600 160 10")
        self.stored = 0

    def step(self) -> None:
        self.client.store(self.write, b"%08d" % self.stored)
        self.stored += 1

    def verify(self, client: Any) -> None:
        count = client.probe(self.manage)[2] // 8
        assert count == min(20, self.stored) or count == min(20, self.stored + 1)
        numbers = [int(client.load(self.read, 0, 8)) for _ in range(count)]
        assert numbers == list(range(numbers[0], numbers[0] + count))
        assert numbers[-1] in (self.stored - 1, self.stored)


class Buffer(Load):
    def begin(self) -> None:
        self.read, self.write, self.manage = ask_keys(self.client, "0 1 2 2 600 100000 10")
        self.stored = 0

    def step(self) -> None:
        length = 100 + self.stored * 37 % 60_000
        self.client.store(self.write, bytes([self.stored % 251]) * length)
        self.stored += 1

    def verify(self, client: Any) -> None:
        if not self.stored:
            return
        size = client.probe(self.manage)[2]
        contents = [(100 + n * 37 % 60_000, n % 251) for n in (self.stored - 1, self.stored)]
        held = client.load(self.read, 0, size)
        assert held in [bytes([byte]) * length for length, byte in contents]


class Digested(Load):
    def begin(self) -> None:
        line = "1 29 1 1000 1 2 1 600 1000000 10"
        self.read, self.write, self.manage = ask_keys(self.client, line)
        self.size = 0

    def step(self) -> None:
        if self.size and self.dice.random() < 0.4:
            self.client.write(self.write, self.dice.randrange(self.size), b"w")
            return
        length = self.dice.randrange(1, 5000)
        self.client.store(self.write, self.dice.randbytes(length))
        self.size += length

    def verify(self, client: Any) -> None:
        assert client.probe(self.manage)[2] >= self.size
        assert client.ask(f"1 32 {self.manage} 1 0 10") == b"1 0 \n"
        blocks = client.ask(f"1 31 {self.manage} 1 1 10").split()[4]
        assert int(blocks) >= -(-self.size // 1000)


class Aliased(Load):
    """What was revoked stays so, what was not stays alive."""

    def begin(self) -> None:
        self.parent = self.client.allocate(size=1000)
        self.client.store(self.parent[1], b"0123456789" * 100)
        self.alive: dict[str, tuple[str, int]] = {}
        self.revoked: list[str] = []
        self.doubtful = ""

    def step(self) -> None:
        if len(self.alive) < 5 or self.dice.random() < 0.6:
            offset = self.dice.randrange(900)
            read, _, manage = ask_keys(self.client, f"1 14 {self.parent[2]} 1 {offset} 50 0 10")
            self.alive[manage] = read, offset
            return
        manage = self.doubtful = self.dice.choice(list(self.alive))
        assert self.client.ask(f"1 15 {manage} 1 42 1 {self.parent[2]} 1 10") == b"1 \n"
        self.revoked.append(self.alive.pop(manage)[0])

    def verify(self, client: Any) -> None:
        for manage, (read, offset) in self.alive.items():
            if manage != self.doubtful:
                assert client.load(read, 0, 50) == (b"0123456789" * 100)[offset : offset + 50]
        for read in self.revoked:
            assert client.code(f"1 8 {read} 1 0 1 10") == -4


class Renamed(Load):
    def begin(self) -> None:
        self.keys = self.client.allocate()
        self.client.store(self.keys[1], b"data")
        self.old: list[str] = []

    def step(self) -> None:
        new = ask_keys(self.client, f"1 16 {self.keys[2]} 1 10")
        self.old, self.keys = [*self.old, self.keys[0]], new

    def verify(self, client: Any) -> None:
        for read in self.old:
            assert client.code(f"1 8 {read} 1 0 4 10") == -4
        # The last one may have been renamed again, and its answer lost.
        assert client.code(f"1 9 {self.keys[2]} 1 40 3 10") in (1, -4)


KINDS = (Plain, Fifo, Circular, Buffer, Digested, Aliased, Renamed)


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_killed(start_depot: Start, round_: int) -> None:
    print(f"seed {SEED} round {round_}")
    dice = random.Random(SEED + round_)
    depot = start_depot()
    loads = [kind(depot, random.Random(dice.random())) for kind in KINDS]
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    threads[0].join(dice.uniform(0.1, 0.8))  # the moment is the subject
    depot.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()
    again = start_depot()
    client = again.connect()
    for load in loads:
        load.verify(client)
    client.close()
    assert again.stop() == 0
    assert "level=warning" not in again.errors.read_text()
    left = [path.name for path in (again.store / "allocations").rglob("*.new")]
    assert left == []


def test_undelete(start_depot: Start) -> None:
    depot = start_depot()
    client = depot.connect()
    reply = client.ask("1 1 1 2 1 1 1000 10").decode()
    read, write, manage = (capability.split("/")[3] for capability in reply.split()[1:])
    client.store(write, b"precious")
    while client.code(f"1 8 {read} 1 0 0 1") != -4:
        pass

    def undelete(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ibpfs_tools.depot", "undelete", "--store", str(depot.store), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    name = undelete().stdout.split()[0]
    assert undelete("ffffffff").returncode == 1
    assert undelete(name, "--for", "1h").returncode == 0
    assert client.load(read, 0, 8) == b"precious"
    assert 3500 < client.probe(manage)[4] <= 3600
    assert undelete().stdout == ""
    client.ask(f"1 9 {manage} 1 43 3 1000 1 2 10")
    while client.code(f"1 8 {read} 1 0 0 1") != -4:
        pass
    client.close()
    assert depot.stop() == 0
    assert undelete(name, "--for", "1h").returncode == 0  # while it does not run
    client = start_depot().connect()
    assert client.load(read, 0, 8) == b"precious"
    client.close()
