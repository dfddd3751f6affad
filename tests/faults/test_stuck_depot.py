"""A depot that takes connections and answers nothing: work on the others goes on."""

import os
import signal

import pytest

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
