"""Symbolic links, FIFOs, sockets and devices in use; flags of open files; what inotify tells."""

import ctypes
import fcntl
import os
import select
import socket
import stat
import struct
from pathlib import Path

import pytest

from .calls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    checked,
    error_of,
    inside,
    libc,
    linkat,
    opened,
)

pytestmark = pytest.mark.mounted

#: What inotify(7) tells.
CREATE, REMOVE, MODIFY, ATTRIB, CLOSED, FROM, TO = 0x100, 0x200, 0x2, 0x4, 0x8, 0x40, 0x80
IS_DIRECTORY = 0x40000000


class TestSymbolicLinks:
    @pytest.mark.parametrize("size", [1, 59, 60, 61, 255, 256, 4095])
    def test_of_every_length(self, place: Path, size: int) -> None:
        (place / "l").symlink_to("t" * size)
        assert (place / "l").lstat().st_size == size
        assert os.readlink(place / "l") == "t" * size

    def test_a_small_buffer_gets_the_begin(self, place: Path) -> None:
        (place / "l").symlink_to("0123456789")
        buffer = ctypes.create_string_buffer(b"." * 8)
        assert checked(libc.readlink(os.fsencode(place / "l"), buffer, 5)) == 5
        assert buffer.raw[:8] == b"01234..."
        assert error_of(lambda: checked(libc.readlink(os.fsencode(place / "l"), buffer, 0))) == "EINVAL"

    def test_forty_in_a_row_are_followed(self, place: Path) -> None:
        (place / "0").write_bytes(b"x")
        for number in range(1, 42):
            (place / f"{number}").symlink_to(f"{number - 1}")
        assert (place / "40").read_bytes() == b"x"
        assert error_of(os.stat, place / "41") == "ELOOP"

    def test_has_no_mode_of_its_own_to_change(self, place: Path) -> None:
        (place / "l").symlink_to("nowhere")
        path = os.fsencode(place / "l")
        assert error_of(lambda: checked(libc.fchmodat(AT_FDCWD, path, 0o600, AT_SYMLINK_NOFOLLOW))) == "EOPNOTSUPP"
        assert stat.S_IMODE((place / "l").lstat().st_mode) == 0o777

    def test_gets_names_of_its_own(self, place: Path) -> None:
        (place / "f").touch()
        (place / "l").symlink_to("f")
        os.link(place / "l", place / "second", follow_symlinks=False)
        linkat(os.fsencode(place / "l"), AT_FDCWD, place / "of-f", AT_SYMLINK_FOLLOW)
        with opened(place / "l", os.O_PATH | os.O_NOFOLLOW) as descriptor:
            if os.geteuid() == 0:
                linkat(b"", descriptor, place / "third", AT_EMPTY_PATH)
                (place / "third").unlink()
        assert os.readlink(place / "second") == "f"
        assert ((place / "l").lstat().st_nlink, (place / "f").stat().st_nlink) == (2, 2)
        (place / "l").unlink()
        assert os.readlink(place / "second") == "f"


