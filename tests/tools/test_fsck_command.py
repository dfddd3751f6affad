"""fsck.ibpfs as a person, a script and fsck(8) call it: lines, exit codes."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.creation import create_volume
from tests.cache.stack import run_depot
from tests.exnode_store.test_fsck import seed
from tests.exnode_store.test_fsck_data import fill, spoil
from tests.exnode_store.volumes import small_volume


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    return small_volume(tmp_path / "volume")


def fsck(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    code = "from ibpfs_tools.fsck import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, input=text)


def test_a_clean_volume(paths: VolumePaths) -> None:
    done = fsck(paths.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{paths.root}: clean, 7 files\n", "")
    assert fsck(paths.root, "-q").stdout == ""


@pytest.mark.parametrize("words", [(), ("-a",), ("-p",), ("-y",), ("-a", "-T", "-C0"), ("-f", "-v", "-p")])
def test_faults_are_mended(paths: VolumePaths, words: tuple[str, ...]) -> None:
    seed(paths, "UPDATE inodes SET nlink = 9 WHERE ino = 5; UPDATE segments SET live = 1 WHERE id = 1")
    done = fsck(*words, paths.root)
    assert done.returncode == 1, done.stderr
    assert done.stdout == (
        "inode 5 (/big): link count is 9, should be 1: corrected\n"
        "segment 1: counts 1 live bytes, there are 74380: count corrected\n"
        f"{paths.root}: 2 repaired\n"
    )
    assert fsck(paths.root).returncode == 0


def test_n_changes_nothing(paths: VolumePaths) -> None:
    seed(paths, "UPDATE inodes SET nlink = 9 WHERE ino = 5")
    for _ in range(2):
        done = fsck("-n", paths.root)
        assert done.returncode == 4
        assert "should be 1: not repaired" in done.stdout
        assert "1 left as it was" in done.stdout


def test_what_is_left_and_what_is_mended_add_up(paths: VolumePaths) -> None:
    seed(paths, "UPDATE inodes SET nlink = 9 WHERE ino = 5; DELETE FROM replicas WHERE segment = 2")
    done = fsck("-y", paths.root)
    assert done.returncode == 5
    assert f"{paths.root}: 1 repaired, 1 left as it was" in done.stdout


def test_a_guess_needs_a_yes(paths: VolumePaths) -> None:
    seed(paths, "DELETE FROM symlinks")
    assert fsck("-a", paths.root).returncode == 4
    assert fsck("-y", paths.root).returncode == 1


def test_it_asks(paths: VolumePaths) -> None:
    seed(paths, "UPDATE inodes SET nlink = 9 WHERE ino = 5; UPDATE segments SET live = 1 WHERE id = 1")
    done = fsck("-r", paths.root, text="n\ny\n")
    assert done.returncode == 5
    assert "Repair it (corrected)?" in done.stdout
    assert "1 repaired, 1 left" in done.stdout
    assert fsck("-r", paths.root).returncode == 32  # nobody answers


def test_volume_toml_is_restored(paths: VolumePaths) -> None:
    paths.properties.write_text("format = 7")
    done = fsck("-a", paths.root)
    assert done.returncode == 1
    assert "volume.toml: damaged: restored from the exNode store" in done.stdout
    paths.properties.unlink()
    assert fsck("-a", paths.root).returncode == 1
    assert fsck("-a", paths.root).returncode == 0


def test_a_volume_in_use(paths: VolumePaths) -> None:
    with (paths.run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps({"pid": os.getpid(), "state": "mounted", "mountpoint": "/mnt"}))
        lock.flush()
        done = fsck("-n", paths.root)
    assert done.returncode == 8
    assert "is mounted on /mnt" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("/no/such/volume",), 8, "no volume there"),
        ((), 16, "Missing argument"),
        (("-n", "-y", "/v"), 16, "only one of"),
        (("--nonsense", "/v"), 16, "No such option"),
    ],
)
def test_what_cannot_be_done_is_one_line(words: tuple[str, ...], code: int, line: str) -> None:
    done = fsck(*words)
    assert done.returncode == code
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_version() -> None:
    assert fsck("-V").stdout == fsck("--version").stdout
    assert fsck("-V").stdout.startswith("fsck.ibpfs ")


# --data


def filled(root: Path, passphrase: bytes | None = None) -> VolumePaths:
    """A volume with some files on its own depot, which has ended again."""
    paths = VolumePaths(root)
    create_volume(paths, passphrase=passphrase)

    async def work() -> None:
        async with run_depot(paths.depot):
            await fill(paths)

    if passphrase is None:
        trio.run(work)
    return paths


def test_data_on_the_volumes_own_depot(tmp_path: Path) -> None:
    paths = filled(tmp_path / "volume")
    done = fsck("--data", paths.root)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{paths.root}: clean, 4 files\n", "")
    spoil(paths, 0, b"c")
    done = fsck("--data", "-y", paths.root)
    assert done.returncode == 4, done.stdout
    assert done.stdout.startswith("inode 4 (/c) bytes 0 to 76800: lost, slice ")
    assert not done.stderr


def test_data_without_a_key(tmp_path: Path) -> None:
    paths = filled(tmp_path / "volume", passphrase=b"secret")
    done = fsck("--data", paths.root)
    assert done.returncode == 0
    assert "frames are not opened: no key is at hand" in done.stdout
    (tmp_path / "word").write_text("secret\n")
    done = fsck("--data", "--passphrase-file", tmp_path / "word", paths.root)
    assert (done.returncode, done.stdout) == (0, f"{paths.root}: clean, 1 file\n")
    (tmp_path / "word").write_text("guess\n")
    assert fsck("--data", "--passphrase-file", tmp_path / "word", paths.root).returncode == 8


def test_data_with_a_silent_depot(paths: VolumePaths) -> None:
    seed(paths, "DELETE FROM replicas WHERE depot = 2; DELETE FROM depots WHERE id = 2")
    done = fsck("--data", paths.root)
    assert done.returncode == 8
    assert "depot ibp://127.0.0.1:1: does not answer, 2 replicas are not verified" in done.stdout
