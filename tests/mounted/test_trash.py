"""`ibpfs trash` on a real mount: trees that come back, handles that stay open, depots that run full, kills."""

import json
import os
import random
import subprocess
import time
from typing import Any

import pytest

from .running import BIN, run, until
from .test_snapshots import listing, make_tree, names_in
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

MIB = 1024 * 1024


def trash(volume: Volume, verb: str, *words: object, code: int = 0) -> Any:
    done = run("ibpfs", "trash", verb, volume.mountpoint, *words, "--json", code=code)
    return json.loads(done.stdout) if code == 0 else done


def paths_in(volume: Volume, *words: str) -> list[str]:
    return [one["path"] for one in trash(volume, "list", *words)]


def without_times(found: list[Any]) -> list[Any]:
    """Of directories: what was in them went and came."""
    return [(*one[:7], one[7] if one[8] is not None else None, *one[8:]) for one in found]


@pytest.fixture
def keeping(volume: Volume) -> Volume:
    """Whatever is deleted is kept, however young."""
    assert trash(volume, "keep", "--lived", "0s") == {"keep_seconds": 7 * 86400, "lived_seconds": 0}
    return volume


def test_a_tree_that_was_deleted_comes_back(keeping: Volume, as_root: None) -> None:
    make_tree(keeping.mountpoint, 1)
    before = listing(keeping.mountpoint / "dir")
    used = keeping.status()["used_bytes"]
    run("rm", "-rf", keeping / "dir")
    assert not (keeping / "dir").exists()
    assert paths_in(keeping) == ["/dir"]
    assert len(paths_in(keeping, "--all")) == len(before)
    keeping.drop_cache()
    until(lambda: keeping.status()["trash_bytes"] > 3 * MIB)
    assert keeping.status()["used_bytes"] >= used > 3 * MIB
    keeping.remount(cold=True)
    assert trash(keeping, "restore", keeping / "dir") == {"restored": len(before)}
    assert without_times(listing(keeping / "dir")) == without_times(before)
    assert paths_in(keeping, "--all") == []
    keeping.umount()
    keeping.fsck("--data", "-n")


def test_what_was_never_uploaded_is_kept_too(keeping: Volume) -> None:
    (keeping / "file").write_bytes(b"hello" * 1000)
    (keeping / "file").unlink()
    keeping.kill()
    keeping.mount()
    keeping.drop_cache()
    trash(keeping, "restore", "file")
    assert (keeping / "file").read_bytes() == b"hello" * 1000


def test_names_that_the_kernel_believes_missing_are_there(keeping: Volume) -> None:
    (keeping / "dir" / "inner").mkdir(parents=True)
    (keeping / "dir" / "inner" / "file").write_bytes(b"hello")
    run("rm", "-rf", keeping / "dir" / "inner")
    assert not (keeping / "dir" / "inner" / "file").exists()
    trash(keeping, "restore", "/dir/inner/file", "--to", "/dir/back")
    assert (keeping / "dir" / "back").read_bytes() == b"hello"
    trash(keeping, "restore", "/dir/inner")
    assert names_in(keeping / "dir" / "inner") == []
    assert (keeping / "dir").stat().st_nlink == 3


def test_an_open_file_is_as_posix_has_it(keeping: Volume) -> None:
    path = keeping / "file"
    with path.open("w+b", buffering=0) as opened:
        opened.write(b"hello")
        path.unlink()
        info = os.fstat(opened.fileno())
        assert info.st_nlink == 0
        opened.write(b" and more")
        assert os.pread(opened.fileno(), 100, 0) == b"hello and more"
        trash(keeping, "restore", "file")
        assert path.read_bytes() == b"hello and more"
    assert path.stat().st_nlink == 1
    keeping.flush()
    path.unlink()
    assert keeping.status()["used_bytes"]
    assert trash(keeping, "empty") == {"names": 1}
    until(lambda: keeping.status()["used_bytes"] == 0)
    with pytest.raises(FileNotFoundError):
        path.stat()


def test_young_files_and_those_that_were_replaced_are_not_kept(volume: Volume) -> None:
    (volume / "young").write_bytes(b"x")
    (volume / "young").unlink()
    trash(volume, "keep", "--lived", "0s")
    (volume / "old").write_bytes(b"x")
    (volume / "new").write_bytes(b"y")
    (volume / "new").rename(volume / "old")
    assert paths_in(volume) == []
    trash(volume, "keep", "off")
    (volume / "old").unlink()
    assert paths_in(volume) == []
    until(lambda: volume.status()["used_bytes"] == 0)


def test_what_does_not_go_is_said_in_a_line(keeping: Volume) -> None:
    (keeping / "file").write_bytes(b"x")
    (keeping / "file").unlink()
    (keeping / "file").write_bytes(b"y")
    for words, code, text in (
        (("restore", "none"), 2, "none: is not in the trash"), (("restore", "file"), 2, "is there now"),
        (("restore",), 2, "name one thing"), (("restore", "file", "--to", "/no/where"), 2, "no such name"),
        (("restore", "--number", "99"), 2, "not in the trash"), (("keep", "never"), 2, "not a duration"),
    ):  # fmt: skip
        done = trash(keeping, words[0], *words[1:], code=code)
        assert len(done.stderr.splitlines()) == 1
        assert text in done.stderr
    assert (keeping / "file").read_bytes() == b"y"


def test_full_depots_get_room_from_the_trash(volumes: MakeVolume, depots: Any) -> None:
    """The oldest goes, before anybody is told that there is no room."""
    depot = depots("--capacity", "64M")
    volume = volumes("--depot", depot.address)
    trash(volume, "keep", "--lived", "0s")
    volume.expect("the depots have no room")  # for a moment
    dice = random.Random(3)
    for number in range(14):
        (volume / f"file {number}").write_bytes(dice.randbytes(8 * MIB))
        (volume / f"file {number}").unlink()
    volume.flush()
    left = paths_in(volume)
    assert 0 < len(left) < 8
    assert left == [f"/file {number}" for number in range(14 - len(left), 14)]
    trash(volume, "restore", "file 13")
    assert (volume / "file 13").stat().st_size == 8 * MIB
    volume.umount()
    volume.fsck("--data", "-n")


@pytest.mark.faults
def test_kills_while_trees_go_and_come_back(keeping: Volume) -> None:
    dice = random.Random(5)
    (keeping / "dir").mkdir()
    for number in range(300):
        (keeping / "dir" / f"{number}").write_bytes(b"%d" % number)
    before = listing(keeping / "dir")
    for step in range(4):
        words = ["rm", "-rf", keeping / "dir"] if step % 2 == 0 else [
            BIN / "ibpfs", "trash", "restore", "-q", keeping.mountpoint, "dir"
        ]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as working:
            time.sleep(dice.random() * 0.5)
            keeping.kill()
            working.wait(30)
        keeping.mount()
        run("rm", "-rf", keeping / "dir") if step % 2 == 0 else None
    if paths_in(keeping, "--all"):
        trash(keeping, "restore", "dir")
    now = [(one[0], one[4:6], one[8]) for one in listing(keeping / "dir")]
    assert now == [(one[0], one[4:6], one[8]) for one in before]
    assert paths_in(keeping, "--all") == []
    keeping.umount()
    keeping.fsck("--data", "-n")
