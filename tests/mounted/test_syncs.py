"""An fsync is a sync: on the depot's disk, and of the store that says so. Counted by strace."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from .running import until
from .volumes import MakeVolume

pytestmark = pytest.mark.mounted

COUNT = 100


class Tracer:
    """strace on a running process, for its syncs."""

    def __init__(self, pid: int, log: Path) -> None:
        self.log = log
        words = ["strace", "-f", "-q", "-y", "-e", "trace=fsync,fdatasync,sync_file_range,syncfs", "-e", "signal=none"]
        self.process = subprocess.Popen([*words, "-o", log, "-p", str(pid)], stderr=subprocess.DEVNULL)
        until(lambda: all(self._watches(task) for task in Path(f"/proc/{pid}/task").iterdir()))

    def _watches(self, task: Path) -> bool:
        """It attaches to the threads one after another. One that has just ended needs nobody."""
        try:
            return f"TracerPid:\t{self.process.pid}\n" in (task / "status").read_text()
        except OSError:
            return True

    def stop(self, path: str = "") -> int:
        """Of files with this in their paths."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        calls = [line for line in self.log.read_text().splitlines() if "sync(" in line and "resumed" not in line]
        print(self.log.name, len(calls))
        return sum(path in line for line in calls)


@pytest.mark.root
@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "own"])
def test_serial_fsyncs_of_new_files(volumes: MakeVolume, directory: Path, embedded: bool) -> None:
    volume = volumes(depots=0 if embedded else 1)
    depot = volume.embedded_depot()[0] if embedded else volume.depots[0].pid
    tracers = [Tracer(volume.status()["pid"], directory / "mount"), Tracer(depot, directory / "depot")]
    try:
        for number in range(COUNT):
            with (volume / f"{number}").open("wb") as file:
                file.write(b"x" * 100)
                file.flush()
                os.fsync(file.fileno())
    finally:
        spool_syncs, depot_syncs = tracers[0].stop(".spool"), tracers[1].stop()
        store_syncs = sum("datasync(" in line and "-wal>" in line for line in tracers[0].log.read_text().splitlines())
    assert store_syncs >= COUNT
    assert depot_syncs >= COUNT
    # The first commit into a segment waits for nobody: where it comes before the sync, nothing of the spool is needed.
    assert spool_syncs >= COUNT - 10


@pytest.mark.root
def test_writes_of_a_synchronous_file(volumes: MakeVolume, directory: Path) -> None:
    volume = volumes()
    tracer = Tracer(volume.embedded_depot()[0], directory / "depot")
    try:
        file = os.open(volume / "f", os.O_CREAT | os.O_WRONLY | os.O_DSYNC)
        for _ in range(20):
            os.write(file, b"x" * 100)
        os.close(file)
    finally:
        syncs = tracer.stop()
    assert syncs >= 20
    assert volume.status()["dirty_bytes"] == 0


@pytest.mark.parametrize(("option", "waits"), [("sync=close", True), ("sync=write", True), ("async", False)])
def test_what_waits(volumes: MakeVolume, option: str, waits: bool) -> None:
    volume = volumes(options=option)
    for number in range(5):
        (volume / f"{number}").write_bytes(b"x" * 1000)
        if waits:
            assert volume.status()["dirty_bytes"] == 0
