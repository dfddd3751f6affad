"""A mount that was asked for with `ro`: what changes nothing works, everything else gives EROFS and changes nothing."""

import os
import stat
from pathlib import Path

import pytest

from tests.mounted.volumes import MakeVolume, Volume

from .calls import EXCHANGE, error_of, inside, opened, renameat2, utimensat

pytestmark = pytest.mark.mounted


@pytest.fixture
def frozen(volumes: MakeVolume) -> Volume:
    volume = volumes()
    (volume / "f").write_bytes(b"content")
    (volume / "d" / "inside").mkdir(parents=True)
    (volume / "l").symlink_to("f")
    os.mkfifo(volume / "p")
    os.setxattr(volume / "f", "user.a", b"x")
    volume.umount()
    volume.mount("-o", "ro")
    return volume


CALLS = {
    "open for writing": lambda: os.open("f", os.O_WRONLY),
    "open O_TRUNC": lambda: os.open("f", os.O_RDONLY | os.O_TRUNC),
    "create": lambda: os.open("new", os.O_RDONLY | os.O_CREAT),
    "mkdir": lambda: os.mkdir("new"),
    "mkfifo": lambda: os.mkfifo("new"),
    "mknod": lambda: os.mknod("new", stat.S_IFREG | 0o600),
    "symlink": lambda: os.symlink("f", "new"),
    "link": lambda: os.link("f", "new"),
    "unlink": lambda: os.unlink("f"),
    "rmdir": lambda: os.rmdir("d/inside"),
    "rename": lambda: os.rename("f", "new"),
    "rename over": lambda: os.rename("f", "l"),
    "exchange": lambda: renameat2("f", "l", EXCHANGE),
    "truncate": lambda: os.truncate("f", 0),
    "chmod": lambda: os.chmod("f", 0o600),
    "chown": lambda: os.chown("f", -1, os.getegid()),
    "lchown": lambda: os.lchown("l", -1, os.getegid()),
    "utimes": lambda: os.utime("f"),
    "utimes of a symlink": lambda: utimensat("l", (0, 0), (0, 0), 0x100),
    "setxattr": lambda: os.setxattr("f", "user.b", b"x"),
    "removexattr": lambda: os.removexattr("f", "user.a"),
    "removing a list": lambda: os.removexattr("f", "system.posix_acl_access"),
}


def snapshot(tree: Path) -> dict[str, tuple[int, ...]]:
    found = {".": tree.stat(), **{str(path): path.lstat() for path in sorted(tree.rglob("*"))}}
    return {name: (*one[:7], one.st_atime_ns, one.st_mtime_ns, one.st_ctime_ns) for name, one in found.items()}


def test_every_change_is_refused(frozen: Volume) -> None:
    before = snapshot(frozen.mountpoint)
    with inside(frozen.mountpoint):
        found = {name: error_of(call) for name, call in CALLS.items()}
        assert found == dict.fromkeys(CALLS, "EROFS")
        assert not os.access("f", os.W_OK)
        with opened("f", os.O_RDONLY) as descriptor:
            assert error_of(os.fchmod, descriptor, 0o600) == "EROFS"
            assert error_of(os.setxattr, descriptor, "user.a", b"y") == "EROFS"
    assert snapshot(frozen.mountpoint) == before


def test_what_others_say_comes_first(frozen: Volume) -> None:
    with inside(frozen.mountpoint):
        assert error_of(os.mkdir, "d") == "EEXIST"
        assert error_of(os.open, "none/new", os.O_CREAT) == "ENOENT"
        assert error_of(os.open, "f", os.O_RDONLY | os.O_CREAT | os.O_EXCL) == "EEXIST"


def test_reading_works_and_leaves_no_trace(frozen: Volume) -> None:
    before = snapshot(frozen.mountpoint)
    with inside(frozen.mountpoint):
        assert Path("l").read_bytes() == b"content"
        assert os.readlink("l") == "f"
        assert sorted(os.listdir(".")) == ["d", "f", "l", "p"]
        assert os.getxattr("f", "user.a") == b"x"
        with opened("p", os.O_RDWR) as fifo:  # what goes through it is nowhere on the volume
            os.write(fifo, b"through")
            assert os.read(fifo, 10) == b"through"
        with opened("f", os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
        assert os.statvfs(".").f_flag & os.ST_RDONLY
    assert snapshot(frozen.mountpoint) == before
