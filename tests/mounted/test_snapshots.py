"""`ibpfs snapshot` on a real mount: what it shows when everything has changed since, read only, through kills."""

import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .running import BIN, run, until
from .volumes import Volume

pytestmark = pytest.mark.mounted

MIB = 1024 * 1024


def make_tree(top: Path, seed: int) -> None:
    dice = random.Random(seed)
    (top / "dir" / "empty").mkdir(parents=True)
    (top / "dir" / "big").write_bytes(dice.randbytes(3 * MIB))
    for number in range(40):
        (top / "dir" / f"small {number}").write_bytes(dice.randbytes(dice.randrange(5000)))
    os.link(top / "dir" / "big", top / "dir" / "linked")
    (top / "link").symlink_to("dir/big")
    os.truncate(top / "dir" / "small 0", 100_000)
    os.setxattr(top / "dir", "user.colour", b"blue")
    (top / "dir" / "empty").chmod(0o1770)
    os.chown(top / "dir" / "small 1", 12, 13)
    run("setfacl", "-m", "u:7:rwx", top / "dir" / "small 2")
    os.utime(top / "dir" / "small 3", ns=(1, 2))


def listing(top: Path) -> list[Any]:
    """Everything of a tree but inode numbers."""
    found: list[Any] = []
    for path in sorted([top, *top.rglob("*")]):
        info = path.lstat()
        what: object = None
        if path.is_symlink():
            what = path.readlink()
        elif path.is_file():
            what = path.read_bytes()
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        found.append((
            path.relative_to(top), info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_size,
            info.st_blocks, info.st_mtime_ns, what, xattrs,
        ))  # fmt: skip
    return found


def change_everything(top: Path) -> None:
    (top / "dir" / "big").write_bytes(b"other" * 1000)
    (top / "dir" / "small 4").unlink()
    os.truncate(top / "dir" / "small 5", 1)
    (top / "dir" / "small 6").rename(top / "moved")
    run("rm", "-rf", top / "dir", top / "link", top / "moved")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def snapshot(volume: Volume, *words: object, code: int = 0) -> Any:
    done = run("ibpfs", "snapshot", words[0], volume.mountpoint, *words[1:], code=code)
    return json.loads(done.stdout) if "--json" in words else done


def test_everything_changes_but_the_snapshot(volume: Volume, as_root: None) -> None:
    make_tree(volume.mountpoint, 1)
    before = listing(volume.mountpoint)
    made = snapshot(volume, "create", "one", "--json")
    assert made["files"] == volume.status()["files"]
    shown = volume / ".snapshots" / "one"
    assert ".snapshots" not in names_in(volume.mountpoint)
    assert names_in(volume / ".snapshots") == ["one"]
    change_everything(volume.mountpoint)
    run("ibpfs", "compact", volume.mountpoint)
    volume.drop_cache()
    assert listing(shown) == before
    volume.remount(cold=True)
    assert listing(shown) == before
    assert volume.status()["pinned_bytes"] > 3 * MIB
    run("cp", "-a", shown / "dir", volume / "dir")
    # cp finds no holes on FUSE: it writes zeros, and other blocks are counted.
    without_blocks = [[(*one[:6], *one[7:]) for one in listing(top / "dir")] for top in (volume.mountpoint, shown)]
    assert without_blocks[0] == without_blocks[1]
    run("rm", "-rf", volume / "dir")
    snapshot(volume, "delete", "one")
    until(lambda: not shown.exists())
    until(lambda: volume.status()["used_bytes"] == 0)
    volume.umount()
    volume.fsck("--data", "-n")


def test_it_is_read_only_and_in_order(shared: Volume) -> None:
    (shared / "file").write_bytes(b"hello")
    snapshot(shared, "create", "read-only")
    top = shared / ".snapshots" / "read-only"
    node = (top / "file").stat()
    assert node.st_dev == (shared / "file").stat().st_dev
    assert node.st_ino % (1 << 48) == (shared / "file").stat().st_ino
    assert (top / ".." / ".." / "file").stat().st_ino == (shared / "file").stat().st_ino
    assert os.statvfs(top).f_blocks
    for attempt in (
        lambda: (top / "new").write_bytes(b""), lambda: (top / "file").write_bytes(b""), lambda: (top / "new").mkdir(),
        lambda: (top / "file").unlink(), lambda: (top / "file").rename(top / "new"), lambda: (top / "file").chmod(0),
        lambda: os.link(top / "file", shared / "new"), lambda: (top / "new").symlink_to("x"),
        lambda: os.setxattr(top / "file", "user.x", b"1"), lambda: os.truncate(top / "file", 0),
        lambda: (shared / ".snapshots").rmdir(), lambda: (shared / ".snapshots" / "x").mkdir(),
        lambda: (top / "file").rename(shared / "new"), lambda: os.utime(top / "file"),
    ):  # fmt: skip
        with pytest.raises(OSError, match="Read-only"):
            attempt()
    (shared / "new").mkdir()
    for old, new in ((".snapshots", "x"), ("new", ".snapshots")):
        with pytest.raises(OSError, match="Read-only"):
            (shared / old).rename(shared / new)
    with pytest.raises(FileExistsError):
        (shared / ".snapshots").mkdir()
    with (top / "file").open("rb") as opened:
        os.fsync(opened.fileno())
        snapshot(shared, "delete", "read-only")
        with pytest.raises(OSError, match="Stale"):
            opened.read()


