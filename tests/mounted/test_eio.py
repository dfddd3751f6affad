"""EIO on a real mount: one line in the log that says which file, segment, depot and why."""

import errno
import os
import re
import signal
from pathlib import Path

import pytest

from tests.faults.test_stuck_depot import read_directly

from .running import until
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted


def eio_of(volume: Volume, path: Path) -> str:
    """What the log says of a read that ends with EIO."""
    with pytest.raises(OSError, match="Input/output") as caught:
        read_directly(path, 4096)
    assert caught.value.errno == errno.EIO
    lines = [line for line in volume.log().splitlines() if "is answered with EIO" in line]
    return lines[-1]


def test_a_read_that_no_depot_can_serve(volumes: MakeVolume) -> None:
    volume = volumes(depots=1, options="deadline=3")
    volume.expect("does not answer|EIO|segment|depot")
    (volume / "directory").mkdir()
    file = volume / "directory" / "file"
    file.write_bytes(os.urandom(100_000))
    volume.drop_cache()
    (depot,) = volume.depots
    named = rf"read of /directory/file is answered with EIO: .*segment \d+.*{re.escape(depot.address)}"
    os.kill(depot.pid, signal.SIGSTOP)
    try:
        assert re.search(named + ".* allocation [0-9a-f]{8}", eio_of(volume, file))
    finally:
        os.kill(depot.pid, signal.SIGCONT)
    depot.kill()
    line = eio_of(volume, file)
    assert re.search(r"read of /directory/file is answered with EIO: segment \d+: allocation [0-9a-f]{8}: depot", line)
    assert "127.0.0.1" in line
    for path in depot.allocations():
        path.unlink()
    depot.start()
    until(lambda: volume.status()["depots"][0]["state"] == "ok")
    lost = rf"EIO: segment \d+: depot {re.escape(depot.address)} allocation [0-9a-f]{{8}}: "
    assert re.search(lost, eio_of(volume, file))
