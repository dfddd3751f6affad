"""Advisory locks among the programs of one mount: flock, fcntl by process, fcntl by open file."""

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .calls import checked, error_of, in_child, libc, opened

pytestmark = pytest.mark.mounted

F_OFD_SETLK = 37
BUSY = ("EAGAIN", "EACCES")


@contextmanager
def elsewhere(function: Callable[[], object]) -> Iterator[None]:
    """Another process has called `function` and stays as it is until the block ends."""
    ready, told = os.pipe()
    wait, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            function()
            os.write(told, b"x")
            os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(told)
    os.close(wait)
    assert os.read(ready, 1) == b"x"
    try:
        yield
    finally:
        os.close(end)
        os.close(ready)
        os.waitpid(pid, 0)


def of_open_file(descriptor: int, kind: int, start: int = 0, size: int = 0) -> None:
    lock = ctypes.create_string_buffer(struct.pack("hhqqi4x", kind, 0, start, size, 0))
    checked(libc.fcntl(descriptor, F_OFD_SETLK, lock))


def take(path: Path, how: Callable[..., object], *words: int) -> Callable[[], object]:
    return lambda: how(os.open(path, os.O_RDWR), *words)


@pytest.fixture(params=["flock", "lockf"])
def locker(request: pytest.FixtureRequest) -> Callable[..., object]:
    return {"flock": fcntl.flock, "lockf": fcntl.lockf}[request.param]


def test_exclusive_and_shared(place: Path, locker: Callable[..., object]) -> None:
    f = place / "f"
    f.touch()
    with opened(f) as mine:
        with elsewhere(take(f, locker, fcntl.LOCK_EX)):
            for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                assert error_of(locker, mine, kind | fcntl.LOCK_NB) in BUSY
        locker(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which goes with its process
        locker(mine, fcntl.LOCK_UN)
        with elsewhere(take(f, locker, fcntl.LOCK_SH)):
            locker(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
            assert error_of(locker, mine, fcntl.LOCK_EX | fcntl.LOCK_NB) in BUSY
        locker(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_waiting(place: Path, locker: Callable[..., object]) -> None:
    f = place / "f"
    f.write_bytes(b"0")

    def add() -> None:
        for _ in range(50):
            with opened(f) as descriptor:
                locker(descriptor, fcntl.LOCK_EX)
                number = int(os.pread(descriptor, 10, 0))
                os.pwrite(descriptor, b"%d" % (number + 1), 0)
                locker(descriptor, fcntl.LOCK_UN)

    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                add()
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 3
    assert f.read_bytes() == b"150"


def test_ranges(place: Path) -> None:
    f = place / "f"
    f.write_bytes(b"x" * 100)
    with opened(f) as mine, elsewhere(take(f, fcntl.lockf, fcntl.LOCK_EX, 10, 20)):
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 0)
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 30)
        assert error_of(fcntl.lockf, mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 29) in BUSY
        asked = fcntl.fcntl(mine, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        kind, _, start, size, pid = struct.unpack("hhqqi4x", asked)
        assert (kind, start, size) == (fcntl.F_WRLCK, 20, 10)
        assert pid > 0


def test_those_of_a_process_go_with_any_descriptor(place: Path) -> None:
    f = place / "f"
    f.touch()
    with opened(f) as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX)
        os.close(os.open(f, os.O_RDONLY))  # as POSIX has it
        assert in_child(lambda: error_of(take(f, fcntl.lockf, fcntl.LOCK_EX | fcntl.LOCK_NB))) == ""


def test_those_of_an_open_file_do_not(place: Path) -> None:
    f = place / "f"
    f.touch()
    with opened(f) as mine, opened(f) as second:
        of_open_file(mine, fcntl.F_WRLCK)
        os.close(os.open(f, os.O_RDONLY))
        assert error_of(of_open_file, second, fcntl.F_WRLCK) in BUSY
        of_open_file(mine, fcntl.F_UNLCK)
        of_open_file(second, fcntl.F_WRLCK)
        assert error_of(of_open_file, mine, fcntl.F_RDLCK) in BUSY


def test_flock_belongs_to_the_open_file(place: Path) -> None:
    f = place / "f"
    f.touch()
    with opened(f) as first, opened(f) as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert error_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) in BUSY
        copy = os.dup(first)
        fcntl.flock(copy, fcntl.LOCK_SH)  # the same one: converted
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(copy)
        assert error_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) in BUSY


def test_a_deadlock_is_seen(place: Path) -> None:
    f = place / "f"
    f.write_bytes(b"xx")
    with opened(f) as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX, 1, 0)
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            theirs = os.open(f, os.O_RDWR)
            fcntl.lockf(theirs, fcntl.LOCK_EX, 1, 1)
            os.write(told, b"x")
            fcntl.lockf(theirs, fcntl.LOCK_EX, 1, 0)  # waits for us
            os._exit(0)
        os.read(ready, 1)
        while b"->" not in b"".join(line for line in Path("/proc/locks").read_bytes().splitlines()
                                    if b" %d " % pid in line):  # fmt: skip
            pass
        assert error_of(fcntl.lockf, mine, fcntl.LOCK_EX, 1, 1) in ("EDEADLK", "EDEADLOCK")
        fcntl.lockf(mine, fcntl.LOCK_UN, 1, 0)
        assert os.waitpid(pid, 0)[1] == 0
        os.close(ready)
        os.close(told)


def test_of_directories(place: Path) -> None:
    (place / "d").mkdir()
    with opened(place / "d", os.O_RDONLY) as mine, opened(place / "d", os.O_RDONLY) as second:
        fcntl.flock(mine, fcntl.LOCK_EX)
        assert error_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) in BUSY
