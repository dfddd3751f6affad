"""Nobody reads: neither names nor contents in the depot's store, on the wire, in the cache or in the spool."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from .running import HEARD, command_line, run, until
from .volumes import MakeVolume, Session, Volume, find_secret

pytestmark = pytest.mark.mounted

MARKER = b"The-Quick-Brown-Fox"
NAME = "Jumps-Over-The-Lazy-Dog"


class Relay:
    """A wire with an ear: forwards TCP to a depot and keeps all that passes."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.heard = bytearray()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:  # the depot is down: the wire is not
                    near.close()
                    continue
                self._ends += [near, far]
                for left, right in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._carry, args=(left, right))
                    thread.start()
                    self._threads.append(thread)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                self.heard += data
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._door.close()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()


@pytest.fixture(params=["plain", "tls"])
def wire(session: Session, request: pytest.FixtureRequest) -> Iterator[tuple[Volume, Relay]]:
    """A volume whose only depot is reached through a relay."""
    with ExitStack() as stack:
        place = socket.create_server(("127.0.0.1", 0))
        port = place.getsockname()[1]
        place.close()
        # The depot says that it lives behind the relay: that is what capabilities name.
        relay = Relay("127.0.0.1", port)
        stack.callback(relay.close)
        depot = stack.enter_context(
            session.depot("--listen", f"127.0.0.1:{port}", "--public", f"127.0.0.1:{relay.port}")
        )
        # Without TLS: what is sealed is sealed on every wire. Capabilities are seen there; that is what TLS is for.
        words = ("--no-tls",) if request.param == "plain" else ()
        volume = stack.enter_context(session.volume("--depot", f"ibp://127.0.0.1:{relay.port}", *words))
        volume.depots = [depot]
        yield volume, relay


def write_markers(volume: Volume, count: int = 20) -> None:
    (volume / f"{NAME}-directory").mkdir()
    for number in range(count):
        path = volume / f"{NAME}-directory" / f"{NAME}-{number}"
        path.write_bytes(MARKER * (1 + number * 2000))
        os.setxattr(path, f"user.{NAME}", MARKER)
    (volume / f"{NAME}-link").symlink_to(f"{NAME}-target")


def holders(directory: Path) -> list[Path]:
    """Files below a directory, beside the exNode store's database, that hold a marker."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file() and not path.name.startswith("exnode_store.sqlite"):
            data = path.read_bytes()
            if MARKER in data or NAME.encode() in data or NAME.encode() in os.fsencode(path.relative_to(directory)):
                found.append(path)
    return found


def test_markers_are_nowhere_in_clear(wire: tuple[Volume, Relay]) -> None:
    volume, relay = wire
    write_markers(volume)
    volume.drop_cache()
    for path in (volume / f"{NAME}-directory").iterdir():
        assert path.read_bytes().startswith(MARKER)
    size = sum(path.stat().st_size for path in volume.depots[0].allocations())
    assert size > 7_000_000
    assert len(relay.heard) > 14_000_000  # up and down again
    assert MARKER not in relay.heard
    assert NAME.encode() not in relay.heard
    assert holders(volume.depots[0].store) == []
    assert holders(volume.root) == []
    assert [path for path in (volume.root / "cache").rglob("*") if path.is_file()]


def test_the_plain_volume_shows_that_the_search_finds(volumes: MakeVolume) -> None:
    volume = volumes("--plain")
    write_markers(volume)
    volume.flush()
    assert holders(volume.root / "depot")


def test_spool_and_cache_after_a_kill_with_the_depot_stopped(volumes: MakeVolume) -> None:
    volume = volumes(depots=1)
    volume.expect("does not answer|wait")
    write_markers(volume, 5)
    volume.flush()
    volume.depots[0].stop()
    content = {f"{NAME}-{number}-late": MARKER * 160_000 for number in range(3)}
    for name, data in content.items():
        (volume / name).write_bytes(data)
    volume.kill()
    assert sum(path.stat().st_size for path in volume.spool_files()) > 9_000_000
    assert holders(volume.root) == []
    volume.depots[0].start()
    volume.mount()
    for name, data in content.items():
        assert (volume / name).read_bytes() == data
    volume.flush()
    assert holders(volume.depots[0].store) == []


def test_no_secret_in_logs_errors_and_command_lines(
    wire: tuple[Volume, Relay], request: pytest.FixtureRequest
) -> None:
    """Of a run with trouble in it; the session looks at all others when it ends."""
    volume, relay = wire
    way = request.node.callspec.params["wire"]
    volume.expect("does not answer|wait|cannot be read|no replica|answered with EIO")
    write_markers(volume, 3)
    volume.drop_cache()
    volume.depots[0].kill()
    with suppress(OSError):
        (volume / f"{NAME}-directory" / f"{NAME}-2").read_bytes()
    (volume / "more").write_bytes(b"x" * 100_000)
    lines = b"\n".join(command_line(pid) for pid in volume.processes())
    said = volume.log().encode() + lines + volume.depots[0].errors.read_bytes() + "\n".join(HEARD.errors).encode()
    assert bool(find_secret(bytes(relay.heard), [])) is (way == "plain"), "capabilities pass in clear without TLS alone"
    assert not find_secret(said, volume.secrets())
    assert MARKER not in said
    told = run("ibpfs", "stat", "--json", volume / f"{NAME}-directory" / f"{NAME}-1").stdout
    assert not find_secret(told.encode(), volume.secrets())
    # That a process names its files is no secret on this machine; that it names keys would be.
    volume.depots[0].start()
    until(lambda: volume.status()["depots"][0]["state"] == "ok")


def test_files_are_for_their_owner_alone(volume: Volume) -> None:
    (volume / "f").write_bytes(b"x")
    volume.flush()
    assert volume.root.stat().st_mode & 0o777 == 0o700
    for path in volume.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path
