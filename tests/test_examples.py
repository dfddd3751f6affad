"""The programs of docs/examples, as a person runs them, against real depots."""

import contextlib
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.depot.conftest import DepotProcess
from tests.mounted.running import until
from tests.mounted.volumes import allocation_files

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DepotProcess]:
    with contextlib.contextmanager(run_depots)(tmp_path_factory.mktemp("depot"), 1) as (started,):
        yield started


def run_depots(directory: Path, count: int) -> Iterator[list[DepotProcess]]:
    options = ("--listen", "127.0.0.1:0", "--capacity", "10M")
    started = [DepotProcess(directory / f"store{number}", *options) for number in range(count)]
    yield started
    for depot in started:
        depot.stop(signal.SIGKILL)


@pytest.fixture
def depots(tmp_path: Path) -> Iterator[list[DepotProcess]]:
    """To be killed."""
    yield from run_depots(tmp_path, 3)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *words: object) -> "subprocess.Popen[str]":
        line = [sys.executable, str(EXAMPLES / program), *map(str, words)]
        started.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def end(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out


def test_a_forecast(start: Start, depot: DepotProcess, tmp_path: Path) -> None:
    end(start("weather.py", "sensor", depot.address, "queue", "--count", 250, "--every", 0))
    assert (tmp_path / "queue").stat().st_mode & 0o777 == 0o600
    said = end(start("weather.py", "forecast", "queue", "--wait", 0))
    assert "from 100 measurements up to number 249; 150 missed" in said
    assert end(start("weather.py", "forecast", "queue", "--wait", 0)) == "no measurements\n"


def test_a_forecast_while_it_is_measured(start: Start, depot: DepotProcess, tmp_path: Path) -> None:
    sensor = start("weather.py", "sensor", depot.address, "queue", "--count", 150, "--every", 0.005)
    until(lambda: (tmp_path / "queue").exists() and (tmp_path / "queue").stat().st_size, what="the queue")
    said = end(start("weather.py", "forecast", "queue", "--wait", 2))
    end(sensor)
    found = re.search(r"from (\d+) measurements up to number (\d+); (\d+) missed", said)
    assert found is not None, said
    seen, last, missed = map(int, found.groups())
    assert seen + missed == last + 1  # a sensor that was held up for long may go on behind the forecast


def test_a_pipeline(start: Start, depot: DepotProcess, tmp_path: Path) -> None:
    """More than the FIFO holds: the producer waits for the consumer."""
    data = random.Random(3).randbytes(500_000)
    (tmp_path / "in").write_bytes(data)
    before = allocation_files(depot.store)
    producer = start("pipeline.py", "produce", depot.address, "pipe", "in")
    until(lambda: (tmp_path / "pipe").exists() and (tmp_path / "pipe").stat().st_size, what="the pipe")
    assert end(start("pipeline.py", "consume", "pipe", "out")) == "received 500000 bytes\n"
    assert end(producer) == "sent 500000 bytes\n"
    assert (tmp_path / "out").read_bytes() == data
    assert allocation_files(depot.store) == before


def test_a_checkpointed_computation(start: Start, depots: list[DepotProcess], tmp_path: Path) -> None:
    """The process and the depot that it used first are killed: it goes on from the copy on another one."""
    first, second, third = (depot.address for depot in depots)
    words = ("state", 30_000, "--every", 200)
    killed = start("checkpoint.py", *words, "--depot", first, "--depot", second)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "begins at 2\n"
    while int(killed.stdout.readline().removeprefix("done up to ")) < 2002:
        pass
    killed.kill()
    killed.wait(20)
    depots[0].stop(signal.SIGKILL)
    said = end(start("checkpoint.py", *words, "--depot", first, "--depot", third)).splitlines()
    assert said[0] == f"resumed from {second}"
    assert 2000 < int(said[1].removeprefix("begins at ")) < 30_000
    assert said[-1] == "3245 primes below 30000"
    depots[1].stop(signal.SIGKILL)
    said = end(start("checkpoint.py", *words, "--depot", third)).splitlines()
    assert said == [f"resumed from {third}", "begins at 30000", "3245 primes below 30000"]
