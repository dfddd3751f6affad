"""What an operator does with a real `ibpfs-depot`: configuration file, reload, numbers, systemd."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

Start = Callable[..., Any]
PROGRAM = [sys.executable, "-m", "ibpfs_tools.depot"]
TCP = ("--listen", "127.0.0.1:0")


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a real process is the subject


def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=20, check=False)


def log_lines(depot: Any) -> list[dict[str, str]]:
    return [json.loads(line) for line in depot.errors.read_text().splitlines()]


class TestConfiguration:
    def test_a_file_gives_what_the_command_line_does_not(self, start_depot: Start, tmp_path: Path) -> None:
        file = tmp_path / "depot.toml"
        file.write_text('listen = ["127.0.0.1:0"]\ncapacity = "1M"\nmax-lease = 60\npermanent = false\n')
        client = start_depot("--config", str(file), "--max-lease", "2h").connect()
        assert client.code("1 1 1 2 1 600 2000000 10") == -19
        assert client.code("1 1 1 2 1 7200 1000 10") == 1
        assert client.code("1 1 1 2 1 7201 1000 10") == -28
        client.close()

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ('capactiy = "1G"', "capactiy: there is no such setting"),
            ('config = "x"', "config: there is no such setting"),
            ('capacity = "many"', "capacity: 'many' is not a size; write for example 16M or 2G"),
            ("capacity = true", "capacity: True is not what belongs there"),
            ("capacity = [1]", "capacity: [1] is not what belongs there"),
            ("tls = 1", "tls: 1 is not what belongs there"),
            ('listen = ["a", 1]', "listen: ['a', 1] is not what belongs there"),
            ('listen = "nowhere"', "listen: 'nowhere' is not HOST:PORT"),
            ("max-connections = 0", "max-connections: 0 is not in the range x>=1."),
            ('log-format = "prose"', "log-format: 'prose' is not one of 'logfmt', 'json'."),
            ("[table]", "table: there is no such setting"),
            ("capacity", "no TOML: Expected '=' after a key in a key/value pair (at line 1, column 9)"),
        ],
    )
    def test_a_wrong_file_is_one_line(self, tmp_path: Path, text: str, complaint: str) -> None:
        file = tmp_path / "depot.toml"
        file.write_text(text + "\n")
        done = call("--store", tmp_path / "s", "--config", file)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"ibpfs-depot: {file}: {complaint}\n"

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        done = call("--config", tmp_path / "x")
        assert done.stderr == f"ibpfs-depot: {tmp_path}/x: No such file or directory\n"

    def test_reload(self, start_depot: Start, tmp_path: Path) -> None:
        file = tmp_path / "depot.toml"
        base = 'listen = ["127.0.0.1:0"]\nlog-format = "json"\nmax-lease = "1h"\n'
        file.write_text(base + 'capacity = "1M"\n')
        depot = start_depot("--config", str(file))
        client = depot.connect()
        assert client.code("1 1 1 2 1 600 2000000 10") == -19

        def reload(text: str, said: str) -> None:
            before = len(log_lines(depot))
            file.write_text(text)
            depot.process.send_signal(signal.SIGHUP)
            until(lambda: any(one["msg"].startswith(said) for one in log_lines(depot)[before:]))

        reload(base + 'capacity = "4M"\nidle-timeout = 60\nallow = ["admin=127.0.0.1"]\n', "settings read again")
        assert client.code("1 1 1 2 1 600 2000000 10") == 1
        reload(base + 'capacity = "8 cups"\n', "the settings stay as they were")
        assert client.code("1 1 1 2 1 600 2000000 10") == 1
        assert client.code("1 1 1 2 1 600 2000000 10") == -19
        reload("metrics = '127.0.0.1:1'\n" + base + "allow = ['allocate=192.0.2.0/24']\n", "settings read again")
        assert client.code("1 1 1 2 1 600 1000 10") == -44
        client.close()
        assert depot.stop() == 0
        complaints = [one for one in log_lines(depot) if one["level"] not in ("info", "debug")]
        assert [(one["level"], one.get("setting")) for one in complaints] == [("error", None), ("warning", "metrics")]
        assert complaints[0]["msg"].endswith(f"{file}: capacity: '8 cups' is not a size; write for example 16M or 2G")


class TestNumbers:
    @pytest.fixture
    def busy(self, start_depot: Start) -> Any:
        """A depot after some exchanges, with one connection open."""
        depot = start_depot(*TCP, "--capacity", "1M", "--metrics", "127.0.0.1:0")
        client = depot.connect()
        keys = client.allocate(size=1000)
        client.store(keys[1], b"x" * 500)
        assert client.load(keys[0], 0, 500) == b"x" * 500
        assert client.code(f"1 8 {keys[0]} 1 500 1 10") == -19
        client.ask("1 1 1 1 1 600 300000 10")
        assert client.code("1 1 1 2 1 600 900000 10") == 1  # revokes the volatile one
        depot.client = client
        yield depot
        client.close()

    def test_stat(self, busy: Any) -> None:
        said = json.loads(call("stat", "--store", busy.store, "--json").stdout)
        assert said["running"] is True
        [resource] = said["resources"]
        assert resource["capacity_bytes"] == 1 << 20
        assert resource["allocated_bytes"] == 901_000
        assert (resource["stored_bytes"], resource["volatile_bytes"], resource["revocations"]) == (500, 0, 1)
        assert (resource["allocations"], resource["allocated"]) == (2, 3)
        assert said["connections"] == said["accepted"] == 1
        assert said["commands"] == {
            "allocate": {"ok": 3}, "store": {"ok": 1}, "load": {"ok": 1, "would_exceed_limit": 1},
        }  # fmt: skip
        assert said["received_bytes"] > 700
        assert said["sent_bytes"] > 900
        assert said["syncs"] >= 3
        assert said["sync_seconds"] > 0
        assert said["tasks"] > 3
        text = call("stat", "--store", busy.store).stdout
        assert "allocated      879.9 KiB" in text
        assert "load                ok 1  would_exceed_limit 1" in text

    def test_stat_of_a_depot_that_does_not_run(self, busy: Any) -> None:
        busy.client.send("1 9")
        assert busy.stop() == 0
        said = json.loads(call("stat", "--store", busy.store, "--json").stdout)
        assert said["running"] is False
        assert said["resources"][0]["allocated_bytes"] == 901_000
        assert "connections" not in said
        assert "not running" in call("stat", "--store", busy.store).stdout

    def test_nonsense_at_the_operators_socket(self, busy: Any) -> None:
        undelete = b'{"do": "undelete", "name": "0123456789", "seconds": %s}'
        questions = [
            b"[]",
            b"7",
            b"{}",
            b"\xff",
            b"[" * 60_000,
            *(undelete % one for one in (b"[]", b"NaN", b"-1", b"1e999")),
        ]
        for question in questions:
            with closing(socket.socket(socket.AF_UNIX)) as sock:
                sock.settimeout(20)
                sock.connect(str(busy.store / "operator.sock"))
                sock.sendall(question + b"\n")
                with sock.makefile() as lines:
                    assert list(json.loads(lines.readline())) == ["error"]
        assert busy.stop() == 0
        assert "level=error" not in busy.errors.read_text()

    def test_metrics(self, busy: Any) -> None:
        found = re.search(r"at=(\S+)", busy.errors.read_text())
        assert found is not None
        with urllib.request.urlopen(f"http://{found[1]}/metrics", timeout=10) as page:
            assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = page.read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in families.values() for sample in family.samples
        }  # fmt: skip
        assert values["ibpfs_depot_commands_total", ("command", "allocate"), ("result", "ok")] == 3
        assert values["ibpfs_depot_commands_total", ("command", "load"), ("result", "would_exceed_limit")] == 1
        assert values["ibpfs_depot_allocated_bytes", ("resource", "1")] == 901_000
        assert values["ibpfs_depot_revocations_total", ("resource", "1")] == 1
        assert values["ibpfs_depot_leases_ended_total", ("resource", "1")] == 0
        assert values["ibpfs_depot_connections",] == 1
        assert values["ibpfs_depot_sync_seconds_count",] >= 3
        assert values["ibpfs_depot_sync_seconds_bucket", ("le", "+Inf")] == values["ibpfs_depot_sync_seconds_count",]
        assert values["process_open_fds",] > 5
        assert families["ibpfs_depot_sync_seconds"].type == "histogram"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{found[1]}/else", timeout=10)
        assert self._what_a_copy_is_told(busy, int(found[1].rpartition(":")[2])) == -44

    @staticmethod
    def _what_a_copy_is_told(depot: Any, port: int) -> int:
        """A copy to the port of the metrics, through any address of this machine."""
        read, write, _ = depot.client.allocate(size=1000)
        depot.client.store(write, b"x")
        target = f"ibp://localhost:{port}/1#abc/1/WRITE"
        return int(depot.client.code(f"1 5 {read} {target} 1 0 1 10 10 10"))


def listening_everywhere() -> socket.socket:
    """As systemd listens on a port alone."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", 0))


