"""What a file system over a long and narrow link is asked to do while it is timed."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ibpfs_tools.benchmarks.chart import TURNS
from ibpfs_tools.benchmarks.systems import Mounted
from ibpfs_tools.benchmarks.workloads import (
    MIB,
    Result,
    Size,
    Watch,
    archive,
    create,
    extract,
    list_directory,
    read_each,
    write,
)

UNTAR, KNOWN, CACHED = "untar of small files", "ls -l of a known directory", "open + read + close, cached"
COLD, AFTER = "read 1 MiB blocks, cold", "read 1 MiB blocks, cold, after 1 s"
STORED = "write 1 MiB blocks, until stored"


def small_tree(system: Mounted, size: Size) -> Iterator[Result]:
    """Files of 4 KiB."""
    place, packed = system.directory / "small", archive(size.files, lambda _: 4096)
    place.mkdir()
    system.store()
    watch = Watch(system)
    extract(packed, place)
    yield watch.rate(UNTAR, size.files)
    system.store()
    yield watch.rate(f"{UNTAR}, until stored", size.files)
    files = sorted(str(path) for path in place.rglob("f*"))
    some = Path(files[0]).parent
    list_directory(some)
    yield from _counted(system, KNOWN, 1, lambda: list_directory(some))
    system.forget()
    yield from _counted(system, "open + read + close, cold", len(files), lambda: read_each(files))
    yield from _counted(system, CACHED, len(files), lambda: read_each(files))


def stream(system: Mounted, size: Size) -> Iterator[Result]:
    path, block = system.directory / "stream", os.urandom(MIB)
    system.store()
    watch = Watch(system)
    with path.open("wb", buffering=0) as file:
        for _ in range(size.stream):
            file.write(block)
    system.store()
    yield watch.speed(STORED, size.stream * MIB)
    system.forget()
    yield from _read_cold(system, path)
    system.forget()
    yield from _counted(system, "first byte, cold", 1, lambda: _first_byte(path))
    system.forget()
    yield from _counted(system, "random 4 KiB reads, cold", 20, lambda: _at_random(path, 20))


def _read_cold(system: Mounted, path: Path) -> Iterator[Result]:
    """And what comes after the first second, which belongs to connections and to read-ahead that opens."""
    buffer, length, early, late_from = bytearray(MIB), 0, 0, 0.0
    watch, began = Watch(system), time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            length += got
            if not late_from and time.perf_counter() - began >= 1:
                early, late_from = length, time.perf_counter()
    ended = time.perf_counter()
    yield watch.speed(COLD, length)
    if late_from and length > early:
        yield Result(AFTER, (length - early) / 1e6 / (ended - late_from), "MB/s", float("nan"))


def synced(system: Mounted, size: Size) -> Iterator[Result]:
    place = system.directory / "synced"
    place.mkdir()
    system.store()
    names = [str(place / f"{number}") for number in range(size.synced)]
    yield from _counted(system, "create + fsync, first", 1, lambda: write(names[0], synced=True))
    yield from _counted(system, "create + fsync each", len(names) - 1, lambda: create(names[1:], synced=True))


def _counted(system: Mounted, workload: str, count: int, action: Callable[[], object]) -> Iterator[Result]:
    """The rate, and how many times somebody waited for an answer from afar meanwhile."""
    before = system.turns() if system.turns else 0
    watch = Watch(system)
    action()
    yield watch.rate(workload, count)
    if system.turns:
        yield Result(f"{workload}: {TURNS}", float(system.turns() - before), TURNS, float("nan"))


def _first_byte(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        file.read(1)


def _at_random(path: Path, count: int) -> None:
    """Far from each other, so that no two lie in what is fetched with one of them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        step = os.fstat(fd).st_size // count
        for number in range(count):
            os.pread(fd, 4096, (number * 7 % count) * step + step // 2)
    finally:
        os.close(fd)


ALL = (small_tree, synced, stream)
