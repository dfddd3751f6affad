"""As an ordinary user, through fusermount3. Not run means failed: CI gives /dev/fuse the mode that udev gives it."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .running import BIN, kill, kill_and_wait, run, until
from .users import UID, UserVolume, user_volume
from .volumes import Session, mount_table

pytestmark = pytest.mark.mounted

@pytest.fixture
def user(session: Session) -> Iterator[UserVolume]:
    with user_volume(session) as one:
        yield one


def test_a_days_work(user: UserVolume, source_tree: Path) -> None:
    tree = source_tree.parent / "tree" / "email"
    work = user.mountpoint
    # What an ordinary user may not read is given to him by root's cp outside of the mount.
    run("cp", "-a", tree, user.home / "email")
    run("chown", "-R", f"{UID}:{UID}", user.home / "email") if os.geteuid() == 0 else None
    user.call("cp", "-a", user.home / "email", work / "email")
    user.call("diff", "-r", user.home / "email", work / "email")
    user.call("git", "-C", work / "email", "init", "-q")
    found = user.call("stat", "-c", "%u %a", work / "email").stdout.split()
    assert found[0] == str(os.geteuid() or UID)
    user.ours("umount.ibpfs", work)
    assert not user.is_mounted()
    user.ours("mount.ibpfs", "work", work)
    user.call("diff", "-r", "-x", ".git", user.home / "email", work / "email")


def test_the_volume_is_named(user: UserVolume) -> None:
    found = json.loads(user.ours("ibpfs", "status", "--json", "work").stdout)
    assert found["volume"] == str(user.root)
    assert found["mountpoint"] == str(user.mountpoint)
    assert re.search(rb" fuse\.ibpfs " + re.escape(os.fsencode(user.root)), b"\n".join(mount_table()))


def test_commands(user: UserVolume) -> None:
    user.call("sh", "-c", "echo hello > work/f; sync work/f")
    assert json.loads(user.ours("ibpfs", "stat", "--json", "work/f").stdout)["size"] == 6
    user.ours("ibpfs", "flush", user.mountpoint)
    user.ours("ibpfs", "drop-cache", user.mountpoint)
    assert user.call("cat", "work/f").stdout == "hello\n"
    assert user.call("getfattr", "-n", "user.ibpfs.info", "work/f").stdout


@pytest.mark.root
def test_others_are_kept_out(user: UserVolume) -> None:
    run("chmod", "755", user.home)
    done = run("setpriv", "--reuid=1001", "--regid=1001", "--clear-groups", "ls", user.mountpoint, code=None)
    assert done.returncode != 0


def test_options(user: UserVolume) -> None:
    user.ours("umount.ibpfs", user.mountpoint)
    user.ours("mount.ibpfs", "work", user.mountpoint, "-o", "ro,noatime,nosuid,x-anything")
    done = user.call("touch", "work/f", code=1)
    assert "Read-only file system" in done.stderr
    line = next(line for line in mount_table() if os.fsencode(user.mountpoint) in line)
    assert b"ro,nosuid,nodev" in line


WAYS: dict[str, Callable[[UserVolume], object]] = {
    "umount.ibpfs": lambda user: user.ours("umount.ibpfs", user.mountpoint),
    "fusermount3 -u": lambda user: user.call("fusermount3", "-u", user.mountpoint),
    "SIGTERM": lambda user: kill(
        json.loads(user.ours("ibpfs", "status", "--json", "work").stdout)["pid"], signal.SIGTERM
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_down(user: UserVolume, way: str) -> None:
    user.call("sh", "-c", "head -c 3000000 /dev/urandom > data; cp data work/data")
    WAYS[way](user)
    until(lambda: not user.is_mounted())
    user.ours("mount.ibpfs", "work", user.mountpoint)
    user.call("cmp", "data", "work/data")


def test_after_a_kill(user: UserVolume) -> None:
    user.call("sh", "-c", "head -c 3000000 /dev/urandom > data; cp data work/data")
    kill_and_wait(json.loads(user.ours("ibpfs", "status", "--json", "work").stdout)["pids"])
    assert user.call("ls", "work", code=None).returncode
    user.ours("mount.ibpfs", "work", user.mountpoint)
    user.call("cmp", "data", "work/data")


def test_busy(user: UserVolume) -> None:
    user.call("sh", "-c", "cp /bin/sleep .")
    done = user.call("sh", "-c", f"cd work; sleep 60 & cd ..; {BIN}/umount.ibpfs work; echo $?; kill $!")
    assert done.stdout == "32\n"
    assert re.search(r"in use by sleep \(process \d+, working directory\);", done.stderr)
