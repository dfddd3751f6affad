"""Who keeps a mount busy, found without touching the mount."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

from ibpfs.mount_table import MountEntry
from ibpfs_tools.occupants import describe, occupants


def entry(place: Path, device: str = "4095:1") -> MountEntry:
    """A mount that is what the descriptors of `place` are on."""
    return MountEntry(mount_number(place), device, place, (), "fuse.ibpfs", "/v")


def mount_number(place: Path) -> int:
    descriptor = os.open(place, os.O_PATH)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    finally:
        os.close(descriptor)


def test_working_directory_open_file_and_mapping(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as child:
        found = {one.pid: one.use for one in occupants(entry(tmp_path))}
        assert found[child.pid] == "working directory"
        child.communicate(b"\n")
    with (tmp_path / "file").open("rb") as file:
        found = {one.pid: one.use for one in occupants(entry(tmp_path))}
        assert found[os.getpid()] == "open file file"
        status = os.fstat(file.fileno())
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
        mapped = mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ)
    found = {one.pid: one.use for one in occupants(entry(tmp_path, device)._replace(mountpoint=Path("/elsewhere")))}
    assert found[os.getpid()] == "mapped file"
    mapped.close()


def test_a_descriptor_of_what_the_mount_hides(tmp_path: Path) -> None:
    """The process of an ordinary user's mount holds one; it keeps nothing busy."""
    hiding = entry(tmp_path)._replace(number=2**31)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert occupants(hiding) == []
        assert [one.use for one in occupants(entry(tmp_path))] == ["open file ."]
    finally:
        os.close(descriptor)


def test_nobody() -> None:
    assert describe(entry(Path("/"))._replace(mountpoint=Path("/nowhere/at/all"))) == "by a process of another user"
