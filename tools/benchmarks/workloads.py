"""What a file system is asked to do while it is timed: one small function per kind of work."""

import io
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ibpfs_tools.benchmarks.systems import Mounted, forget_pages

KIB, MIB = 1 << 10, 1 << 20
LAST_TENTH = "last tenth of the creates in one directory"
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


@dataclass(frozen=True, slots=True)
class Result:
    """More is better in `value`; `cost` is CPU time of the mount's process, in microseconds per operation or MB."""

    workload: str
    value: float
    unit: str
    cost: float


Work = Callable[[Mounted, Size], Iterator[Result]]


class Watch:
    """What has passed since it was made."""

    def __init__(self, system: Mounted) -> None:
        self._system = system
        self._cpu = system.cpu_seconds()
        self._start = time.perf_counter()

    def rate(self, workload: str, count: int) -> Result:
        return self._result(workload, count, "/s")

    def speed(self, workload: str, length: int) -> Result:
        return self._result(workload, length / 1e6, "MB/s")

    def _result(self, workload: str, amount: float, unit: str) -> Result:
        seconds = time.perf_counter() - self._start
        cpu = self._system.cpu_seconds() - self._cpu
        return Result(workload, amount / seconds, unit, cpu * 1e6 / amount)


# --- one large file ---------------------------------------------------------------------------------------


def streams(system: Mounted, size: Size) -> Iterator[Result]:
    path, block = system.directory / "stream", os.urandom(MIB)
    system.store()
    watch = Watch(system)
    with path.open("wb", buffering=0) as file:
        for _ in range(size.stream):
            file.write(block)
        yield watch.speed("write 1 MiB blocks", size.stream * MIB)
        os.fsync(file.fileno())
        yield watch.speed("write 1 MiB blocks, one fsync", size.stream * MIB)
    system.store()
    yield watch.speed("write 1 MiB blocks, until stored", size.stream * MIB)
    yield from _read_back(system, size, path)


def _read_back(system: Mounted, size: Size, path: Path) -> Iterator[Result]:
    states: dict[str, Callable[[], object]] = {
        "cold": system.forget,
        "in the mount's cache": lambda: forget_pages(path),
        "warm": lambda: None,
    }
    for state, prepare in states.items():
        prepare()
        watch = Watch(system)
        _read_all(path)
        yield watch.speed(f"read 1 MiB blocks, {state}", size.stream * MIB)
    for state, prepare in states.items():
        prepare()
        yield _random_reads(system, f"random 4 KiB reads, {state}", path, size.reads)
    system.forget()
    watch = Watch(system)
    with path.open("rb", buffering=0) as file:
        file.read(1)
    yield watch.rate("first byte, cold", 1)


def _read_all(path: Path) -> None:
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _random_reads(system: Mounted, workload: str, path: Path, count: int) -> Result:
    dice = random.Random(1)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        pages = os.fstat(fd).st_size // _FILE
        watch = Watch(system)
        for _ in range(count):
            os.pread(fd, _FILE, dice.randrange(pages) * _FILE)
        return watch.rate(workload, count)
    finally:
        os.close(fd)


def small_writes(system: Mounted, size: Size) -> Iterator[Result]:
    path, data = system.directory / "pages", os.urandom(_FILE)
    count = size.stream * 8
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        watch = Watch(system)
        for page in range(count):
            os.pwrite(fd, data, page * _FILE)
        os.fsync(fd)
        yield watch.speed("write 4 KiB blocks, one fsync", count * _FILE)
        dice = random.Random(2)
        watch = Watch(system)
        for _ in range(size.writes):
            os.pwrite(fd, data, dice.randrange(count) * _FILE)
        os.fsync(fd)
        yield watch.rate("random 4 KiB writes, one fsync", size.writes)
    finally:
        os.close(fd)


# --- many small files -------------------------------------------------------------------------------------


