"""`ibpfs compact`: bounds on a real mount, on content that is compared."""

import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from .running import BIN, run, until
from .test_large import peak_memory
from .volumes import MakeVolume, Volume, allocation_files

pytestmark = pytest.mark.mounted

KIB = 1024
MIB = 1024 * KIB


def scatter(path: Path, size: int, writes: int, every: int, seed: int) -> bytearray:
    """Write 4 KiB blocks anywhere in a file of that size, fsync every so many; return what the file holds then."""
    dice, model = random.Random(seed), bytearray(size)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.truncate(descriptor, size)
        for number in range(writes):
            offset, block = dice.randrange(size // (4 * KIB)) * 4 * KIB, dice.randbytes(4 * KIB)
            os.pwrite(descriptor, block, offset)
            model[offset : offset + len(block)] = block
            if number % every == every - 1:
                os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return model


def check_bounds(volume: Volume, path: Path) -> None:
    found, status = volume.stat(path.name), volume.status()
    assert found["slices"] <= found["size"] // (256 * KIB) + 16
    assert found["slices"] <= found["allocated"] // (256 * KIB) + 16
    assert status["segments"] <= status["used_bytes"] // (4 * MIB) + 100
    # As many allocations as segments, but for those that are open just now: what compaction freed is released, once a
    # checkpoint that no longer names it is on the depot.
    until(lambda: len(allocation_files(volume.root / "depot")) <= status["segments"] + 4, 60)


def compact(volume: Volume) -> dict[str, int]:
    result: dict[str, int] = json.loads(run("ibpfs", "compact", "--json", volume.mountpoint, timeout=300).stdout)
    return result


def test_random_writes_with_fsyncs(volume: Volume) -> None:
    path = volume / "file"
    model = scatter(path, 64 * MIB, 20_000, 100, 1)
    before, info = volume.stat("file"), path.stat()
    began = time.monotonic()
    result = compact(volume)
    print(
        f"{before['slices']} slices became {result['slices_after']} in {time.monotonic() - began:.1f} s; "
        f"{volume.status()['segments']} segments; peak memory {peak_memory(volume.status()['pids']) // MIB} MiB"
    )
    assert result["slices_before"] == before["slices"] > 1000
    check_bounds(volume, path)
    assert path.stat() == info
    assert path.read_bytes() == model
    volume.drop_cache()
    assert path.read_bytes() == model
    volume.umount()
    volume.fsck("--data", "-n")


def test_a_kill_in_the_middle(volume: Volume) -> None:
    path, dice = volume / "file", random.Random(2)
    model = scatter(path, 16 * MIB, 3000, 10, 2)
    for _ in range(3):
        with subprocess.Popen([BIN / "ibpfs", "compact", volume.mountpoint], stderr=subprocess.DEVNULL) as compacting:
            time.sleep(0.2 + dice.random() * 0.8)
            volume.kill()
            compacting.wait(20)
        volume.mount()
        assert path.read_bytes() == model
    compact(volume)
    check_bounds(volume, path)
    volume.drop_cache()
    assert path.read_bytes() == model
    volume.umount()
    volume.fsck("--data", "-n")


def test_a_plain_volume_that_is_not_mounted(volumes: MakeVolume) -> None:
    volume = volumes("--plain")
    path = volume / "file"
    model = scatter(path, 8 * MIB, 400, 1, 3)
    os.link(path, volume / "link")
    volume.umount()
    done = run("ibpfs", "compact", volume.root)
    assert " slices of 1 file became 1;" in done.stdout
    assert done.stderr == ""
    assert "no file had too many slices" in run("ibpfs", "compact", volume.root).stdout
    volume.fsck("--data", "-n")
    volume.mount()
    assert (volume / "link").read_bytes() == model


def test_a_depot_is_away(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=2)
    path = volume / "file"
    model = scatter(path, 1 * MIB, 40, 1, 4)
    volume.flush()
    volume.expect("depot ibp://")
    volume.depots[0].kill()
    done = run("ibpfs", "compact", volume.mountpoint, code=1)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"{volume.root}: not compacted: 2 copies are wanted and" in done.stderr
    assert path.read_bytes() == model


def test_there_is_nothing_to_compact(directory: Path) -> None:
    done = run("ibpfs", "compact", directory / "nowhere", code=1)
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere" in done.stderr
