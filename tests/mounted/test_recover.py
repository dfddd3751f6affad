"""A volume whose directory is gone comes back from its depots, on a machine that has never seen it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from .running import BIN, kill_and_wait, run, until
from .volumes import Session, Volume

pytestmark = pytest.mark.mounted

RESTORE = Path(__file__).parents[2] / "tools" / "ibpfs_restore.py"


def fill(volume: Volume) -> None:
    place = volume / "tree"
    shutil.copytree(Path(__file__).parent, place / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "large").write_bytes(os.urandom(3_000_000))
    (place / "empty").touch()
    (place / "link").symlink_to("sources/volumes.py")
    os.link(place / "large", place / "second-name")
    with (place / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    (place / "large").chmod(0o640)
    os.setxattr(place / "large", "user.colour", b"blue")


def listing(root: Path) -> list[tuple[object, ...]]:
    """What a tree is, seen from outside."""
    found: list[tuple[object, ...]] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found.append((str(path.relative_to(root)), status.st_mode, status.st_nlink, status.st_uid, status.st_gid,
                      status.st_mtime_ns, content, path.is_symlink() or tuple(os.listxattr(path))))  # fmt: skip
    return found


def test_from_the_string_alone(session: Session, directory: Path) -> None:
    with session.volume(depots=3) as volume:
        fill(volume)
        before = listing(volume / "tree")
        volume.flush()
        string = directory / "string"
        string.write_text(run("ibpfs", "recovery-key", volume.root).stdout.splitlines()[-1])
        shares = run("ibpfs", "recovery-key", volume.root, "--shares", "2/3").stdout.splitlines()[-3:]
        volume.umount()
        gone = volume.root.rename(directory / "gone")
        elsewhere = {**os.environ, "HOME": str(directory / "home")}

        alone, between = directory / "restored", directory / "between"
        between.mkdir()
        done = subprocess.run([sys.executable, "-I", RESTORE, alone, "--from", string], check=False,
                              env={**elsewhere, "TMPDIR": str(between)},
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert list(between.iterdir()) == []
        assert listing(alone / "tree") == before

        done = subprocess.run([*_recover(volume.root)], input="\n".join(shares[1:]), env=elsewhere, check=False,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "are lost" not in done.stdout
        volume.mount()
        assert listing(volume / "tree") == before
        (volume / "tree" / "new").write_bytes(b"goes on")
        volume.umount()
        volume.fsck()

        volume.root.rename(directory / "recovered")
        gone.rename(volume.root)
        done = volume.mount(code=32)
        assert "older than the depots by" in done.stderr
        assert "run ibpfs recover" in done.stderr
        shutil.rmtree(volume.root)
        (directory / "recovered").rename(volume.root)


def test_a_volume_with_a_depot_of_its_own(session: Session, directory: Path) -> None:
    """Comes back with that depot's directory, and not without."""
    with session.volume() as volume:
        (volume / "file").write_bytes(b"content")
        string = run("ibpfs", "recovery-key", volume.root).stdout.splitlines()[-1]
        volume.umount()
        kill_and_wait(volume.embedded_depot(), signal.SIGTERM)
        depot = (volume.root / "depot").rename(directory / "depot")
        shutil.rmtree(volume.root)
        (directory / "string").write_text(string)
        done = run("ibpfs", "recover", volume.root, "--from", directory / "string", code=1)
        assert done.stderr.count("\n") == 1
        assert "without its directory it cannot come back" in done.stderr
        assert not volume.root.exists()
        volume.root.mkdir()
        depot.rename(volume.root / "depot")
        run("ibpfs", "recover", volume.root, "--from", directory / "string")
        volume.mount()
        assert (volume / "file").read_bytes() == b"content"


def _recover(root: Path) -> list[str | Path]:
    return [BIN / "ibpfs", "recover", root, "--from", "-"]


def test_an_old_store_that_is_noticed_late_takes_no_more_changes(session: Session, directory: Path) -> None:
    """Mounted while its depots were away. What it has acknowledged by then stays."""
    with session.volume(depots=2) as volume:
        volume.expect("does not answer|older than the depots by|wait in the spool")
        (volume / "file").write_bytes(b"content")
        volume.umount()
        shutil.copytree(volume.root, directory / "old", ignore=shutil.ignore_patterns("control.sock"))
        volume.mount()
        (volume / "later").write_bytes(b"lost with the old store")
        volume.umount()
        shutil.rmtree(volume.root)
        shutil.copytree(directory / "old", volume.root)
        for depot in volume.depots:
            depot.kill()
        volume.mount()
        with (volume / "early").open("wb", buffering=0) as early:
            early.write(b"acknowledged")
            for depot in volume.depots:
                depot.start()
            until(lambda: "older than" in (volume.status()["checkpoint_trouble"] or ""), 60)
            refused(lambda: early.write(b" and more"))
            os.fsync(early.fileno())
        place = volume.mountpoint
        refused((place / "new").mkdir)
        refused((place / "new").touch)
        refused((place / "early").unlink)
        refused(lambda: (place / "early").rename(place / "other"))
        refused(lambda: (place / "early").chmod(0o600))
        refused(lambda: os.setxattr(place / "early", "user.x", b""))
        refused(lambda: os.truncate(place / "early", 1))
        refused(lambda: (place / "early").open("r+b"))
        assert (place / "early").read_bytes() == b"acknowledged"
        done = run("ibpfs", "snapshot", "create", place, "one", code=1)
        assert "older than the depots by 1 commit: run ibpfs recover" in done.stderr
        assert "stale-store" in run("ibpfs", "doctor", place, "--json", code=None).stdout
        said = [line for line in volume.log().splitlines() if "nothing can be changed here any more" in line]
        assert len(said) == 1
        assert "older than the depots by 1 commit: run ibpfs recover" in said[0]
        run("umount.ibpfs", place, code=None)
        volume.wait_until_free()
        with closing(sqlite3.connect(volume.root / "exnode_store.sqlite")) as db:
            names = "SELECT size FROM inodes JOIN dentries USING (ino) WHERE name = ?"
            size = db.execute(names, (b"early",)).fetchone()
            assert size == (12,)
        assert "run ibpfs recover" in volume.mount(code=32).stderr


def refused(change: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        change()
