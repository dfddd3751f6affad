"""What a file system is asked to do while it is timed: one small function per kind of work."""

import io
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ibpfs_tools.benchmarks.systems import Mounted, forget_pages

KIB, MIB = 1 << 10, 1 << 20
_FILE = 4 * KIB


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done."""

    stream: int = 256  # MiB
    reads: int = 2000  # of 4 KiB at random
    writes: int = 1500
    files: int = 1000
    synced: int = 200
    tree: int = 1000  # files
    many: int = 0  # files in one directory


Result = tuple[str, float, str]  # workload, value, unit: more is better
Work = Callable[[Mounted, Size], Iterator[Result]]


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _rate(count: float, watch: Watch) -> tuple[float, str]:
    return count / watch.seconds(), "/s"


def _speed(mebibytes: float, watch: Watch) -> tuple[float, str]:
    return mebibytes * MIB / 1e6 / watch.seconds(), "MB/s"


# --- one large file ---------------------------------------------------------------------------------------


def streams(system: Mounted, size: Size) -> Iterator[Result]:
    path, block = system.directory / "stream", os.urandom(MIB)
    system.store()
    watch = Watch()
    with path.open("wb", buffering=0) as file:
        for _ in range(size.stream):
            file.write(block)
    yield "write 1 MiB blocks", *_speed(size.stream, watch)
    system.store()
    yield "write 1 MiB blocks, until stored", *_speed(size.stream, watch)
    yield from _read_back(system, size, path)


def _read_back(system: Mounted, size: Size, path: Path) -> Iterator[Result]:
    states: dict[str, Callable[[], object]] = {
        "cold": system.forget,
        "in the mount's cache": lambda: forget_pages(path),
        "warm": lambda: None,
    }
    for state, prepare in states.items():
        prepare()
        watch = Watch()
        _read_all(path)
        yield f"read 1 MiB blocks, {state}", *_speed(size.stream, watch)
    for state, prepare in states.items():
        prepare()
        yield f"random 4 KiB reads, {state}", *_random_reads(path, size.reads)
    system.forget()
    watch = Watch()
    with path.open("rb", buffering=0) as file:
        file.read(1)
    yield "first byte, cold", *_rate(1, watch)


def _read_all(path: Path) -> None:
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _random_reads(path: Path, count: int) -> tuple[float, str]:
    dice = random.Random(1)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        pages = os.fstat(fd).st_size // _FILE
        watch = Watch()
        for _ in range(count):
            os.pread(fd, _FILE, dice.randrange(pages) * _FILE)
        return _rate(count, watch)
    finally:
        os.close(fd)


def small_writes(system: Mounted, size: Size) -> Iterator[Result]:
    path, data = system.directory / "pages", os.urandom(_FILE)
    count = size.stream * 8
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        watch = Watch()
        for page in range(count):
            os.pwrite(fd, data, page * _FILE)
        os.fsync(fd)
        yield "write 4 KiB blocks, one fsync", *_speed(count * _FILE / MIB, watch)
        dice = random.Random(2)
        watch = Watch()
        for _ in range(size.writes):
            os.pwrite(fd, data, dice.randrange(count) * _FILE)
        os.fsync(fd)
        yield "random 4 KiB writes, one fsync", *_rate(size.writes, watch)
    finally:
        os.close(fd)


# --- many small files -------------------------------------------------------------------------------------


def small_files(system: Mounted, size: Size) -> Iterator[Result]:
    place = system.directory / "small"
    place.mkdir()
    names = [str(place / f"{number:06}") for number in range(size.files)]
    system.store()
    watch = Watch()
    _create(names)
    yield "create 4 KiB files", *_rate(len(names), watch)
    system.store()
    yield "create 4 KiB files, until stored", *_rate(len(names), watch)
    system.forget()
    yield "stat, cold", *_each(names, os.stat)
    system.forget()
    yield "open + read + close, cold", *_each(names, _read)
    yield "open + read + close, warm", *_each(names, _read)
    watch = Watch()
    for name in names:
        os.rename(name, name + "-")  # noqa: PTH104 - a Path costs more than some file systems
    yield "rename", *_rate(len(names), watch)
    yield "unlink", *_each([name + "-" for name in names], os.unlink)
    synced = [str(place / f"synced-{number}") for number in range(size.synced)]
    yield "create + fsync each", *_each(synced, lambda name: _write(name, synced=True))


def _create(names: Sequence[str]) -> None:
    for name in names:
        _write(name)


def _each(names: Sequence[str], action: Callable[[str], object]) -> tuple[float, str]:
    watch = Watch()
    for name in names:
        action(name)
    return _rate(len(names), watch)


_DATA = os.urandom(_FILE)


def _write(name: str, *, synced: bool = False) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, _DATA)
        if synced:
            os.fsync(fd)
    finally:
        os.close(fd)


def _read(name: str) -> None:
    fd = os.open(name, os.O_RDONLY)
    try:
        os.read(fd, _FILE)
    finally:
        os.close(fd)


def large_directory(system: Mounted, size: Size) -> Iterator[Result]:
    """As a share: the last tenth against the first."""
    if not size.many:
        return
    place = system.directory / "many"
    place.mkdir()
    tenth = size.many // 10
    rates = []
    for part in range(10):
        watch = Watch()
        _create([str(place / f"{part}-{number:06}") for number in range(tenth)])
        rates.append(tenth / watch.seconds())
    yield "last tenth of the creates in one directory", rates[-1] / rates[0], "of the first"
    watch = Watch()
    _run(["ls", "-l", str(place)])
    yield "ls -l of a large directory", *_rate(10 * tenth, watch)


# --- a tree -----------------------------------------------------------------------------------------------


def tree(system: Mounted, size: Size) -> Iterator[Result]:
    archive, place = _archive(size.tree), system.directory / "tree"
    place.mkdir()
    system.store()
    watch = Watch()
    _run(["tar", "-x", "-C", str(place)], archive)
    yield "untar", *_rate(size.tree, watch)
    system.store()
    yield "untar, until stored", *_rate(size.tree, watch)
    system.forget()
    yield "find + stat, cold", *_command(size.tree, ["find", str(place), "-printf", "%s"])
    yield "tar c, cold", *_command(size.tree, ["sh", "-c", 'tar -c -C "$1" . | cat >/dev/null', "sh", str(place)])
    git = ["git", "-C", str(place), "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]
    _run([*git, "init", "-q"])
    yield "git add + commit", *_command(size.tree, ["sh", "-c", '"$@" add . && "$@" commit -q -m all', "sh", *git])
    system.forget()
    yield "git status, cold", *_command(size.tree, [*git, "status", "--porcelain"])
    yield "rm -rf", *_command(size.tree, ["rm", "-rf", str(place)])


def _command(count: int, command: Sequence[str]) -> tuple[float, str]:
    watch = Watch()
    _run(command)
    return _rate(count, watch)


def _run(command: Sequence[str], given: bytes = b"") -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(command, input=given, check=True, stdout=subprocess.DEVNULL, env=environment)


def _archive(files: int) -> bytes:
    """Always the same: sizes from 100 bytes to 64 KiB, the most of them small, 25 to a directory."""
    dice, packed = random.Random(3), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(files):
            data = dice.randbytes(int(100 * 640 ** dice.random() ** 2)).hex().encode()
            entry = tarfile.TarInfo(f"d{number // 25}/f{number}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


ALL: tuple[Work, ...] = (streams, small_writes, small_files, tree, large_directory)
