"""A depot that takes connections and answers nothing: work on the others goes on."""

import mmap
import os
import signal
from pathlib import Path

import pytest

from tests.mounted.running import until
from tests.mounted.volumes import MakeVolume

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("when", ["before the first segment", "with a segment open"])
def test_fsync_waits_for_no_stuck_depot(volumes: MakeVolume, when: str) -> None:
    """Its deadline is half of what one command may take."""
    volume = volumes(depots=3, options="deadline=10")
    volume.expect("does not answer|append refused|not released yet|wait in the spool|lack")
    if when == "with a segment open":
        (volume / "first").write_bytes(b"x" * 100_000)
        volume.flush()
    os.kill(volume.depots[1].pid, signal.SIGSTOP)
    try:
        for number in range(3):
            with (volume / f"file{number}").open("wb") as file:
                file.write(os.urandom(300_000))
                os.fsync(file.fileno())
    finally:
        os.kill(volume.depots[1].pid, signal.SIGCONT)
    assert "safe on the depots" not in volume.flush().stderr
    volume.umount()
    assert "clean" in volume.fsck("--data", "-n").stdout


def test_a_read_waits_for_no_stuck_depot(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=2, options="deadline=10")
    volume.expect("does not answer")
    (volume / "file").write_bytes(b"x" * 100_000)
    volume.flush()
    for depot in volume.depots:  # one of them is asked first
        until(lambda: "failed" not in {one["state"] for one in volume.status()["depots"]})
        volume.drop_cache()
        os.kill(depot.pid, signal.SIGSTOP)
        try:
            assert read_directly(volume / "file", 4096) == b"x" * 4096
        finally:
            os.kill(depot.pid, signal.SIGCONT)


def read_directly(path: Path, length: int) -> bytes:
    """One request of the kernel, which it does not repeat."""
    buffer = mmap.mmap(-1, length)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(descriptor, [buffer], 0) == length
        return buffer[:]
    finally:
        os.close(descriptor)
