"""`ibpfs compact`: bounds on a real mount, on content that is compared."""

import json
import os
import random
from pathlib import Path

import pytest

from .running import run
from .volumes import Volume, allocation_files

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
    # As many allocations as segments, but for those that are open just now: what compaction freed is released.
    assert len(allocation_files(volume.root / "depot")) <= status["segments"] + 4


def compact(volume: Volume) -> dict[str, int]:
    result: dict[str, int] = json.loads(run("ibpfs", "compact", "--json", volume.mountpoint, timeout=300).stdout)
    return result


def test_random_writes_with_fsyncs(volume: Volume) -> None:
    path = volume / "file"
    model = scatter(path, 64 * MIB, 20_000, 100, 1)
    before, info = volume.stat("file"), path.stat()
    result = compact(volume)
    assert result["slices_before"] == before["slices"] > 1000
    check_bounds(volume, path)
    assert path.stat() == info
    assert path.read_bytes() == model
    volume.drop_cache()
    assert path.read_bytes() == model
    volume.umount()
    volume.fsck("--data", "-n")
