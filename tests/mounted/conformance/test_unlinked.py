"""Files and directories that have lost their name and are still in use."""

import mmap
import os
import stat
from pathlib import Path

import pytest

from tests.mounted.running import until
from tests.mounted.volumes import Volume

from .calls import error_of, opened

pytestmark = pytest.mark.mounted


def test_everything_works_on_its_descriptor(place: Path) -> None:
    with opened(place / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"before")
        (place / "f").unlink()
        assert os.fstat(descriptor).st_nlink == 0
        assert os.write(descriptor, b" and after") == 10
        os.ftruncate(descriptor, 100_000)
        assert os.fstat(descriptor).st_size == 100_000
        os.pwrite(descriptor, b"end", 99_997)
        os.fchmod(descriptor, 0o4711)
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o4711
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.utime(descriptor, ns=(5, 7))
        assert os.fstat(descriptor).st_mtime_ns == 7
        os.setxattr(descriptor, "user.a", b"x")
        assert os.getxattr(descriptor, "user.a") == b"x"
        os.fsync(descriptor)
        with mmap.mmap(descriptor, 0) as view:
            assert view[:16] == b"before and after"
            view[:6] = b"mapped"
            view.flush()
        assert os.pread(descriptor, 20, 99_990) == bytes(7) + b"end"
        assert os.pread(descriptor, 6, 0) == b"mapped"
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        assert os.read(again, 6) == b"mapped"
        os.close(again)
        os.ftruncate(descriptor, 0)
        assert os.fstat(descriptor).st_blocks == 0
        assert not (place / "f").exists()
    (place / "f").touch(exist_ok=False)  # the name is free


def test_the_name_belongs_to_another_at_once(place: Path) -> None:
    with opened(place / "f", os.O_CREAT | os.O_RDWR) as first:
        os.write(first, b"first")
        (place / "f").unlink()
        with opened(place / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR) as second:
            os.write(second, b"second")
            assert os.pread(first, 10, 0) == b"first"
            assert os.pread(second, 10, 0) == b"second"
            assert os.fstat(first).st_ino != os.fstat(second).st_ino


def test_a_mapping_keeps_it(place: Path) -> None:
    (place / "f").write_bytes(b"x" * 10_000)
    with opened(place / "f") as descriptor:
        view = mmap.mmap(descriptor, 0)
    (place / "f").unlink()
    view[:4] = b"kept"
    view.flush()
    assert view[:5] == b"keptx"
    view.close()


def test_a_directory(place: Path) -> None:
    (place / "d").mkdir()
    with opened(place / "d", os.O_RDONLY) as descriptor:
        (place / "d").rmdir()
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []
        os.fchmod(descriptor, 0o711)
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o711
        assert error_of(os.mkdir, "new", dir_fd=descriptor) == "ENOENT"
        assert error_of(os.stat, "new", dir_fd=descriptor) == "ENOENT"
        assert os.stat(".", dir_fd=descriptor).st_nlink == 0
        (place / "d").mkdir()
        assert os.fstat(descriptor).st_ino != (place / "d").stat().st_ino


def test_a_path_descriptor_keeps_it(place: Path) -> None:
    (place / "f").write_bytes(b"x")
    with opened(place / "f", os.O_PATH) as path:
        (place / "f").unlink()
        assert os.fstat(path).st_nlink == 0
        with opened(Path(f"/proc/self/fd/{path}"), os.O_RDONLY) as descriptor:
            assert os.read(descriptor, 10) == b"x"


@pytest.mark.root
def test_what_nobody_has_open_takes_no_room(mount: Volume) -> None:
    place = mount / "room"
    place.mkdir()
    mount.flush()
    before = mount.status()
    with opened(place / "f", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"x" * 3_000_000)
        (place / "f").unlink()
        mount.flush()
        # Less by what was unlinked before and is deleted only now.
        assert mount.status()["used_bytes"] >= before["used_bytes"] + 2_000_000
    place.rmdir()

    def is_given_back() -> bool:
        after = mount.status()
        return bool(after["used_bytes"] <= before["used_bytes"] and after["files"] < before["files"])

    until(is_given_back)  # it is deleted a moment later
