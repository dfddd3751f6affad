"""Large files: memory that does not grow with them, and sizes that cost nothing."""

import hashlib
import os
import re
import time
from pathlib import Path

import pytest

from .running import run
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

MIB = 1024 * 1024
PEAK = 300 * MIB


def write_large(path: Path, size: int) -> str:
    """Write numbered pseudo-random megabytes; return the digest of all."""
    digest = hashlib.blake2b()
    noise = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            block = number.to_bytes(16, "big") + noise[16:]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def read_large(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def peak_memory(pids: list[int]) -> int:
    """The sum of peak resident sizes, in bytes."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1024 for text in texts)  # type: ignore[index]


def test_three_gigabytes(volumes: MakeVolume) -> None:
    # A cache that cannot hold the file: it comes from the depot, and the cache has to make room all the time.
    volume: Volume = volumes(options="cache_size=512M")
    began = time.monotonic()
    written = write_large(volume / "large", 3072 * MIB)
    wrote = time.monotonic()
    volume.drop_cache()
    dropped = time.monotonic()
    assert volume.status()["cache_bytes"] == 0
    assert read_large(volume / "large") == written
    read = time.monotonic()
    print(f"written {wrote - began:.1f} s, drop-cache {dropped - wrote:.1f} s, read {read - dropped:.1f} s")
    peak = peak_memory(volume.status()["pids"])
    print(f"peak memory {peak / MIB:.0f} MiB")
    assert peak < PEAK
    assert volume.status()["cache_bytes"] <= 512 * MIB
    assert volume.stat("large")["slices"] <= 3072 * 4 + 16  # one per 256 KiB
    began = time.monotonic()
    (volume / "large").unlink()
    assert time.monotonic() - began < 2


def test_an_enormous_sparse_file_costs_nothing(shared: Volume, place: Path) -> None:
    peak = peak_memory(shared.status()["pids"])
    began = time.monotonic()
    run("truncate", "-s", "999999999999999", place / "f")
    assert (place / "f").stat().st_size == 999999999999999
    assert (place / "f").stat().st_blocks == 0
    (place / "f").unlink()
    assert time.monotonic() - began < 0.5
    with (place / "g").open("w+b") as file:
        file.truncate(999999999999999)
        file.seek(500_000_000_000_000)
        file.write(b"in the middle of nothing")
        file.flush()
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 100, 999999999999900) == bytes(99)
    began = time.monotonic()
    os.truncate(place / "g", 1)
    os.truncate(place / "g", 999999999999999)
    with (place / "g").open("rb") as file:
        file.seek(500_000_000_000_000)
        assert file.read(4096) == bytes(4096)
    (place / "g").unlink()
    assert time.monotonic() - began < 0.5
    assert peak_memory(shared.status()["pids"]) - peak < 16 * MIB
