"""The real `ibpfs-depot`: how it starts, stops, is killed, and what is there afterwards."""

import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a real process is the subject


class TestKilled:
    def test_every_acknowledged_byte_is_there(self, start_depot: Start, tmp_path: Path) -> None:
        depot = start_depot()
        kept: dict[tuple[str, str], bytes] = {}
        lock = threading.Lock()

        def work(seed: int) -> None:
            dice = random.Random(seed)
            client = depot.connect()
            try:
                while True:
                    read, write, manage = client.allocate(size=200_000)
                    with lock:
                        kept[read, manage] = b""
                    for _ in range(3):
                        data = dice.randbytes(dice.randrange(1, 60_000))
                        client.store(write, data)
                        with lock:
                            kept[read, manage] += data
            except (OSError, AssertionError):
                client.close()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(kept) > 40)
        depot.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()

        again = start_depot()
        assert again.address == depot.address
        client = again.connect()
        for (read, manage), data in kept.items():
            size = client.probe(manage)[2]
            assert size >= len(data)  # a store may have been done and not yet acknowledged
            assert client.load(read, 0, len(data)) == data
        client.close()
        assert again.stop() == 0
        assert "level=warning" not in depot.errors.read_text()

    def test_a_store_cut_off_by_the_kill(self, start_depot: Start, tmp_path: Path) -> None:
        depot = start_depot()
        client = depot.connect()
        read, write, manage = client.allocate(size=1 << 20)
        client.store(write, b"whole")
        client.send(f"1 2 {write} 1 500000 10\n".encode() + bytes(300_000))
        assert client.line() == b"1 \n"
        file = next(path for path in (depot.store / "allocations").rglob("*") if path.is_file())
        until(lambda: file.stat().st_size > 200_000)
        depot.stop(signal.SIGKILL)
        client.close()
        client = start_depot().connect()
        assert client.probe(manage)[2] == 5
        assert client.load(read, 0, 5) == b"whole"
        assert file.stat().st_size == 4096 + 5
        client.store(write, b" again")
        client.close()


