"""System calls that Python has no function for, other users, and errno by name."""

import ctypes
import errno
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x100, 0x400, 0x1000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
FICLONE = 0x40049409

Location = str | os.PathLike[str]
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir64.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long


def checked(result: int, *what: object) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *what)
    return result


def renameat2(old: Location, new: Location, flags: int) -> None:
    checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def linkat(old: bytes, old_directory: int, new: Location, flags: int) -> None:
    checked(libc.linkat(old_directory, old, AT_FDCWD, os.fsencode(new), flags), new)


def fallocate(descriptor: int, mode: int, start: int, size: int) -> None:
    checked(libc.fallocate(descriptor, mode, ctypes.c_long(start), ctypes.c_long(size)))


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def utimensat(path: Location, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    checked(libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


class _FileHandle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def name_to_handle_at(path: Location, flags: int = 0) -> tuple[int, bytes]:
    """The type and the bytes of a file handle, as an NFS server would give them to its clients."""
    handle, mount = _FileHandle(size=128), ctypes.c_int()
    checked(libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), flags), path)
    return handle.type, bytes(handle.data[: handle.size])


def open_by_handle_at(mount: int, handle: tuple[int, bytes], flags: int) -> int:
    kind, data = handle
    wanted = _FileHandle(size=len(data), type=kind, data=(ctypes.c_ubyte * 128)(*data))
    return checked(libc.open_by_handle_at(mount, ctypes.byref(wanted), flags))


class Stream:
    """A directory stream of the C library: readdir, telldir, seekdir, rewinddir."""

    def __init__(self, path: Location) -> None:
        self._stream = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
        assert self._stream

    def __iter__(self) -> Iterator[str]:
        while (name := self.next()) is not None:
            yield name

    def next(self) -> str | None:
        entry = libc.readdir64(self._stream)
        return None if entry is None else os.fsdecode(ctypes.string_at(entry + 19))  # behind ino, off, reclen, type

    def tell(self) -> int:
        found: int = libc.telldir(self._stream)
        return found

    def seek(self, place: int) -> None:
        libc.seekdir(self._stream, ctypes.c_long(place))

    def rewind(self) -> None:
        libc.rewinddir(self._stream)

    def close(self) -> None:
        libc.closedir(self._stream)


def error_of(function: Callable[..., object], *arguments: Any, **more: Any) -> str:
    """The name of the errno that a call gives; empty when it works."""
    try:
        function(*arguments, **more)
    except OSError as error:
        return name_of(error)
    return ""


def name_of(error: OSError) -> str:
    # Two names of one number; POSIX allows that, Linux has it.
    return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno or 0]


def become(uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
    os.setgroups(groups) if os.geteuid() == 0 else None
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def give_up_capability(number: int) -> None:
    """Of this process, for good: capset(2), of version 3."""
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable
    checked(libc.capget(header, sets))
    sets[number // 32 * 3] &= ~(1 << number % 32)
    sets[number // 32 * 3 + 1] &= ~(1 << number % 32)
    checked(libc.capset(header, sets))


def enter_user_namespace() -> None:
    """A new one, for good, in which this user is root."""
    uid = os.geteuid()
    checked(libc.unshare(0x10000000))  # CLONE_NEWUSER
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")


def as_user(uid: int, function: Callable[[], object], gid: int | None = None, groups: tuple[int, ...] = ()) -> Any:
    """What a function returns when another user calls it; an OSError gives its errno's name."""

    def call() -> object:
        become(uid, uid if gid is None else gid, groups)
        try:
            return function()
        except OSError as error:
            return name_of(error)

    return in_child(call)


def in_child(function: Callable[[], object]) -> Any:
    """What a function returns in a process of its own; AssertionError with its traceback when it raises."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _answer(writing, function)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    assert answer, "the process of the call died"
    failed, result = pickle.loads(answer)
    assert not failed, result
    return result


def _answer(pipe: int, function: Callable[[], object]) -> None:
    try:
        answer = pickle.dumps((False, function()))
    except BaseException:
        answer = pickle.dumps((True, traceback.format_exc()))
    with os.fdopen(pipe, "wb") as file:
        file.write(answer)
    os._exit(0)


@contextmanager
def opened(path: Location, flags: int = os.O_RDWR, mode: int = 0o666) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in a directory, for names relative to it."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
