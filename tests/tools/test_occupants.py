"""Who keeps a mount busy, found without touching the mount."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

from ibpfs.kernel import MountEntry
from ibpfs_tools.occupants import describe, occupants


def entry(place: Path, device: str = "4095:1") -> MountEntry:
    return MountEntry(device, place, (), "fuse.ibpfs", "/v")


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
    found = {one.pid: one.use for one in occupants(entry(tmp_path / "elsewhere", device))}
    assert found[os.getpid()] == "mapped file"
    mapped.close()


def test_nobody() -> None:
    assert describe(entry(Path("/nowhere/at/all"))) == "by a process of another user"
