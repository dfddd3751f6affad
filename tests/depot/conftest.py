"""A depot to talk to, in three settings, and a client that sees every byte."""

import logging
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.depot.server.depot import Depot, open_depot
from ibpfs.depot.server.settings import Settings

PATIENCE = 10.0


class LineClient:
    """Sends what it is told and reads what comes; knows nothing of the protocol but lines."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock
        self._input = sock.makefile("rb")

    def send(self, data: bytes | str) -> None:
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def line(self) -> bytes:
        return self._input.readline()

    def read(self, count: int) -> bytes:
        return self._input.read(count)

    def rest(self) -> bytes:
        return self._input.read()

    def ask(self, line: str) -> bytes:
        self.send(line + "\n")
        return self.line()

    def code(self, line: str) -> int:
        return int(self.ask(line).split()[0])

    def is_sent_away(self) -> bool:
        """Whether all that comes is the goodbye line and the end."""
        rest = self._input.read()
        return rest.startswith(b"-66 ") and rest.count(b"\n") == 1

    def close(self) -> None:
        self._input.close()
        self.sock.close()

    # --- the usual exchanges ---

    def allocate(self, size: int = 1000, duration: int = 600, version: int = 1) -> list[str]:
        """The keys: read, write, manage."""
        rid = "1 " if version else ""
        reply = self.ask(f"{version} 1 {rid}2 1 {duration} {size} 10").decode()
        assert reply.startswith("1 ibp://")
        assert reply.endswith(" \n")
        return [capability.split("/")[3] for capability in reply.split()[1:]]

    def store(self, key: str, data: bytes, version: int = 1) -> None:
        self.send(f"{version} 2 {key} 1 {len(data)} 10\n".encode() + data)
        assert self.line() == b"1 \n"
        assert self.line() == b"1 %d \n" % len(data)

    def write(self, key: str, offset: int, data: bytes) -> None:
        self.send(f"1 13 {key} 1 {offset} {len(data)} 10\n".encode() + data)
        assert (self.line(), self.line()) == (b"1 \n", b"1 %d \n" % len(data))

    def load(self, key: str, offset: int, length: int) -> bytes:
        assert self.ask(f"1 8 {key} 1 {offset} {length} 10") == b"1 %d \n" % length
        return self.read(length)

    def probe(self, key: str) -> list[int]:
        """Read count, write count, size, maximum size, seconds, reliability, type."""
        reply = self.ask(f"1 9 {key} 1 40 3 0 0 0 10").split()
        assert reply[0] == b"1"
        return [int(number) for number in reply[1:]]


@dataclass
class Clock:
    """A wall clock that stands still unless moved."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class InProcessDepot:
    """The server in a thread of this process, spoken to over socket pairs."""

    settings: Settings
    clock: Clock = field(default_factory=Clock)
    _calls: "queue.Queue[Any]" = field(default_factory=queue.Queue)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "InProcessDepot":
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        self.depot, self._token, self._nursery = self._calls.get(timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        with open_depot(self.settings, self.clock) as depot:
            async with trio.open_nursery() as nursery:
                self._calls.put((depot, trio.lowlevel.current_trio_token(), nursery))
                await depot.serve()
                await trio.sleep_forever()

    def connect(self) -> LineClient:
        ours, theirs = socket.socketpair()

        def serve() -> None:
            sock = trio.socket.from_stdlib_socket(theirs)
            self._nursery.start_soon(self.depot.serve_socket, sock, ("127.0.0.1", 6714))

        self._token.run_sync_soon(serve)
        return LineClient(ours)

    def connect_tcp(self) -> LineClient:
        host, _, port = self.depot.address.removeprefix("ibp://").rpartition(":")
        return LineClient(socket.create_connection((host, int(port)), timeout=PATIENCE))

    def call(self, function: Callable[[Depot], Any]) -> Any:
        """Runs in the depot's thread."""
        return trio.from_thread.run_sync(function, self.depot, trio_token=self._token)


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class DepotProcess:
    """A real `ibpfs-depot`."""

    tls = False  # how `connect` speaks to it

    def __init__(self, store: Path, *options: str) -> None:
        self.store = store
        self.errors = store.parent / f"{store.name}.log"
        with self.errors.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ibpfs_tools.depot", "--store", str(store), *options],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        greeting = self.process.stdout.readline().decode()
        self.address = greeting.rpartition(" ")[2].strip()

    def connect(self) -> LineClient:
        if self.address.startswith("unix:"):
            return self.connect_unix(Path(self.address.removeprefix("unix:")))
        host, _, port = self.address.removeprefix("ibp://").rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
        return LineClient(_trusting().wrap_socket(sock) if self.tls else sock)

    def client_over(self, sock: socket.socket) -> LineClient:
        return LineClient(sock)

    def connect_unix(self, path: Path) -> LineClient:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return LineClient(sock)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(PATIENCE)


@pytest.fixture
def start_depot(tmp_path: Path) -> Iterator[Callable[..., DepotProcess]]:
    """Starts depots, on `tmp_path/store` unless told otherwise; whatever still runs at the end is killed."""
    started: list[DepotProcess] = []

    def start(*options: str, store: Path | None = None) -> DepotProcess:
        where = options or ("--listen", "127.0.0.1:0")
        started.append(DepotProcess(store or tmp_path / "store", *where))
        return started[-1]

    yield start
    for depot in started:
        depot.stop(signal.SIGKILL)


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Callable[..., InProcessDepot]]:
    with ExitStack() as stack:

        def start(**settings: Any) -> InProcessDepot:
            settings.setdefault("store", tmp_path / "store")
            settings.setdefault("capacity", 1 << 30)
            return stack.enter_context(InProcessDepot(Settings(**settings)))

        yield start


@pytest.fixture(scope="module", params=["in process", "unix socket", "tcp", "tls"])
def any_depot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One depot for all tests of a setting: nothing that a client does may matter to the next one."""
    directory = tmp_path_factory.mktemp("depot")
    store = directory / "store"
    if request.param == "in process":
        with InProcessDepot(Settings(store=store, capacity=1 << 30)) as depot:
            yield depot
        return
    where = ("--unix", str(directory / "sock")) if request.param == "unix socket" else ("--listen", "127.0.0.1:0")
    process = DepotProcess(store, *where, "--capacity", "1G", "--no-permanent")
    process.tls = request.param == "tls"
    yield process
    assert process.stop() == 0
    assert "level=error" not in process.errors.read_text()
    assert "level=warning" not in process.errors.read_text()


class Complaints(logging.Handler):
    """Warnings and worse, kept for the end of a module."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture(scope="module")
def shared_depot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessDepot]:
    """For tests with very many connections, none of which may make the depot complain."""
    complaints = Complaints()
    logger = logging.getLogger("ibpfs.depot.server")
    logger.addHandler(complaints)
    with InProcessDepot(Settings(store=tmp_path_factory.mktemp("shared"), capacity=1 << 30)) as depot:
        yield depot
    logger.removeHandler(complaints)
    assert complaints.texts == []
