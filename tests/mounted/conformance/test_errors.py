"""Every call on files and the errors that POSIX and the man pages give it, on the local file system and on ours."""

import mmap
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.users import UID

from .calls import (
    AT_EMPTY_PATH,
    EXCHANGE,
    NOREPLACE,
    as_user,
    error_of,
    in_child,
    inside,
    linkat,
    opened,
    renameat2,
    utimensat,
)

pytestmark = pytest.mark.mounted

LONG = "n" * 256
#: 4095 bytes are the longest path; each part of this one is short enough.
LONG_PATH = "/".join(["p" * 200] * 21)

Call = Callable[[], object]


def path_calls(name: str) -> dict[str, Call]:
    """Every call that takes a path, with one that leads through `name`."""
    return {
        "open": lambda: os.close(os.open(name, os.O_RDONLY)),
        "create": lambda: os.close(os.open(name, os.O_RDWR | os.O_CREAT)),
        "opendir": lambda: os.listdir(name),
        "mkdir": lambda: os.mkdir(name),
        "rmdir": lambda: os.rmdir(name),
        "unlink": lambda: os.unlink(name),
        "mkfifo": lambda: os.mkfifo(name),
        "symlink": lambda: os.symlink("target", name),
        "readlink": lambda: os.readlink(name),
        "link from": lambda: os.link(name, "new"),
        "link to": lambda: os.link("f", name),
        "rename from": lambda: os.rename(name, "new"),
        "rename to": lambda: os.rename("f", name),
        "exchange": lambda: renameat2(name, "f", EXCHANGE),
        "stat": lambda: os.stat(name),
        "lstat": lambda: os.lstat(name),
        "access": lambda: os.access(name, os.F_OK) or os.stat(name),
        "chmod": lambda: os.chmod(name, 0o600),
        "chown": lambda: os.chown(name, os.geteuid(), -1),
        "lchown": lambda: os.lchown(name, os.geteuid(), -1),
        "truncate": lambda: os.truncate(name, 1),
        "utimes": lambda: os.utime(name),
        "statvfs": lambda: os.statvfs(name),
        "setxattr": lambda: os.setxattr(name, "user.a", b"x"),
        "getxattr": lambda: os.getxattr(name, "user.a"),
        "listxattr": lambda: os.listxattr(name),
        "removexattr": lambda: os.removexattr(name, "user.a"),
        "chdir": lambda: os.chdir(name),
        "bind": lambda: bind(name),
    }


def bind(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(name)


def planted(place: Path) -> Path:
    """One of everything, made by whoever runs the test."""
    (place / "f").write_bytes(b"content")
    (place / "d").mkdir()
    (place / "d" / "inside").write_bytes(b"x")
    (place / "e").mkdir()
    (place / "l").symlink_to("f")
    (place / "to-d").symlink_to("d")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "p")
    return place


def answers(tree: Path, calls: dict[str, Call], *, without: tuple[str, ...] = ()) -> dict[str, str]:
    with inside(tree):
        return {name: error_of(call) for name, call in calls.items() if name not in without}


