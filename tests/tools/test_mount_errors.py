"""What mount.ibpfs says when it cannot mount: one clear line, mount(8)'s number, nothing changed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, write_key_file
from ibpfs.exnode_store.creation import create_volume


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=["ibp://127.0.0.1:9"])
    return paths


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "place"
    place.mkdir()
    yield place
    assert str(place) not in Path("/proc/mounts").read_text()


def tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = f"from ibpfs_tools.{name} import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=cwd, stdin=subprocess.DEVNULL)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_missing_volume(tmp_path: Path, place: Path) -> None:
    refused(tool("mount", tmp_path / "none", place), 32, "no volume there", "mkfs.ibpfs")


def test_missing_arguments() -> None:
    refused(tool("mount"), 1, "VOLUME")


def test_unknown_option(paths: VolumePaths, place: Path) -> None:
    for word, said in (
        ("ro,cache_sise=1G", "'cache_sise=1G'; did you mean cache_size?\n"),
        ("notaime", "'notaime'; did you mean noatime?\n"),
        ("zzz", "'zzz'\n"),
    ):
        refused(tool("mount", paths.root, place, "-o", word), 1, f"unknown mount option {said}")
    refused(tool("mount", paths.root, place, "-o", "cache_size=lots"), 1, "'lots' is not a size")


def test_missing_mount_point(paths: VolumePaths, tmp_path: Path) -> None:
    refused(tool("mount", paths.root, tmp_path / "nowhere"), 32, str(tmp_path / "nowhere"), "mkdir")


def test_mount_point_that_is_a_file(paths: VolumePaths, place: Path) -> None:
    (place / "file").write_text("")
    refused(tool("mount", paths.root, place / "file"), 32, "not a directory")


def test_volume_inside_its_own_mount_point(paths: VolumePaths, tmp_path: Path) -> None:
    refused(tool("mount", paths.root, tmp_path), 32, str(paths.root), "inside")


def test_damaged_volume_toml(paths: VolumePaths, place: Path) -> None:
    text = paths.properties.read_text()
    paths.properties.write_text(text.replace("plain = false", "plain = true"))
    refused(tool("mount", paths.root, place), 32, "damaged", "fsck.ibpfs")
    paths.properties.unlink()
    refused(tool("mount", paths.root, place), 32, "missing", "fsck.ibpfs")


def test_wrong_key(paths: VolumePaths, place: Path) -> None:
    write_key_file(paths.key, bytes(32))
    refused(tool("mount", paths.root, place), 32, "key file does not open this volume")
    assert not list(paths.spool.iterdir())


def test_wrong_passphrase_and_none(tmp_path: Path, place: Path) -> None:
    paths = VolumePaths(tmp_path / "secret")
    create_volume(paths, passphrase=b"correct horse")
    refused(tool("mount", paths.root, place), 1, "needs its passphrase", "--passphrase-file")
    (tmp_path / "word").write_text("battery\n")
    refused(tool("mount", paths.root, place, "--passphrase-file", tmp_path / "word"), 32, "passphrase does not open")
    refused(tool("mount", paths.root, place, "-o", f"passphrase_file={tmp_path}/none"), 1, "cannot read the passphrase")


def test_missing_key_file(paths: VolumePaths, place: Path) -> None:
    paths.key.unlink()
    refused(tool("mount", paths.root, place), 32, str(paths.key), "--recovery-file")


def test_fake_checks_but_mounts_nothing(paths: VolumePaths, place: Path, tmp_path: Path) -> None:
    done = tool("mount", "-f", paths.root, place)
    assert (done.returncode, done.stderr) == (0, "")
    refused(tool("mount", "-f", paths.root, tmp_path / "nowhere"), 32, "nowhere")


def test_remount_of_nothing(paths: VolumePaths, place: Path) -> None:
    refused(tool("mount", paths.root, place, "-o", "remount,ro"), 32, "no file system of ibpfs is mounted there")


def test_namespace_that_is_not_there(paths: VolumePaths, place: Path) -> None:
    refused(tool("mount", paths.root, place, "-N", "/proc/none"), 32, "no such mount namespace")


def test_umount_of_nothing(place: Path) -> None:
    refused(tool("umount", place), 32, "no file system of ibpfs is mounted there")
    refused(tool("umount", "no-such-name"), 32, "no-such-name: no file system of ibpfs is mounted there")
    refused(tool("umount"), 1, "MOUNTPOINT")


def test_verbs_without_a_volume(place: Path) -> None:
    for verb in ("status", "flush", "drop-cache", "depots"):
        refused(tool("ibpfs", verb, place), 1, f"{place}: no volume is mounted there, nor is it one")
        done = tool("ibpfs", verb, place.name, cwd=place.parent)
        refused(done, 1, "place: no volume is mounted there, nor is there one of that name")
        refused(tool("ibpfs", verb, place / "none"), 1, "no volume there; make one with")
    refused(tool("ibpfs", "stat", place), 1, "is not on a mounted volume")
    refused(tool("ibpfs", "nonsense"), 2, "there is no verb")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files of root; CI runs this as root")
def test_root_owned_files_left_by_sudo(paths: VolumePaths, place: Path) -> None:
    left = paths.spool / "00000001.spool"
    left.write_bytes(b"")
    os.chown(paths.root, 1000, 1000)
    for entry in paths.root.rglob("*"):
        if entry != left:
            os.chown(entry, 1000, 1000)
    left.chmod(0o600)
    code = f"""
import os, sys
from ibpfs_tools.mount import main
import ibpfs.mount, trio
os.setgroups([]); os.setgid(1000); os.setuid(1000)
sys.argv = ["mount.ibpfs", {str(paths.root)!r}, {str(place)!r}]
main()
"""
    for parent in place.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    place.parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    refused(done, 32, str(left), "belongs to root", "chown")
