"""File handles as NFS servers keep them: numbers and generations that stay, lookups of what was not seen before."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.volumes import Volume

from .calls import AT_SYMLINK_FOLLOW, error_of, name_to_handle_at, open_by_handle_at

pytestmark = [pytest.mark.mounted, pytest.mark.root]

Handle = tuple[int, bytes]


@contextmanager
def by_handle(place: Path, handle: Handle, flags: int = os.O_RDONLY) -> Iterator[int]:
    mount = os.open(place, os.O_RDONLY)
    try:
        descriptor = open_by_handle_at(mount, handle, flags)
    finally:
        os.close(mount)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def error_of_handle(place: Path, handle: Handle) -> str:
    def open_and_close() -> None:
        with by_handle(place, handle):
            pass

    return error_of(open_and_close)


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def test_while_it_is_known(roots: Path) -> None:
    (roots / "f").write_bytes(b"content")
    (roots / "d").mkdir()
    (roots / "l").symlink_to("f")
    with by_handle(roots, name_to_handle_at(roots / "f"), os.O_RDWR) as descriptor:
        assert os.read(descriptor, 10) == b"content"
        assert os.fstat(descriptor).st_ino == (roots / "f").stat().st_ino
        os.pwrite(descriptor, b"C", 0)
    assert (roots / "f").read_bytes() == b"Content"
    with by_handle(roots, name_to_handle_at(roots / "d")) as descriptor:
        assert path_of(descriptor) == str(roots / "d")
    assert name_to_handle_at(roots / "l") != name_to_handle_at(roots / "f")
    assert name_to_handle_at(roots / "l", AT_SYMLINK_FOLLOW) == name_to_handle_at(roots / "f")
    handle = name_to_handle_at(roots / "f")
    (roots / "f").rename(roots / "d" / "g")
    assert name_to_handle_at(roots / "d" / "g") == handle
    (roots / "d" / "g").unlink()
    assert error_of_handle(roots, handle) == "ESTALE"


@pytest.fixture
def planted(volume: Volume) -> Volume:
    (volume / "a" / "b" / "c").mkdir(parents=True)
    (volume / "a" / "b" / "c" / "f").write_bytes(b"content")
    (volume / "a" / "second").hardlink_to(volume / "a" / "b" / "c" / "f")
    (volume / "a" / "gone").write_bytes(b"x")
    (volume / "l").symlink_to("a")
    return volume


NAMES = [".", "a", "a/b", "a/b/c", "a/b/c/f", "a/second", "l"]


@pytest.mark.parametrize("how", ["remount", "kill", "drop"])
def test_after_the_mount_has_forgotten_everything(planted: Volume, how: str) -> None:
    volume = planted
    handles = {name: name_to_handle_at(volume / name) for name in [*NAMES, "a/gone"]}
    numbers = {name: (volume / name).lstat().st_ino for name in NAMES}
    (volume / "a" / "gone").unlink()
    if how == "remount":
        volume.remount(cold=True)
    elif how == "kill":
        volume.kill()
        volume.mount()
    else:
        volume.drop_cache()
    # The deepest first: nothing that leads there has been looked up by this mount.
    with by_handle(volume.mountpoint, handles["a/b/c/f"], os.O_RDWR) as descriptor:
        assert os.read(descriptor, 10) == b"content"
        os.pwrite(descriptor, b"C", 0)
    with by_handle(volume.mountpoint, handles["a/b/c"]) as descriptor:
        assert path_of(descriptor) == str(volume / "a" / "b" / "c")
        assert os.listdir(descriptor) == ["f"]
        above = os.open("..", os.O_RDONLY, dir_fd=descriptor)
        assert os.fstat(above).st_ino == numbers["a/b"]
        assert os.fstat(above).st_nlink == 3
        os.close(above)
        os.close(os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=descriptor))
    assert (volume / "a" / "b" / "c" / "new").exists()
    for name in NAMES:
        flags = os.O_PATH if name == "l" else os.O_RDONLY
        with by_handle(volume.mountpoint, handles[name], flags) as descriptor:
            assert os.fstat(descriptor).st_ino == numbers[name]
        assert name_to_handle_at(volume / name) == handles[name]
        assert (volume / name).lstat().st_ino == numbers[name]
    assert handles["a/second"] == handles["a/b/c/f"]
    assert (volume / "a" / "second").read_bytes() == b"Content"
    assert error_of_handle(volume.mountpoint, handles["a/gone"]) == "ESTALE"


def test_a_number_of_another_generation_is_stale(planted: Volume) -> None:
    kind, data = name_to_handle_at(planted / "a" / "b" / "c" / "f")
    high, low, generation = struct.unpack_from("=III", data)
    assert (high << 32 | low) == (planted / "a" / "second").stat().st_ino
    planted.remount()
    forged = struct.pack("=III", high, low, generation ^ 1) + data[12:]
    assert error_of_handle(planted.mountpoint, (kind, forged)) == "ESTALE"
    unknown = struct.pack("=III", 0, 1 << 30, generation) + data[12:]
    assert error_of_handle(planted.mountpoint, (kind, unknown)) == "ESTALE"
    assert error_of_handle(planted.mountpoint, (kind, data)) == ""


def test_numbers_are_not_used_twice(roots: Path) -> None:
    seen = set()
    for number in range(200):
        (roots / "f").write_bytes(b"%d" % number)
        seen.add(name_to_handle_at(roots / "f"))
        (roots / "f").unlink()
    assert len(seen) == 200