def same(calls: dict[str, Call], error: str, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    return dict.fromkeys([name for name in calls if name not in without], error)


class TestEveryCall:
    def test_a_name_that_is_too_long(self, place: Path) -> None:
        tree = planted(place)
        calls, no_socket = path_calls(LONG), ("bind",)  # whose address is shorter than a name
        assert answers(tree, calls, without=no_socket) == same(calls, "ENAMETOOLONG", without=no_socket)

    def test_a_path_that_is_too_long(self, place: Path) -> None:
        tree = planted(place)
        calls, no_socket = path_calls(LONG_PATH), ("bind",)
        assert answers(tree, calls, without=no_socket) == same(calls, "ENAMETOOLONG", without=no_socket)

    def test_a_way_through_a_file(self, place: Path) -> None:
        tree = planted(place)
        calls = path_calls("f/name")
        assert answers(tree, calls) == same(calls, "ENOTDIR")

    def test_a_way_through_nothing(self, place: Path) -> None:
        tree = planted(place)
        calls = path_calls("nothing/name")
        assert answers(tree, calls) == same(calls, "ENOENT")

    def test_a_way_through_a_loop(self, place: Path) -> None:
        tree = planted(place)
        calls = path_calls("loop/name")
        assert answers(tree, calls) == same(calls, "ELOOP")

    def test_an_empty_path(self, place: Path) -> None:
        tree = planted(place)
        calls = path_calls("")
        found = answers(tree, calls, without=("bind",))
        assert found == same(calls, "ENOENT", without=("bind",))

    def test_a_name_that_is_not_there(self, place: Path) -> None:
        tree = planted(place)
        makes = {"create", "mkdir", "mkfifo", "symlink", "link to", "bind", "rename to"}
        calls = {name: call for name, call in path_calls("nothing").items() if name not in makes}
        assert answers(tree, calls) == same(calls, "ENOENT")

    def test_a_name_that_is_there(self, place: Path) -> None:
        tree = planted(place)
        calls = {name: call for name, call in path_calls("d").items() if name in
                 ("mkdir", "mkfifo", "symlink", "link to")}  # fmt: skip
        assert answers(tree, calls) == same(calls, "EEXIST")
        with inside(tree):
            assert error_of(bind, "f") == "EADDRINUSE"

    def test_a_way_through_a_directory_that_one_may_not_search(self, place: Path) -> None:
        tree = planted(place)
        (tree / "d").chmod(0o600)
        calls = path_calls("d/inside")
        root = os.geteuid() == 0  # who may search every directory
        found = as_user(UID, lambda: answers(tree, calls)) if root else answers(tree, calls)
        assert found == same(calls, "EACCES")
        (tree / "d").chmod(0o755)


def bad_rename(old: str, new: str, flags: int = 0) -> Call:
    return lambda: renameat2(old, new, flags)


#: call -> what it gives in the directory of `tree`
CALLS: dict[str, tuple[Call, str]] = {
    # open
    "open O_CREAT|O_EXCL of a file": (lambda: os.open("f", os.O_CREAT | os.O_EXCL), "EEXIST"),
    "open O_CREAT|O_EXCL of a symlink": (lambda: os.open("l", os.O_CREAT | os.O_EXCL), "EEXIST"),
    "open O_CREAT|O_EXCL of a dangling symlink": (lambda: os.open("dangling", os.O_CREAT | os.O_EXCL), "EEXIST"),
    "open O_CREAT of a directory": (lambda: os.open("d", os.O_CREAT), "EISDIR"),
    "open a directory for writing": (lambda: os.open("d", os.O_WRONLY), "EISDIR"),
    "open a directory O_TRUNC": (lambda: os.open("d", os.O_RDWR | os.O_TRUNC), "EISDIR"),
    "open O_DIRECTORY of a file": (lambda: os.open("f", os.O_DIRECTORY), "ENOTDIR"),
    "open O_NOFOLLOW of a symlink": (lambda: os.open("l", os.O_NOFOLLOW), "ELOOP"),
    "open O_NOFOLLOW|O_DIRECTORY of a symlink": (lambda: os.open("to-d", os.O_NOFOLLOW | os.O_DIRECTORY), "ENOTDIR"),
    "open a loop": (lambda: os.open("loop", os.O_RDONLY), "ELOOP"),
    "open a dangling symlink": (lambda: os.open("dangling", os.O_RDONLY), "ENOENT"),
    "open a FIFO that nobody reads": (lambda: os.open("p", os.O_WRONLY | os.O_NONBLOCK), "ENXIO"),
    "open a file as a directory": (lambda: os.open("f/", os.O_RDONLY), "ENOTDIR"),
    "create with a slash behind": (lambda: os.open("new/", os.O_CREAT | os.O_RDWR), "EISDIR"),
    "listdir of a file": (lambda: os.listdir("f"), "ENOTDIR"),
    # names
    "mkdir .": (lambda: os.mkdir("."), "EEXIST"),
    "mkdir ..": (lambda: os.mkdir(".."), "EEXIST"),
    "mkdir d/..": (lambda: os.mkdir("d/.."), "EEXIST"),
    "mkdir of a dangling symlink": (lambda: os.mkdir("dangling"), "EEXIST"),
    "rmdir of a directory with entries": (lambda: os.rmdir("d"), "ENOTEMPTY"),
    "rmdir of a file": (lambda: os.rmdir("f"), "ENOTDIR"),
    "rmdir of a symlink to a directory": (lambda: os.rmdir("to-d"), "ENOTDIR"),
    "rmdir .": (lambda: os.rmdir("e/."), "EINVAL"),
    "rmdir ..": (lambda: os.rmdir("e/.."), "ENOTEMPTY"),
    "unlink of a directory": (lambda: os.unlink("e"), "EISDIR"),
    "unlink with a slash behind": (lambda: os.unlink("f/"), "ENOTDIR"),
    "link of a directory": (lambda: os.link("d", "new"), "EPERM"),
    "link with a slash behind": (lambda: os.link("f", "new/"), "ENOENT"),
    "link over a directory": (lambda: os.link("f", "e"), "EEXIST"),
    "symlink to nothing": (lambda: os.symlink("", "new"), "ENOENT"),
    "symlink to a path too long": (lambda: os.symlink("x" * 4096, "new"), "ENAMETOOLONG"),
    "readlink of a file": (lambda: os.readlink("f"), "EINVAL"),
    "readlink of a directory": (lambda: os.readlink("d"), "EINVAL"),
    "mknod of a directory": (lambda: os.mknod("new", stat.S_IFDIR | 0o700), "EPERM"),
    "mknod of nothing known": (lambda: os.mknod("new", 0o070000 | 0o600), "EINVAL"),
    # rename
    "rename into itself": (bad_rename("d", "d/below"), "EINVAL"),
    "rename .": (bad_rename("d/.", "new"), "EBUSY"),
    "rename ..": (bad_rename("d/..", "new"), "EBUSY"),
    "rename over .": (bad_rename("e", "d/."), "EBUSY"),
    "rename a file over a directory": (bad_rename("f", "e"), "EISDIR"),
    "rename a directory over a file": (bad_rename("d", "f"), "ENOTDIR"),
    "rename a directory over a symlink to one": (bad_rename("e", "to-d"), "ENOTDIR"),
    "rename over a directory with entries": (bad_rename("e", "d"), "ENOTEMPTY"),
    "rename a directory over its parent": (bad_rename("d/inside", "d"), "ENOTEMPTY"),
    "rename a file to a name with a slash": (bad_rename("f", "new/"), "ENOTDIR"),
    "rename NOREPLACE of what is there": (bad_rename("f", "l", NOREPLACE), "EEXIST"),
    "rename NOREPLACE to itself": (bad_rename("f", "f", NOREPLACE), "EEXIST"),
    "exchange with nothing": (bad_rename("f", "new", EXCHANGE), "ENOENT"),
    "exchange with what is inside": (bad_rename("d", "d/inside", EXCHANGE), "EINVAL"),
    "exchange with what it is inside of": (bad_rename("d/inside", "d", EXCHANGE), "EINVAL"),
    "rename EXCHANGE and NOREPLACE": (bad_rename("f", "l", EXCHANGE | NOREPLACE), "EINVAL"),
    "rename with unknown flags": (bad_rename("f", "new", 64), "EINVAL"),
    # attributes
    "truncate to less than nothing": (lambda: os.truncate("f", -1), "EINVAL"),
    "truncate of a directory": (lambda: os.truncate("d", 0), "EISDIR"),
    "truncate of a FIFO": (lambda: os.truncate("p", 0), "EINVAL"),
    "truncate of a loop": (lambda: os.truncate("loop", 0), "ELOOP"),
    "utimensat with too many nanoseconds": (lambda: utimensat("f", (0, 10**9), (0, 0)), "EINVAL"),
    "chmod of a loop": (lambda: os.chmod("loop", 0o600), "ELOOP"),
    # extended attributes
    "setxattr of an empty name": (lambda: os.setxattr("f", "", b"x"), "ERANGE"),
    "setxattr without a namespace": (lambda: os.setxattr("f", "colour", b"x"), "EOPNOTSUPP"),
    "setxattr of a namespace alone": (lambda: os.setxattr("f", "user.", b"x"), "EINVAL"),
    "setxattr of a name too long": (lambda: os.setxattr("f", "user." + "x" * 251, b"x"), "ERANGE"),
    "setxattr of a value too long": (lambda: os.setxattr("f", "user.a", b"x" * 65537), "E2BIG"),
    "setxattr with unknown flags": (lambda: os.setxattr("f", "user.a", b"x", 8), "EINVAL"),
    "setxattr XATTR_REPLACE of nothing": (lambda: os.setxattr("f", "user.a", b"x", os.XATTR_REPLACE), "ENODATA"),
    "setxattr user. of a symlink": (lambda: os.setxattr("l", "user.a", b"x", follow_symlinks=False), "EPERM"),
    "setxattr user. of a FIFO": (lambda: os.setxattr("p", "user.a", b"x"), "EPERM"),
    "getxattr of nothing": (lambda: os.getxattr("f", "user.none"), "ENODATA"),
    "removexattr of nothing": (lambda: os.removexattr("f", "user.none"), "ENODATA"),
}  # fmt: skip


class TestCalls:
    def test_each(self, place: Path) -> None:
        tree = planted(place)
        before = contents(tree)
        with inside(tree):
            found = {name: error_of(call) for name, (call, _) in CALLS.items()}
        assert found == {name: error for name, (_, error) in CALLS.items()}
        assert contents(tree) == before  # and nothing was changed by what failed

    def test_on_descriptors(self, place: Path) -> None:
        tree = planted(place)
        with opened(tree / "f", os.O_RDONLY) as reading, opened(tree / "f", os.O_WRONLY) as writing, \
                opened(tree / "d", os.O_RDONLY) as directory, opened(tree / "f", os.O_PATH) as path:  # fmt: skip
            calls: dict[str, tuple[Call, str]] = {
                "write where one reads": (lambda: os.write(reading, b"x"), "EBADF"),
                "read where one writes": (lambda: os.read(writing, 1), "EBADF"),
                "read a directory": (lambda: os.read(directory, 1), "EISDIR"),
                "write a directory": (lambda: os.write(directory, b"x"), "EBADF"),
                "truncate where one reads": (lambda: os.ftruncate(reading, 1), "EINVAL"),
                "truncate a directory": (lambda: os.ftruncate(directory, 1), "EINVAL"),
                "truncate to less than nothing": (lambda: os.ftruncate(writing, -1), "EINVAL"),
                "pread before the begin": (lambda: os.pread(reading, 1, -1), "EINVAL"),
                "pwrite before the begin": (lambda: os.pwrite(writing, b"x", -1), "EINVAL"),
                "seek before the begin": (lambda: os.lseek(reading, -1, os.SEEK_SET), "EINVAL"),
                "seek with no known origin": (lambda: os.lseek(reading, 0, 99), "EINVAL"),
                "seek a hole behind the end": (lambda: os.lseek(reading, 100, os.SEEK_HOLE), "ENXIO"),
                "seek data behind the end": (lambda: os.lseek(reading, 100, os.SEEK_DATA), "ENXIO"),
                "pwrite behind all that is": (lambda: os.pwrite(writing, b"x", 2**63 - 1), "EINVAL EFBIG"),
                "fallocate of nothing": (lambda: os.posix_fallocate(writing, 0, 0), "EINVAL"),
                "fallocate where one reads": (lambda: os.posix_fallocate(reading, 0, 1), "EBADF"),
                "read of a path": (lambda: os.read(path, 1), "EBADF"),
                "fchmod of a path": (lambda: os.fchmod(path, 0o600), "EBADF"),
                "fsync of a path": (lambda: os.fsync(path), "EBADF"),
                "fchdir of a file": (lambda: os.fchdir(reading), "ENOTDIR"),
                "openat of a file": (lambda: os.open("x", os.O_RDONLY, dir_fd=reading), "ENOTDIR"),
                "unlinkat of a file": (lambda: os.unlink("x", dir_fd=reading), "ENOTDIR"),
            }
            found = {name: error_of(call) for name, (call, _) in calls.items()}
            wanted = {name: errors for name, (_, errors) in calls.items()}
            assert {name: found[name] for name in found if found[name] not in wanted[name].split()} == {}

    def test_mapping(self, place: Path) -> None:
        tree = planted(place)
        with opened(tree / "f", os.O_RDONLY) as reading, opened(tree / "d", os.O_RDONLY) as directory:
            assert error_of(mmap.mmap, reading, 7, access=mmap.ACCESS_WRITE) == "EACCES"
            assert error_of(mmap.mmap, directory, 1, access=mmap.ACCESS_READ) == "ENODEV"

    def test_longest_names_and_paths_work(self, place: Path) -> None:
        tree = planted(place)
        name = "n" * 255
        (tree / name).write_bytes(b"x")
        (tree / name).rename(tree / ("m" * 255))
        (tree / "deep").symlink_to("x" * 4095)
        assert len(os.readlink(tree / "deep")) == 4095
        # A path of 4,095 bytes, the longest that a call takes, and a directory that only shorter ones lead to.
        here = os.open(tree, os.O_RDONLY)
        try:
            for _ in range(30):
                os.mkdir("y" * 250, dir_fd=here)
                below = os.open("y" * 250, os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = below
        finally:
            os.close(here)
        longest = "/".join(["y" * 250] * 16)
        longest += "/" * (4095 - len(longest))
        with inside(tree):
            assert len(longest) == 4095
            assert stat.S_ISDIR(os.stat(longest).st_mode)
            assert error_of(os.stat, longest + "/") == "ENAMETOOLONG"

    def test_a_file_without_a_name_gets_none(self, place: Path) -> None:
        tree = planted(place)
        with opened(tree / "f") as descriptor:
            (tree / "f").unlink()
            error = error_of(linkat, b"", descriptor, tree / "again", AT_EMPTY_PATH)
            assert error == "ENOENT"
            assert error_of(os.link, f"/proc/self/fd/{descriptor}", tree / "again") in ("ENOENT", "EXDEV")

    def test_beyond_what_a_process_may_write(self, place: Path) -> None:
        tree = planted(place)
        def write() -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            with opened(tree / "f") as descriptor:
                assert os.pwrite(descriptor, b"x" * 5000, 9000) == 1000  # what still may be
                assert error_of(os.ftruncate, descriptor, 10_001) == "EFBIG"
                return error_of(os.pwrite, descriptor, b"x", 10_000)

        assert in_child(write) == "EFBIG"
        assert (tree / "f").stat().st_size == 10_000

    def test_a_program_that_runs_is_not_written(self, place: Path) -> None:
        tree = planted(place)
        shutil.copy("/bin/sleep", tree / "sleep")
        process = subprocess.Popen([tree / "sleep", "60"])
        try:
            assert error_of(os.open, tree / "sleep", os.O_WRONLY) == "ETXTBSY"
            assert error_of(os.truncate, tree / "sleep", 0) == "ETXTBSY"
        finally:
            process.kill()
            process.wait()
        with opened(tree / "sleep", os.O_WRONLY):
            assert error_of(os.execv, tree / "sleep", ["sleep", "0"]) == "ETXTBSY"
        (tree / "text").write_bytes(b"no program")
        assert error_of(os.execv, tree / "text", ["text"]) == "EACCES"
        (tree / "text").chmod(0o755)
        assert error_of(os.execv, tree / "text", ["text"]) == "ENOEXEC"

    def test_across_file_systems(self, place: Path) -> None:
        tree = planted(place)
        shm = Path("/dev/shm")
        assert error_of(os.link, tree / "f", shm / "ibpfs-test-x") == "EXDEV"
        assert error_of(os.rename, tree / "f", shm / "ibpfs-test-x") == "EXDEV"

    def test_a_directory_in_use_is_removed(self, place: Path) -> None:
        tree = planted(place)
        with inside(tree):
            os.chdir("e")
            os.rmdir(tree / "e")
            calls = {
                "list": lambda: os.listdir("."),
                "create": lambda: os.open("new", os.O_CREAT | os.O_RDWR),
                "mkdir": lambda: os.mkdir("new"),
                "link": lambda: os.link(tree / "f", "new"),
                "rename": lambda: os.rename(tree / "f", "new"),
                "symlink": lambda: os.symlink("x", "new"),
                "getcwd": os.getcwd,
            }
            found = {name: error_of(call) for name, call in calls.items()}
            assert found == {**dict.fromkeys(calls, "ENOENT"), "list": ""}
            assert os.stat(".").st_nlink == 0
            os.chdir("..")
            os.chdir(tree)


def contents(tree: Path) -> set[tuple[str, int, int]]:
    return {(str(path), path.lstat().st_mode, path.lstat().st_size) for path in tree.rglob("*")}
