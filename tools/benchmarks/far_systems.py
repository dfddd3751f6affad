"""Systems whose bytes lie at the other end of a long and narrow link: ibpfs, and what peers can be so far away."""

import getpass
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ibpfs_tools.benchmarks import systems
from ibpfs_tools.benchmarks.systems import OURS, OURS_SPREAD, RCLONE, SSHFS, CannotMount, Mounted, System

_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Link:
    """Milliseconds of a round trip, and Mbit per second each way."""

    rtt: float
    rate: float

    @property
    def bytes_per_second(self) -> float:
        return self.rate * 1e6 / 8


@dataclass(frozen=True, slots=True)
class Far:
    """The near ends of the link, one port for each target, and how often somebody has waited for an answer."""

    ports: Sequence[int]
    turns: Callable[[], int]


@contextmanager
def relayed(link: Link, *targets: str) -> Iterator[Far]:
    words = ["--rtt", str(link.rtt), "--rate", str(link.rate), *targets]
    process = subprocess.Popen(
        [sys.executable, "-m", "ibpfs_tools.benchmarks.relay", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout

    def turns() -> int:
        process.send_signal(signal.SIGUSR1)
        answer = select.poll()
        answer.register(said, select.POLLIN)
        if not answer.poll(_PATIENCE * 1000):
            raise CannotMount("the relay does not answer")
        return int(said.readline())

    try:
        yield Far([int(port) for port in said.readline().split()], turns)
    finally:
        process.terminate()
        process.communicate()


def far_systems(link: Link) -> tuple[System, ...]:
    return (
        System(OURS, lambda place: _ibpfs(place, link, 1)),
        System(OURS_SPREAD, lambda place: _ibpfs(place, link, 3, "--copies", "2")),
        System(SSHFS, lambda place: _sshfs(place, link), ("sshfs", "sshd", "ssh-keygen")),
        System(RCLONE, lambda place: _rclone(place, link), ("rclone", "sshd", "ssh-keygen")),
    )


@contextmanager
def _ibpfs(place: Path, link: Link, depots: int, *words: str) -> Iterator[Mounted]:
    """All depots at the other end of one link."""
    with ExitStack() as stack:
        urls = [stack.enter_context(systems.depot(place / f"depot-{number}")) for number in range(depots)]
        far = stack.enter_context(relayed(link, *(url.rpartition("/")[2] for url in urls)))
        near = [word for port in far.ports for word in ("--depot", f"ibp://127.0.0.1:{port}")]
        mounted = stack.enter_context(systems.ibpfs(place, [*near, *words]))
        yield replace(mounted, turns=far.turns)


@contextmanager
def _sshfs(place: Path, link: Link) -> Iterator[Mounted]:
    with (
        systems.sshd(place) as (port, key),
        relayed(link, f"127.0.0.1:{port}") as far,
        systems.sshfs(place, far.ports[0], key) as mounted,
    ):
        yield replace(mounted, turns=far.turns)


@contextmanager
def _rclone(place: Path, link: Link) -> Iterator[Mounted]:
    with systems.sshd(place) as (port, key), relayed(link, f"127.0.0.1:{port}") as far:
        remote = (
            f"[far]\ntype = sftp\nhost = 127.0.0.1\nport = {far.ports[0]}\n"
            f"user = {getpass.getuser()}\nkey_file = {key}\n"
        )
        with systems.rclone(place, f"far:{place / 'backing'}", remote) as mounted:
            yield replace(mounted, turns=far.turns)