def test_one_that_cannot_be_read_hides_no_other(volume: Volume) -> None:
    for name in ("one", "two"):
        (volume / "file").write_text(name)
        snapshot(volume, "create", name)
    volume.umount()
    (volume.root / "snapshots" / "1.sqlite").write_bytes(b"rubbish" * 1000)
    volume.expect("snapshot 32767/one is answered with EIO")
    volume.mount()
    assert names_in(volume / ".snapshots") == ["two"]
    assert (volume / ".snapshots" / "two" / "file").read_text() == "two"
    with pytest.raises(OSError, match="Input/output"):
        (volume / ".snapshots" / "one").stat()
    snapshot(volume, "delete", "one")
    volume.umount()
    volume.fsck("-n")


def test_a_file_is_written_while_one_is_made(volume: Volume) -> None:
    """Each snapshot holds what had been written when it was asked for, and no more than when it was made."""
    with (volume / "log").open("wb", buffering=0) as log:
        for number in range(1, 6):
            log.write(bytes([number]) * 10_000)
            snapshot(volume, "create", str(number))
    for number in range(1, 6):
        data = (volume / ".snapshots" / str(number) / "log").read_bytes()
        assert data == b"".join(bytes([one]) * 10_000 for one in range(1, number + 1))


def test_names_that_do_not_go(shared: Volume) -> None:
    (shared / ".snapshots").stat()
    snapshot(shared, "create", "twice")
    for words, text in (
        (("create", "twice"), "there is a snapshot twice already"), (("create", "a/b"), "name"),
        (("create", "x" * 256), "at most 255"), (("delete", "none"), "there is no snapshot none"),
    ):  # fmt: skip
        done = snapshot(shared, *words, code=1 if "twice" in words or "none" in words else 2)
        assert len(done.stderr.splitlines()) == 1
        assert text in done.stderr
    assert "twice" in snapshot(shared, "list").stdout
    snapshot(shared, "delete", "twice")


def test_one_is_made_of_a_volume_that_is_not_mounted(volume: Volume) -> None:
    (volume / "file").write_bytes(b"hello")
    volume.umount()
    made = run("ibpfs", "snapshot", "create", volume.root).stdout
    (name,) = [one["name"] for one in json.loads(run("ibpfs", "snapshot", "list", "--json", volume.root).stdout)]
    assert name in made
    volume.mount()
    assert (volume / ".snapshots" / name / "file").read_bytes() == b"hello"


@pytest.mark.faults
def test_kills_while_snapshots_come_and_go(volume: Volume) -> None:
    dice = random.Random(7)
    kept: dict[str, bytes] = {}
    for number in range(6):
        content = dice.randbytes(20_000)
        (volume / "file").write_bytes(content)
        name = f"s{number}"
        verb = ("create", name) if number % 3 != 2 or not kept else ("delete", next(iter(kept)))
        with subprocess.Popen(
            [BIN / "ibpfs", "snapshot", verb[0], volume.mountpoint, verb[1]],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as working:  # fmt: skip
            time.sleep(dice.random() * 0.4)
            volume.kill()
            done = working.wait(30) == 0
        volume.mount()
        there = names_in(volume / ".snapshots")
        if verb[0] == "delete":
            assert not done or verb[1] not in there
            if verb[1] not in there:
                del kept[verb[1]]
        elif name in there:
            kept[name] = content
        else:
            assert not done
        assert set(there) == set(kept)
        for one, bytes_then in kept.items():
            assert (volume / ".snapshots" / one / "file").read_bytes() == bytes_then
        (volume / "file").unlink()
    volume.umount()
    volume.fsck("--data", "-n")
