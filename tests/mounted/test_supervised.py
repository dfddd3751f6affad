"""A mount whose process is killed comes back by itself, and nothing is ever written into the directory below."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .running import is_alive, kill, run, until
from .users import UserVolume, user_volume
from .volumes import Session, Volume, mount_table

pytestmark = pytest.mark.mounted

#: Writes small files for ever, whatever happens, and names those that it could close.
WRITER = """
import os, sys
number = 0
while True:
    name = f"{sys.argv[1]}/{number}"
    try:
        with open(name, "w") as file:
            file.write(name)
        print(number, flush=True)
    except OSError:
        pass
    number += 1
"""


def mounts(place: Path) -> int:
    return sum(line.split()[4] == os.fsencode(place) for line in mount_table())


def answers(place: Path) -> bool:
    return run("stat", "-f", "-c", "%T", place, code=None).returncode == 0


def replaced(volume: Volume, pid: int) -> int:
    """Wait until another process serves; return it."""
    until(lambda: answers(volume.mountpoint) and volume.status()["pid"] not in (None, pid))
    found = volume.status()["pid"]
    assert isinstance(found, int)
    return found


def test_comes_back_with_everything_that_was_written(volume: Volume) -> None:
    (volume / "file").write_text("content")
    before = volume.status()
    assert len(before["pids"]) == 2
    kill(before["pid"])
    after = replaced(volume, before["pid"])
    assert volume.status()["pids"] == [before["pids"][0], after]
    assert (volume / "file").read_text() == "content"
    assert mounts(volume.mountpoint) == 1
    (volume / "file").write_text("changed")
    volume.remount()
    assert (volume / "file").read_text() == "changed"


def writer(place: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("as_root")  # beneath the dead mount, in no moment without any: that takes root
def test_nothing_lands_in_the_directory_below(volume: Volume) -> None:
    (volume / "in").mkdir()
    with writer(volume / "in") as inside, writer(volume.mountpoint) as above:
        assert inside.stdout is not None
        try:
            for _ in range(3):
                inside.stdout.readline()
                pid = volume.status()["pid"]
                kill(pid)
                replaced(volume, pid)
        finally:
            inside.kill()
            above.kill()
        numbers = inside.stdout.read().split("\n")[:-1]
    assert numbers
    for number in numbers:
        assert (volume / "in" / number).read_text() == f"{volume.mountpoint}/in/{number}"
    volume.umount()
    assert list(volume.mountpoint.iterdir()) == []


def test_the_supervisor_may_die(volume: Volume) -> None:
    supervisor, server = volume.status()["pids"]
    kill(supervisor)
    until(lambda: not is_alive(supervisor))
    assert volume.status()["pids"] == [server]
    (volume / "file").write_text("content")
    volume.umount()


def test_a_signal_to_the_supervisor_unmounts(volume: Volume) -> None:
    (volume / "file").write_text("content")
    supervisor, server = volume.status()["pids"]
    kill(supervisor, signal.SIGTERM)
    until(lambda: not is_alive(supervisor) and not is_alive(server))
    assert not volume.is_mounted()
    volume.mount()
    assert (volume / "file").read_text() == "content"


def test_what_is_killed_again_and_again_is_given_up(volume: Volume) -> None:
    volume.expect("CRITICAL .*killed 6 times within a minute")
    supervisor, pid = volume.status()["pids"]
    for _ in range(5):
        kill(pid)
        pid = replaced(volume, pid)
    kill(pid)
    until(lambda: not is_alive(supervisor))
    assert run("ls", volume.mountpoint, code=None).returncode
    volume.mount()  # takes the dead one away
    assert mounts(volume.mountpoint) == 1


def test_by_hand_beneath_a_dead_mount(volume: Volume) -> None:
    (volume / "file").write_text("content")
    volume.kill()
    assert mounts(volume.mountpoint) == 1
    volume.mount()
    assert mounts(volume.mountpoint) == 1
    assert (volume / "file").read_text() == "content"


@pytest.fixture
def user(session: Session) -> Iterator[UserVolume]:
    with user_volume(session) as one:
        yield one


def test_of_an_ordinary_user(user: UserVolume) -> None:
    """Not beneath the dead one, for that takes root: meanwhile the directory is not to be written to."""
    user.call("sh", "-c", "echo content > work/file")
    pid = run("pgrep", "-n", "-f", f"mount.ibpfs work {user.mountpoint}").stdout.split()[-1]
    kill(int(pid))
    until(lambda: user.call("cat", "work/file", code=None).stdout == "content\n")
    user.ours("umount.ibpfs", user.mountpoint)
    user.call("sh", "-c", "echo writable again > work/x && rm work/x")
