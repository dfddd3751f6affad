"""What stays after an unmount and a mount without cache; what can be done with a file at all is in conformance/."""

import ctypes
import errno
import mmap
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .running import run
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

NOREPLACE, EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@pytest.fixture(params=["warm", "cold"])
def settle(request: pytest.FixtureRequest, shared: Volume) -> Callable[[], None]:
    """What was done is looked at in the living mount, or after an unmount and a mount without cache."""
    if request.param == "warm":
        return lambda: None
    return lambda: shared.remount(cold=True)


def errno_of(function: Callable[..., object], *arguments: object) -> int:
    with pytest.raises(OSError) as raised:  # noqa: PT011 (its errno is the subject)
        function(*arguments)
    return raised.value.errno or 0


class TestTypes:
    def test_every_type_of_file(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "file").write_bytes(b"x")
        (place / "directory").mkdir()
        (place / "link").symlink_to(b"to\xffwhere".decode(errors="surrogateescape"))
        os.mkfifo(place / "pipe", 0o640)
        with socket.socket(socket.AF_UNIX) as door:
            here = os.open(place, os.O_RDONLY)
            door.bind(f"/proc/self/fd/{here}/socket")
            os.close(here)
        os.mknod(place / "block", 0o600 | stat.S_IFBLK, os.makedev(7, 300))
        os.mknod(place / "character", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        settle()
        kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in place.iterdir()}
        assert kinds == {
            "file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK, "pipe": stat.S_IFIFO,
            "socket": stat.S_IFSOCK, "block": stat.S_IFBLK, "character": stat.S_IFCHR,
        }  # fmt: skip
        assert os.fsencode((place / "link").readlink()) == b"to\xffwhere"
        assert (place / "block").stat().st_rdev == os.makedev(7, 300)
        assert (place / "character").write_bytes(b"into the null device") == 20

    def test_link_counts(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "a").write_bytes(b"content")
        (place / "d" / "e").mkdir(parents=True)
        (place / "d" / "b").hardlink_to(place / "a")
        (place / "d" / "f").mkdir()
        (place / "d" / "f").rmdir()
        settle()
        assert (place / "a").stat().st_nlink == 2
        assert (place / "a").stat().st_ino == (place / "d" / "b").stat().st_ino
        assert place.stat().st_nlink == 3
        assert (place / "d").stat().st_nlink == 3
        (place / "d" / "e").rename(place / "e")
        assert (place / "d").stat().st_nlink == 2
        assert place.stat().st_nlink == 4
        (place / "a").unlink()
        assert (place / "d" / "b").read_bytes() == b"content"
        assert (place / "d" / "b").stat().st_nlink == 1


class TestNames:
    def test_names_of_any_bytes(self, place: Path, settle: Callable[[], None]) -> None:
        names = {bytes(byte for byte in range(1, 256) if byte != 0x2F), b"\xff" * 255, b" ", b"-n", b"a\nb", b"...",
                 "Größe".encode(), b"\xc3", b"*?[", b"x" * 255}  # fmt: skip
        for name in names:
            (place / os.fsdecode(name)).write_bytes(name)
        settle()
        assert {os.fsencode(path.name) for path in place.iterdir()} == names
        for name in names:
            assert (place / os.fsdecode(name)).read_bytes() == name


class TestRename:
    def test_noreplace_and_exchange(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "a").write_bytes(b"a")
        (place / "b").write_bytes(b"b")
        (place / "d" / "inside").mkdir(parents=True)
        with pytest.raises(FileExistsError):
            renameat2(place / "a", place / "b", NOREPLACE)
        renameat2(place / "a", place / "c", NOREPLACE)
        renameat2(place / "c", place / "b", EXCHANGE)
        renameat2(place / "b", place / "d", EXCHANGE)
        assert errno_of(renameat2, place / "b", place / "nowhere", EXCHANGE) == errno.ENOENT
        settle()
        assert (place / "c").read_bytes() == b"b"
        assert (place / "d").read_bytes() == b"a"
        assert (place / "b" / "inside").is_dir()


class TestOpen:
    def test_append_by_several_processes(self, place: Path, settle: Callable[[], None]) -> None:
        code = "import os, sys\nf = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
        code += "for n in range(200): os.write(f, f'{sys.argv[2]} {n:05}\\n'.encode())"
        (place / "f").touch()
        writers = [subprocess.Popen([sys.executable, "-c", code, place / "f", str(number)]) for number in range(3)]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        settle()
        lines = (place / "f").read_text().splitlines()
        assert sorted(lines) == sorted(f"{writer} {number:05}" for writer in range(3) for number in range(200))

    def test_unlinked_while_open(self, place: Path, shared: Volume) -> None:
        files = shared.status()["files"]
        with (place / "f").open("w+b") as file:
            file.write(b"before")
            file.flush()
            (place / "f").unlink()
            file.write(b" and after" * 100_000)
            file.flush()
            shared.flush()
            file.seek(0)
            assert file.read() == b"before" + b" and after" * 100_000
            assert os.fstat(file.fileno()).st_nlink == 0
        assert shared.status()["files"] == files