def small_files(system: Mounted, size: Size) -> Iterator[Result]:
    place = system.directory / "small"
    place.mkdir()
    names = [str(place / f"{number:06}") for number in range(size.files)]
    system.store()
    watch = Watch(system)
    create(names)
    yield watch.rate("create 4 KiB files", len(names))
    system.store()
    yield watch.rate("create 4 KiB files, until stored", len(names))
    system.forget()
    yield _each(system, "stat, cold", names, os.stat)
    system.forget()
    yield _each(system, "open + read + close, cold", names, read)
    yield _each(system, "open + read + close, warm", names, read)
    watch = Watch(system)
    for name in names:
        os.rename(name, name + "-")  # noqa: PTH104 - a Path costs more than some file systems
    yield watch.rate("rename", len(names))
    yield _each(system, "unlink", [name + "-" for name in names], os.unlink)
    synced = [str(place / f"synced-{number}") for number in range(size.synced)]
    yield _each(system, "create + fsync each", synced, lambda name: write(name, synced=True))


def create(names: Sequence[str], *, synced: bool = False) -> None:
    for name in names:
        write(name, synced=synced)


def read_each(names: Sequence[str]) -> None:
    for name in names:
        read(name)


def _each(system: Mounted, workload: str, names: Sequence[str], action: Callable[[str], object]) -> Result:
    watch = Watch(system)
    for name in names:
        action(name)
    return watch.rate(workload, len(names))


_DATA = os.urandom(_FILE)


def write(name: str, *, synced: bool = False) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, _DATA)
        if synced:
            os.fsync(fd)
    finally:
        os.close(fd)


def read(name: str) -> None:
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
    tenths = []
    for part in range(10):
        watch = Watch(system)
        create([str(place / f"{part}-{number:06}") for number in range(tenth)])
        tenths.append(watch.rate(LAST_TENTH, tenth))
    yield replace(tenths[-1], value=tenths[-1].value / tenths[0].value, unit="of the first")
    yield _command(system, "ls -l of a large directory", 10 * tenth, ["ls", "-l", str(place)])


# --- a tree -----------------------------------------------------------------------------------------------


def tree(system: Mounted, size: Size) -> Iterator[Result]:
    packed, place = archive(size.tree, mixed_sizes), system.directory / "tree"
    place.mkdir()
    system.store()
    watch = Watch(system)
    extract(packed, place)
    yield watch.rate("untar", size.tree)
    system.store()
    yield watch.rate("untar, until stored", size.tree)
    system.forget()
    yield _command(system, "find + stat, cold", size.tree, ["find", str(place), "-printf", "%s"])
    tar = ["sh", "-c", 'tar -c -C "$1" . | cat >/dev/null', "sh", str(place)]  # to /dev/null alone it reads nothing
    yield _command(system, "tar c, cold", size.tree, tar)
    git = ["git", "-C", str(place), "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]
    _run([*git, "init", "-q"])
    commit = ["sh", "-c", '"$@" add . && "$@" commit -q -m all', "sh", *git]
    yield _command(system, "git add + commit", size.tree, commit)
    system.forget()
    yield _command(system, "git status, cold", size.tree, [*git, "status", "--porcelain"])
    yield _command(system, "rm -rf", size.tree, ["rm", "-rf", str(place)])


def _command(system: Mounted, workload: str, count: int, command: Sequence[str]) -> Result:
    watch = Watch(system)
    _run(command)
    return watch.rate(workload, count)


def _run(command: Sequence[str], given: bytes = b"") -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(command, input=given, check=True, stdout=subprocess.DEVNULL, env=environment)


def extract(packed: bytes, place: Path) -> None:
    _run(["tar", "-x", "-C", str(place)], packed)


def list_directory(place: Path) -> None:
    _run(["ls", "-l", str(place)])


def archive(files: int, length: Callable[[random.Random], int]) -> bytes:
    """Always the same, 25 files to a directory."""
    dice, packed = random.Random(3), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(files):
            entry = tarfile.TarInfo(f"d{number // 25}/f{number}")
            entry.size = length(dice)
            tar.addfile(entry, io.BytesIO(dice.randbytes(entry.size)))
    return packed.getvalue()


def mixed_sizes(dice: random.Random) -> int:
    """From 200 bytes to 128 KiB, the most of them small."""
    return 2 * int(100 * 640 ** dice.random() ** 2)


ALL: tuple[Work, ...] = (streams, small_writes, small_files, tree, large_directory)
