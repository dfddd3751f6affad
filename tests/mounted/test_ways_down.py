"""Every way in which a mount can end, each with bytes just written: they are there after the next mount."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .running import BIN, is_alive, kill, run, until
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

CONTENT = {f"file-{number}": bytes([number]) * (number * 70_001) for number in range(1, 30)}

WAYS: dict[str, Callable[[Volume], object]] = {
    "umount.ibpfs": lambda volume: volume.umount(),
    "umount": lambda volume: run("umount", volume.mountpoint),
    "umount -l": lambda volume: run("umount", "-l", volume.mountpoint),
    "fusermount3 -u": lambda volume: run("fusermount3", "-u", volume.mountpoint),
    "SIGTERM": lambda volume: kill(volume.status()["pid"], signal.SIGTERM),
    "SIGINT": lambda volume: kill(volume.status()["pid"], signal.SIGINT),
    "SIGHUP": lambda volume: kill(volume.status()["pid"], signal.SIGHUP),
}


def write(volume: Volume) -> None:
    for name, data in CONTENT.items():
        (volume / name).write_bytes(data)
    (volume / "file-1").rename(volume / "renamed")


def check(volume: Volume) -> None:
    found = {path.name: path.read_bytes() for path in volume.mountpoint.iterdir()}
    found["file-1"] = found.pop("renamed")
    assert found == CONTENT


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost(volume: Volume, way: str) -> None:
    write(volume)
    WAYS[way](volume)
    until(lambda: not volume.is_mounted(), what="the end of the mount")
    # At once: the next owner waits for the last one.
    volume.mount()
    check(volume)
    volume.flush()
    assert volume.status()["dirty_bytes"] == 0
    volume.umount()
    assert volume.spool_files() == []
    volume.empty_cache()
    volume.mount()
    check(volume)


def test_without_standard_streams(volume: Volume) -> None:
    """As some daemons start others."""
    volume.umount()
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    run(*closed, BIN / "mount.ibpfs", volume.root, volume.mountpoint)
    write(volume)
    run(*closed, BIN / "umount.ibpfs", volume.mountpoint)
    assert not volume.is_mounted()
    volume.mount()
    check(volume)


def test_by_the_name_of_the_volume(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "ibpfs").mkdir()
    (tmp_path / "ibpfs" / "named").symlink_to(volume.root)
    write(volume)
    run("umount.ibpfs", "named", env={"XDG_DATA_HOME": str(tmp_path)})
    assert not volume.is_mounted()


def test_lazily_and_without_waiting(volume: Volume) -> None:
    write(volume)
    with (volume / "file-2").open("rb") as file:
        run("umount.ibpfs", "-l", volume.mountpoint)
        assert not volume.is_mounted()
        assert file.read() == CONTENT["file-2"]
    volume.mount()
    check(volume)


def test_the_process_ends_and_the_spool_is_empty(volume: Volume) -> None:
    pid = volume.status()["pid"]
    write(volume)
    volume.umount()
    assert not is_alive(pid)
    assert not volume.is_mounted()
    assert volume.spool_files() == []


def test_background_drain_after_plain_umount(volume: Volume) -> None:
    write(volume)
    run("umount", volume.mountpoint)
    volume.wait_until_free()
    assert volume.spool_files() == []


def test_what_does_not_drain_is_told_by_the_next_mount(volumes: MakeVolume) -> None:
    volume = volumes(depots=1)
    volume.expect("does not answer|wait in the spool")
    volume.depots[0].stop()
    (volume / "f").write_bytes(b"x" * 3_000_000)
    pids = volume.status()["pids"]
    began = time.monotonic()
    run("umount.ibpfs", "-f", volume.mountpoint)
    assert time.monotonic() - began < 5
    for pid in pids:
        kill(pid, signal.SIGTERM)  # a drain without a depot is cut short
    volume.wait_until_free()
    assert volume.spool_files() != []
    volume.depots[0].start()
    said = volume.mount().stderr
    assert "2.9 MiB of an earlier mount wait in the spool" in said
    volume.flush()
    volume.remount(cold=True)
    assert (volume / "f").read_bytes() == b"x" * 3_000_000


class TestBusy:
    def test_says_who_and_everything_is_flushed(self, volume: Volume) -> None:
        code = "import sys; f = open(sys.argv[1], 'wb', 0); f.write(b'x' * 100000); print(flush=True); sys.stdin.read()"
        writer = subprocess.Popen(
            [sys.executable, "-c", code, volume / "held"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            said = volume.umount(code=32).stderr
            assert said.count("\n") == 1
            assert f"process {writer.pid}" in said
            assert "held" in said
            assert volume.status()["dirty_bytes"] == 0
        finally:
            writer.communicate()
        volume.umount()
        volume.mount()
        assert (volume / "held").read_bytes() == b"x" * 100_000

    def test_a_working_directory(self, volume: Volume) -> None:
        sleeper = subprocess.Popen(["sleep", "60"], cwd=volume.mountpoint)
        try:
            until(lambda: Path(f"/proc/{sleeper.pid}/cwd").readlink() == volume.mountpoint)
            assert f"sleep (process {sleeper.pid}, working directory)" in volume.umount(code=32).stderr
        finally:
            sleeper.kill()
            sleeper.wait()

    def test_open_files_after_a_lazy_umount(self, volume: Volume) -> None:
        with (volume / "f").open("wb") as file:
            file.write(b"before")
            file.flush()
            run("umount", "-l", volume.mountpoint)
            file.write(b" and after")
        volume.mount()
        assert (volume / "f").read_bytes() == b"before and after"


def test_a_shell_standing_in_the_mount_unmounts_it_by_its_volume(volume: Volume, directory: Path) -> None:
    run("umount.ibpfs", volume.root, cwd=directory)
    assert not volume.is_mounted()


def test_a_mount_point_behind_a_link(volume: Volume, directory: Path) -> None:
    volume.umount()
    link = directory / "link"
    link.symlink_to(volume.mountpoint)
    run("mount.ibpfs", volume.root, link)
    assert volume.is_mounted()
    assert volume.status()["mountpoint"] == str(volume.mountpoint)
    assert str(volume.root) in run("ibpfs", "status", link).stdout
    run("umount.ibpfs", link)
    assert not volume.is_mounted()


def test_umount_of_something_else(directory: Path) -> None:
    said = run("umount.ibpfs", directory, code=32).stderr
    assert said.count("\n") == 1
    assert str(directory) in said


def test_umount_after_a_kill(volume: Volume) -> None:
    (volume / "f").write_bytes(b"x" * 1000)
    volume.kill()
    run("cat", volume / "f", code=1)
    volume.umount(code=None)
    assert not volume.is_mounted()
    volume.mount()
    assert (volume / "f").read_bytes() == b"x" * 1000