class TestContent:
    def test_shared_writes_through_mmap(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "f").write_bytes(bytes(100_000))
        with (place / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[5:10] = b"hello"
            view[99_000:99_005] = b"world"
            view.flush()
        settle()
        data = (place / "f").read_bytes()
        assert (data[5:10], data[99_000:99_005], len(data)) == (b"hello", b"world", 100_000)

    def test_sparse_files(self, place: Path, shared: Volume, settle: Callable[[], None]) -> None:
        with (place / "f").open("wb") as file:
            file.seek(50_000_000)
            file.write(b"x" * 1_000_000)
            file.truncate(200_000_000)
        shared.flush()
        settle()
        found = (place / "f").stat()
        assert found.st_size == 200_000_000
        assert 1_000_000 <= found.st_blocks * 512 <= 1_100_000
        with (place / "f").open("rb") as file:
            assert file.read(4096) == bytes(4096)
            file.seek(49_999_990)
            assert file.read(20) == bytes(10) + b"x" * 10
            file.seek(199_999_990)
            assert file.read(20) == bytes(10)

    def test_truncate_down_and_up_shows_zeros(self, place: Path, shared: Volume, settle: Callable[[], None]) -> None:
        (place / "f").write_bytes(b"x" * 300_000)
        shared.flush()
        os.truncate(place / "f", 100_001)
        os.truncate(place / "f", 250_000)
        settle()
        assert (place / "f").read_bytes() == b"x" * 100_001 + bytes(149_999)


class TestTimes:
    @pytest.mark.parametrize(
        "when", [-1, -(2**62), 0, 1_234_567_890_123_456_789, 2**62], ids=str
    )
    def test_nanoseconds(self, place: Path, settle: Callable[[], None], when: int) -> None:
        (place / "f").touch()
        (place / "d").mkdir()
        (place / "l").symlink_to("nowhere")
        for name in "fdl":
            os.utime(place / name, ns=(when, when + 1), follow_symlinks=False)
        settle()
        for name in "fdl":
            found = (place / name).lstat()
            assert (found.st_atime_ns, found.st_mtime_ns) == (when, when + 1)

    def test_relatime(self, place: Path, shared: Volume) -> None:
        old = time.time_ns() - 3 * 86400 * 10**9
        (place / "f").write_bytes(b"x" * 5000)
        os.utime(place / "f", ns=(old, old))
        shared.remount()
        (place / "f").read_bytes()
        read = (place / "f").stat().st_atime_ns
        assert read > old
        shared.remount()
        (place / "f").read_bytes()
        assert (place / "f").stat().st_atime_ns == read  # younger than a day, and than mtime


class TestAttributes:
    def test_namespaces(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "f").touch()
        values = {"user.a": b"", "user.b": b"\0\xff" * 3000, "trusted.c": b"c", "security.d": b"d",
                  "user." + "x" * 250: b"long"}  # fmt: skip
        for name, value in values.items():
            os.setxattr(place / "f", name, value)
        assert errno_of(os.setxattr, place / "f", "user.a", b"", os.XATTR_CREATE) == errno.EEXIST
        assert errno_of(os.setxattr, place / "f", "user.none", b"", os.XATTR_REPLACE) == errno.ENODATA
        settle()
        assert set(os.listxattr(place / "f")) == set(values)
        assert {name: os.getxattr(place / "f", name) for name in values} == values
        os.removexattr(place / "f", "user.a")
        assert errno_of(os.getxattr, place / "f", "user.a") == errno.ENODATA

    def test_access_control_lists(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "d").mkdir()
        run("setfacl", "-m", "u:1000:rwx,d:u:1000:rw,d:g::rx,d:o::-", place / "d")
        (place / "d" / "f").touch()
        (place / "d" / "e").mkdir()
        settle()
        on_file = run("getfacl", "-cpn", place / "d" / "f").stdout.split()
        assert "user:1000:rw-" in on_file
        assert "other::---" in on_file
        on_directory = run("getfacl", "-cpn", place / "d" / "e").stdout.split()
        assert "default:user:1000:rw-" in on_directory
        (place / "d" / "f").chmod(0o640)
        assert "mask::r--" in run("getfacl", "-cpn", place / "d" / "f").stdout.split()

    def test_set_group_id_directories(self, place: Path, settle: Callable[[], None]) -> None:
        (place / "d").mkdir()
        os.chown(place / "d", 0, 33)
        (place / "d").chmod(0o2775)
        (place / "d" / "f").touch()
        (place / "d" / "e").mkdir()
        settle()
        assert (place / "d" / "f").stat().st_gid == 33
        assert (place / "d" / "e").stat().st_mode & 0o2000


def as_user(uid: int, code: str, *arguments: object) -> str:
    """Run Python as another user; returns what it prints, or the name of the error number."""
    program = f"import errno, os, sys\ntry:\n    {code}\nexcept OSError as error: print(errno.errorcode[error.errno])"
    words = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", program)
    return run(*words, *arguments).stdout.strip()


class TestPermissions:
    def test_others_are_kept_out_on_request(self, volumes: MakeVolume) -> None:
        volume = volumes(options="noallow_other")
        (volume / "f").write_bytes(b"x")
        volume.mountpoint.chmod(0o777)
        assert as_user(1000, "os.listdir(sys.argv[1])", volume.mountpoint) == "EACCES"


class TestSpace:
    @pytest.fixture
    def two(self, volumes: MakeVolume) -> Volume:
        return volumes("--copies", "2", depots=2)

    def test_statfs_tells_what_the_depots_have(self, two: Volume) -> None:
        free = {depot["free_bytes"] for depot in two.status()["depots"]}
        found = os.statvfs(two.mountpoint)
        assert found.f_bavail * found.f_frsize == pytest.approx(min(free), rel=0.05)
        assert found.f_namemax == 255

    def test_files_are_counted(self, shared: Volume, place: Path) -> None:
        before = os.statvfs(shared.mountpoint)
        (place / "f").touch()
        after = os.statvfs(shared.mountpoint)
        assert after.f_files - after.f_ffree == before.f_files - before.f_ffree + 1