class TestInUse:
    def test_fifo(self, place: Path) -> None:
        os.mkfifo(place / "p")
        reading = os.open(place / "p", os.O_RDONLY | os.O_NONBLOCK)
        with opened(place / "p", os.O_WRONLY) as writing:
            os.write(writing, b"through")
            (place / "p").rename(place / "q")
            assert os.read(reading, 10) == b"through"
            assert error_of(os.read, reading, 1) == "EAGAIN"
            assert error_of(os.lseek, reading, 0, os.SEEK_SET) == "ESPIPE"
            assert error_of(os.ftruncate, writing, 0) == "EINVAL"
        assert os.read(reading, 1) == b""
        assert (place / "q").stat().st_size == 0
        os.close(reading)

    def test_socket(self, place: Path) -> None:
        with inside(place), socket.socket(socket.AF_UNIX) as door, socket.socket(socket.AF_UNIX) as guest:
            door.bind("s")
            assert error_of(guest.connect, "s") == "ECONNREFUSED"
            door.listen()
            os.rename("s", "t")
            guest.connect("t")
            host, _ = door.accept()
            with host:
                guest.send(b"hello")
                assert host.recv(10) == b"hello"
            assert error_of(os.open, "t", os.O_RDWR) == "ENXIO"
            with socket.socket(socket.AF_UNIX) as late:
                os.unlink("t")
                assert error_of(late.connect, "t") == "ENOENT"

    @pytest.mark.root
    def test_devices(self, roots: Path) -> None:
        os.mknod(roots / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.mknod(roots / "none", stat.S_IFCHR | 0o666, os.makedev(4000, 77_777))
        os.mknod(roots / "most", stat.S_IFBLK | 0o600, os.makedev(4095, (1 << 20) - 1))
        with opened(roots / "zero") as descriptor:
            assert os.read(descriptor, 3) == bytes(3)
            assert os.write(descriptor, b"gone") == 4
        for name, number in (("none", os.makedev(4000, 77_777)), ("most", os.makedev(4095, (1 << 20) - 1))):
            assert (roots / name).stat().st_rdev == number
            assert error_of(os.open, roots / name, os.O_RDONLY) == "ENXIO"


class TestWhatTheKernelKeepsToItself:
    """As docs/conformance.md says it."""

    def test_what_goes_through_a_fifo_leaves_no_time(self, ours: Path) -> None:
        os.mkfifo(ours / "p")
        os.utime(ours / "p", ns=(10**18, 10**18))
        before = (ours / "p").stat()
        with opened(ours / "p") as fifo:
            os.write(fifo, b"x")
            os.read(fifo, 1)
        after = (ours / "p").stat()
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)

    def test_files_are_always_ready(self, ours: Path) -> None:
        with opened(ours / "f", os.O_CREAT | os.O_RDWR) as descriptor, select.epoll() as poll:
            poll.register(descriptor, select.EPOLLIN | select.EPOLLOUT)
            assert poll.poll(0) == [(descriptor, select.EPOLLIN | select.EPOLLOUT)]

    def test_there_is_no_time_of_birth(self, ours: Path) -> None:
        answer = ctypes.create_string_buffer(256)
        checked(libc.statx(AT_FDCWD, os.fsencode(ours), 0, 0xFFF, answer))
        assert struct.unpack_from("I", answer)[0] & 0xFFF == 0x7FF


class TestFlags:
    def test_what_is_asked_for_is_told(self, place: Path) -> None:
        (place / "f").touch()
        asked = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DIRECT, os.O_WRONLY | os.O_SYNC,
                 os.O_WRONLY | os.O_DSYNC, os.O_RDONLY | os.O_NOATIME, os.O_RDWR | os.O_NONBLOCK)  # fmt: skip
        for flags in asked:
            with opened(place / "f", flags | os.O_CREAT | os.O_TRUNC * bool(flags & os.O_RDWR)) as descriptor:
                told = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~0o100000  # O_LARGEFILE
                assert oct(told) == oct(flags)

    def test_they_change_while_it_is_open(self, place: Path) -> None:
        (place / "f").write_bytes(b"content")
        with opened(place / "f") as descriptor:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND | os.O_DIRECT)
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_APPEND | os.O_DIRECT) == os.O_APPEND | os.O_DIRECT
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
            os.pwrite(descriptor, b"!", 0)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
            os.pwrite(descriptor, b"C", 0)
        assert (place / "f").read_bytes() == b"Content!"


def test_inotify_tells_of_every_change(place: Path) -> None:
    watcher = checked(libc.inotify_init1(os.O_NONBLOCK))
    everything = CREATE | REMOVE | MODIFY | ATTRIB | CLOSED | FROM | TO
    checked(libc.inotify_add_watch(watcher, os.fsencode(place), everything))
    with opened(place / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"x")
        os.fchmod(descriptor, 0o600)
    (place / "f").rename(place / "g")
    os.setxattr(place / "g", "user.a", b"")
    (place / "d").mkdir()
    (place / "d").rmdir()
    (place / "g").unlink()
    told, data = [], os.read(watcher, 65_536)
    os.close(watcher)
    while data:
        _, mask, _, size = struct.unpack_from("iIII", data)
        told.append((mask, data[16 : 16 + size].rstrip(b"\0").decode()))
        data = data[16 + size :]
    assert told == [
        (CREATE, "f"), (MODIFY, "f"), (ATTRIB, "f"), (CLOSED, "f"), (FROM, "f"), (TO, "g"), (ATTRIB, "g"),
        (CREATE | IS_DIRECTORY, "d"), (REMOVE | IS_DIRECTORY, "d"), (REMOVE, "g"),
    ]  # fmt: skip
