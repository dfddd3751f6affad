"""Power cuts, simulated below the depots and the exNode store: what fsync promised is there.

IBPFS_CUTS sets the number of cuts (6), IBPFS_SEED the seed (fresh, printed).
"""

import errno
import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mounted.running import kill_and_wait, processes_of, run, until
from tests.mounted.volumes import Depot, Volume

from .disks import Disk

pytestmark = pytest.mark.faults

CUTS = int(os.environ.get("IBPFS_CUTS", "6"))
SEED = int(os.environ.get("IBPFS_SEED", str(random.SystemRandom().randrange(1 << 32))))


class Load(threading.Thread):
    """Writes, appends, renames and removes, and notes what an fsync that returned 0 has covered."""

    def __init__(self, place: Path, dice: random.Random, label: str) -> None:
        super().__init__()
        self._place = place
        self._dice = dice
        self._label = label
        self.written: dict[str, bytes] = {}  # all that was ever put in a file, by its present name
        self.promised: dict[str, int] = {}  # how much of it an fsync covered
        self.gone: set[str] = set()  # removed, and an fsync came later
        self._going: set[str] = set()  # renamed or removed, and none did yet
        self._count = 0

    def run(self) -> None:
        with suppress(OSError):
            while True:
                self._step()

    def _step(self) -> None:
        what = self._dice.random()
        if what < 0.5 or not self.promised:
            self._count += 1
            self._write(f"{self._label}-{self._count}", os.O_CREAT | os.O_EXCL)
            return
        name = self._dice.choice(sorted(self.promised))
        if what < 0.75:
            self._write(name, os.O_APPEND)
        elif what < 0.9:
            self._count += 1
            self._moving(name, f"{self._label}-{self._count}-renamed")
        else:
            self._moving(name, None)

    def _write(self, name: str, flags: int) -> None:
        data = self._dice.randbytes(self._dice.choice([1, 100, 5000, 70_000, 300_000]))
        descriptor = os.open(self._place / name, os.O_WRONLY | flags, 0o644)
        try:
            self.written[name] = self.written.get(name, b"") + data
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.EIO, "cut off in the middle")
            os.fsync(descriptor)
            self.promised[name] = len(self.written[name])
            self.gone |= self._going  # any fsync covers all changes of names before it
            self._going.clear()
        finally:
            with suppress(OSError):
                os.close(descriptor)

    def _moving(self, name: str, to: str | None) -> None:
        length, data = self.promised.pop(name), self.written.pop(name)
        self._going.add(name)
        if to is None:
            (self._place / name).unlink()
            return
        (self._place / name).rename(self._place / to)
        self.written[to] = data
        descriptor = os.open(self._place / to, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            self.promised[to] = length
            self.gone |= self._going
            self._going.clear()
        finally:
            with suppress(OSError):
                os.close(descriptor)

    def check(self) -> int:
        for name, length in self.promised.items():
            found, data = (self._place / name).read_bytes(), self.written[name]
            assert len(found) >= length, f"{name}: {len(found)} of {length} bytes are left"
            assert found == data[: len(found)], f"{name}: not what was written"
        back = [name for name in self.gone if (self._place / name).exists()]
        assert not back, f"removed, and there again: {back}"
        return len(self.promised)


def cut(disk: Disk, volume: Volume, depots: list[Depot], dice: random.Random) -> Load:
    pids = volume.status()["pids"]
    load = Load(volume.mountpoint, random.Random(dice.random()), f"{dice.randrange(1 << 30):x}")
    load.start()
    time.sleep(dice.uniform(0.3, 2.0))
    disk.ask("cut")
    kill_and_wait(pids)
    run("umount", "-l", volume.mountpoint)
    load.join(60)
    assert not load.is_alive()
    for depot in depots:
        depot.kill()
    kill_and_wait(processes_of(volume.root))
    lost = disk.ask("revert", dice.randrange(1 << 30), dice.choice([0, 0, 0.5, 1]))
    for depot in depots:
        depot.start()
    run("mount.ibpfs", volume.root, volume.mountpoint)
    print(f"{lost} pages lost, {load.check()} files held to their promise")
    return load


@pytest.mark.parametrize("depots", [0, 2], ids=["embedded", "two"])
def test_what_fsync_promised_outlives_a_power_cut(disk: Disk, directory: Path, depots: int) -> None:
    print(f"seed {SEED}, {CUTS} cuts: IBPFS_SEED={SEED} IBPFS_CUTS={CUTS}")
    dice = random.Random(SEED + depots)
    volume = Volume(disk.mountpoint)
    volume.mountpoint = directory / "mnt"
    volume.mountpoint.mkdir()
    started = [Depot(disk.mountpoint / f"depot{number}") for number in range(depots)]
    try:
        named = [word for depot in started for word in ("--depot", depot.address)]
        volume.make(*named, *(["--copies", "2", "--min-copies", "2"] if depots else []))
        run("mount.ibpfs", volume.root, volume.mountpoint)
        loads = [cut(disk, volume, started, dice) for _ in range((CUTS + 1) // 2)]
        assert sum(load.check() for load in loads), "nothing was promised"
        volume.umount()
        until(lambda: run("flock", "-n", volume.root / "run" / "lock", "true", code=None).returncode == 0)
        assert "clean" in volume.fsck("--data", "-n").stdout
    finally:
        kill_and_wait(processes_of(volume.root))
        for depot in started:
            depot.kill()


def test_the_disk_forgets_what_was_not_synced_and_nothing_else(disk: Disk) -> None:
    place = disk.mountpoint
    (place / "synced").write_bytes(b"x" * 10_000)
    sync(place / "synced")
    (place / "only its name").write_bytes(b"x")
    sync(place)
    (place / "only its bytes").write_bytes(b"x")
    sync(place / "only its bytes")
    with (place / "synced").open("r+b") as file:
        file.write(b"y" * 5000)
        file.truncate(9000)
    (place / "synced").rename(place / "renamed")
    disk.ask("cut")
    for change in (lambda: (place / "late").touch(), lambda: sync(place / "renamed")):
        with pytest.raises(OSError, match="Input/output"):
            change()
    assert int(disk.ask("revert", 1, 0)) > 0
    assert sorted(path.name for path in place.iterdir()) == ["only its name", "synced"]
    assert (place / "synced").read_bytes() == b"x" * 10_000
    assert (place / "only its name").read_bytes() == b""


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