class TestLife:
    def test_ready_line_and_recorded_address(self, start_depot: Start) -> None:
        depot = start_depot()
        assert re.fullmatch(r"ibp://127\.0\.0\.1:\d+", depot.address)
        assert (depot.store / "address").read_text() == depot.address + "\n"
        client = depot.connect()
        assert depot.address.encode() + b"/1#" in client.ask("1 1 1 2 1 600 1000 10")
        client.close()

    def test_keeps_its_port_unless_it_is_taken(self, start_depot: Start) -> None:
        first = start_depot()
        assert first.stop() == 0
        port = int(first.address.rpartition(":")[2])
        assert 20_000 <= port < 32_768  # where no outgoing connection gets it meanwhile
        second = start_depot()
        assert second.address == first.address
        assert second.stop() == 0
        with socket.create_server(("127.0.0.1", port)):
            third = start_depot()
            assert third.address != first.address
        assert (third.store / "address").read_text().strip() == third.address

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stops_cleanly_with_clients_connected(self, start_depot: Start, number: int) -> None:
        depot = start_depot()
        client = depot.connect()
        client.allocate()
        assert depot.stop(number) == 0
        assert client.line() == b""
        client.close()
        assert "Traceback" not in depot.errors.read_text()

    def test_a_store_is_served_once(self, start_depot: Start) -> None:
        depot = start_depot()
        second = subprocess.run(
            [sys.executable, "-m", "ibpfs_tools.depot", "--store", depot.store, "--listen", "127.0.0.1:0"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert (second.returncode, second.stdout) == (3, "")
        assert second.stderr == f"ibpfs-depot: another depot serves {depot.store}\n"

    def test_an_address_that_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            run = subprocess.run(
                [sys.executable, "-m", "ibpfs_tools.depot", "--store", tmp_path / "s", "--listen", address],
                capture_output=True, text=True, timeout=20,
            )  # fmt: skip
        assert run.returncode == 1
        assert run.stderr.splitlines()[-1] == f"ibpfs-depot: cannot listen on {address}: Address already in use"
        assert "Traceback" not in run.stderr

    @pytest.mark.parametrize(
        "options",
        [["--capacity", "many"], ["--listen", "nowhere"], ["--max-lease", "1 fortnight"], ["--listen", "a:99999"]],
    )
    def test_bad_options(self, options: list[str]) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "ibpfs_tools.depot", *options], capture_output=True, text=True, timeout=20
        )
        assert run.returncode == 2
        assert f"Invalid value for '{options[0]}'" in run.stderr

    @pytest.mark.parametrize("option", ["--help", "-h", "--version"])
    def test_help(self, option: str) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "ibpfs_tools.depot", option], capture_output=True, text=True, timeout=20
        )
        assert run.returncode == 0
        assert "ibpfs-depot" in run.stdout or "--exit-when-unused" in run.stdout

    def test_a_reader_of_the_ready_line_that_went_away(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen(
            [sys.executable, "-m", "ibpfs_tools.depot", "--store", tmp_path / "s", "--unix", tmp_path / "u",
             "--exit-when-unused", "0.3"],
            stdout=writer, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(writer)
        assert "Traceback" not in process.communicate(timeout=20)[1]
        assert process.returncode == 0


class TestEmbedded:
    """As a mount starts it."""

    @pytest.fixture
    def options(self, tmp_path: Path) -> list[str]:
        return ["--unix", str(tmp_path / "sock"), "--listen", "127.0.0.1:0"]

    def test_both_doors_lead_to_the_same_store(
        self, start_depot: Start, options: list[str], tmp_path: Path
    ) -> None:
        depot = start_depot(*options, "--exit-when-unused", "5")
        local, remote = depot.connect_unix(tmp_path / "sock"), depot.connect()
        read, write, manage = local.allocate(duration=-1)
        local.store(write, b"embedded")
        assert remote.load(read, 0, 8) == b"embedded"
        assert remote.probe(manage)[4] == 315360000
        local.close()
        remote.close()

    def test_the_socket_is_private(self, start_depot: Start, options: list[str], tmp_path: Path) -> None:
        start_depot(*options)
        assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o600

    def test_a_path_longer_than_a_socket_address(self, start_depot: Start, tmp_path: Path) -> None:
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        start_depot("--unix", str(deep / "sock"))
        directory = os.open(deep, os.O_PATH)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"/proc/self/fd/{directory}/sock")
        sock.sendall(b"1 4 3 10\n")
        assert sock.recv(100) == b"1 1 \n"
        sock.close()
        os.close(directory)

    def test_ends_with_its_last_user(self, start_depot: Start, options: list[str], tmp_path: Path) -> None:
        depot = start_depot(*options, "--exit-when-unused", "0.5")
        first, second = depot.connect_unix(tmp_path / "sock"), depot.connect()
        first.allocate()
        time.sleep(1)  # in use, so this must not end it
        second.allocate()
        first.close()
        second.allocate()
        second.close()
        assert depot.process.wait(10) == 0
        assert not (tmp_path / "sock").exists()

    def test_ends_when_nobody_ever_comes(self, start_depot: Start, options: list[str]) -> None:
        assert start_depot(*options, "--exit-when-unused", "0.3").process.wait(10) == 0

    def test_a_socket_left_by_a_kill_is_replaced(
        self, start_depot: Start, options: list[str], tmp_path: Path
    ) -> None:
        start_depot(*options).stop(signal.SIGKILL)
        assert (tmp_path / "sock").exists()
        start_depot(*options).connect_unix(tmp_path / "sock").close()

    def test_the_socket_of_a_store_that_was_made_anew_stays(
        self, start_depot: Start, options: list[str], tmp_path: Path
    ) -> None:
        """A mount's depot stays a while: until then its volume may be deleted and another made in its place."""
        former = start_depot(*options)
        shutil.rmtree(tmp_path / "store")
        latter = start_depot(*options)
        former.stop()
        latter.connect_unix(tmp_path / "sock").close()
        assert (tmp_path / "store" / "operator.sock").exists()

    def test_local_users_may_be_idle(self, start_depot: Start, options: list[str], tmp_path: Path) -> None:
        depot = start_depot(*options, "--idle-timeout", "0.3")
        local, remote = depot.connect_unix(tmp_path / "sock"), depot.connect()
        local.allocate()
        assert remote.is_sent_away()
        time.sleep(0.5)  # idle on purpose
        local.allocate()
        local.close()
        remote.close()


class TestLimits:
    def test_idle_and_half_a_line(self, start_depot: Start) -> None:
        depot = start_depot("--listen", "127.0.0.1:0", "--idle-timeout", "0.3")
        idle, half = depot.connect(), depot.connect()
        half.send("1 4 3")
        assert idle.is_sent_away()
        assert half.is_sent_away()
        idle.close()
        half.close()

    def test_too_many_connections(self, start_depot: Start) -> None:
        depot = start_depot("--listen", "127.0.0.1:0", "--max-connections", "2")
        first, second = depot.connect(), depot.connect()
        for client in (first, second):
            client.allocate()
            client.send("1 4 ")  # in the middle of a command, so that its place is not given away
        backoffs = []
        for _ in range(3):
            refused = depot.connect()
            code, backoff = refused.line().split()
            assert code == b"-66"
            backoffs.append(float(backoff))
            assert refused.line() == b""
            refused.close()
        assert min(backoffs) > 0
        assert max(backoffs) < 2
        first.close()
        until(lambda: self._lets_in(depot))
        second.close()

    @staticmethod
    def _lets_in(depot: Any) -> bool:
        client = depot.connect()
        reply = client.ask("1 4 3 10")
        client.close()
        return bool(reply == b"1 1 \n")

    def test_leases_end(self, start_depot: Start) -> None:
        depot = start_depot("--listen", "127.0.0.1:0", "--max-lease", "2", "--grace", "1")
        client = depot.connect()
        assert client.code("1 1 1 2 1 3 1000 10") == -28
        short, longer = client.allocate(duration=1), client.allocate(size=2 << 20, duration=2)
        client.store(short[1], b"data")
        client.store(longer[1], bytes(2 << 20))  # a thread frees its blocks
        until(lambda: client.code(f"1 8 {short[0]} 1 0 0 10") == -4)
        if client.code(f"1 9 {short[2]} 1 40 3 10") == 1:  # still in its grace time
            until(lambda: client.code(f"1 9 {short[2]} 1 40 3 10") == -4)
        until(lambda: client.code(f"1 9 {longer[2]} 1 40 3 10") == -4)
        assert not [path for path in (depot.store / "allocations").rglob("*") if path.is_file()]
        until(lambda: not open_allocations(depot.process.pid))
        client.close()

    def test_capacity(self, start_depot: Start) -> None:
        depot = start_depot("--listen", "127.0.0.1:0", "--capacity", "1M")
        client = depot.connect()
        client.allocate(size=1 << 19)
        manage = client.allocate(size=1 << 19)[2]
        assert client.code("1 1 1 2 1 600 1 10") == -19
        assert client.ask(f"1 9 {manage} 1 42 1 10") == b"1 \n"
        client.allocate(size=1 << 19)
        client.close()


def open_allocations(pid: int) -> list[Path]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(link.readlink())
    return [path for path in found if "/allocations/" in os.fspath(path)]


class TestSecrets:
    def test_no_key_in_log_store_or_command_line(self, start_depot: Start) -> None:
        depot = start_depot("--listen", "127.0.0.1:0", "--verbose")
        client = depot.connect()
        keys = client.allocate()
        client.store(keys[1], b"data")
        client.send(f"1 2 {keys[1]} 1 5000 10\n")
        client.rest()
        client.close()
        seen = [depot.errors.read_bytes(), Path(f"/proc/{depot.process.pid}/cmdline").read_bytes()]
        seen += [path.read_bytes() for path in depot.store.rglob("*") if path.is_file()]
        for key in keys:
            assert not any(key[2:].encode() in text for text in seen)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_each_store_reaches_the_disk(start_depot: Start, tmp_path: Path) -> None:
    """Counted from outside."""
    depot = start_depot()
    client = depot.connect()
    _, write, _ = client.allocate()
    trace = tmp_path / "trace"
    strace = subprocess.Popen(
        ["strace", "-f", "-e", "trace=fdatasync", "-o", trace, "-p", str(depot.process.pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    assert "attached" in strace.stderr.readline()
    for _ in range(100):
        client.store(write, b"x")
    client.close()
    strace.terminate()
    strace.communicate(timeout=10)
    assert trace.read_text().count("fdatasync(") >= 100