class TestServiceManager:
    @pytest.fixture
    def stack(self) -> Iterator[ExitStack]:
        with ExitStack() as stack:
            yield stack

    def start(self, stack: ExitStack, passed: list[socket.socket], *options: str, notify: str = "") -> Any:
        """As systemd does: descriptors from 3 on, and a process that knows its own number."""
        words = [sys.executable, "-c", ACTIVATE, str(len(passed)), ",".join(str(one.fileno()) for one in passed)]
        environment = os.environ | ({"NOTIFY_SOCKET": notify} if notify else {})
        process = subprocess.Popen(
            [*words, *PROGRAM, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=[one.fileno() for one in passed], env=environment,
        )  # fmt: skip
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        stack.callback(process.stdout.close)
        stack.callback(process.stderr.close)
        return process

    def test_sockets_are_passed_on(self, stack: ExitStack, tmp_path: Path) -> None:
        tcp = stack.enter_context(listening_everywhere())
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(tmp_path / "sock"))
        local.listen()
        process = self.start(stack, [tcp, local], "--store", str(tmp_path / "s"))
        port = tcp.getsockname()[1]
        assert re.fullmatch(rf"ibpfs-depot: ready ibp://\S+:{port}\n", process.stdout.readline())
        for client in (socket.create_connection(("127.0.0.1", port)), socket.socket(socket.AF_UNIX)):
            with client:
                if client.family == socket.AF_UNIX:
                    client.connect(str(tmp_path / "sock"))
                client.settimeout(10)
                client.sendall(b"1 1 1 2 1 600 1000 10\n")
                reply = client.recv(1000)
                assert reply.startswith(b"1 ibp://127.0.0.1:%d/" % port) or client.family == socket.AF_UNIX
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert (tmp_path / "sock").exists()  # it is not ours

    def test_what_is_passed_on_may_be_wrong(self, stack: ExitStack, tmp_path: Path) -> None:
        process = self.start(stack, [stack.enter_context(socket.socket())], "--store", str(tmp_path / "s"))
        assert process.wait(20) == 1
        last = process.stderr.read().splitlines()[-1]
        assert last == "ibpfs-depot: descriptor 3 was passed on, and is no listening stream socket"

    @pytest.mark.parametrize("abstract", [False, True])
    def test_states_are_told(self, stack: ExitStack, tmp_path: Path, abstract: bool) -> None:
        door = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        name = f"@ibpfs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        door.bind(f"\0{name[1:]}" if abstract else name)
        door.settimeout(10)
        process = self.start(stack, [], "--store", str(tmp_path / "s"), *TCP, notify=name)
        assert re.fullmatch(rb"READY=1\nSTATUS=serves ibp://127\.0\.0\.1:\d+", door.recv(1000))
        process.send_signal(signal.SIGHUP)
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", door.recv(1000))
        assert door.recv(1000).startswith(b"READY=1\n")
        process.send_signal(signal.SIGTERM)
        assert door.recv(1000) == b"STOPPING=1"
        assert process.wait(10) == 0

    def test_units(self, tmp_path: Path) -> None:
        program = Path(sys.executable).parent / "ibpfs-depot"
        file = tmp_path / "depot.toml"
        done = subprocess.run(
            [program, "units", "--directory", tmp_path, "--config", file], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert {path.name for path in tmp_path.iterdir()} == {"ibpfs-depot.service", "ibpfs-depot.socket"}
        service = (tmp_path / "ibpfs-depot.service").read_text()
        assert f"ExecStart={program} --store /var/lib/ibpfs-depot --config {file}\n" in service
        assert shutil.which("systemd-analyze") is not None  # of the package systemd
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")

    def test_units_are_printed(self) -> None:
        text = call("units", "--listen", "127.0.0.1:7000").stdout
        assert text.startswith("# ibpfs-depot.service\n[Unit]\n")
        assert "\n# ibpfs-depot.socket\n" in text
        assert "ListenStream=127.0.0.1:7000\n" in text


ACTIVATE = """
import os, sys
count, descriptors, command = int(sys.argv[1]), [int(one) for one in sys.argv[2].split(",") if one], sys.argv[3:]
aside = [os.dup2(one, 100 + at) for at, one in enumerate(descriptors)]
for at, one in enumerate(aside):
    os.dup2(one, 3 + at, inheritable=True)
if count:
    os.environ |= {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
os.execv(command[0], command)
"""
