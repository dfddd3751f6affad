"""What cannot be mounted on, and a mount that is made and taken away."""

import os
from pathlib import Path

import pytest

from ibpfs.errors import UsageError
from ibpfs.kernel import attach, check_mountpoint, detach, mount_at, mounts_of
from ibpfs.mount_options import parse_mount_options


def test_the_real_table_has_a_root() -> None:
    entry = mount_at(Path("/"))
    assert entry is None or entry.device  # None only inside some chroots


def test_what_cannot_be_mounted_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mnt" / "volume").mkdir(parents=True)
    with pytest.raises(UsageError, match="no such directory"):
        check_mountpoint(tmp_path / "missing", tmp_path / "volume")
    with pytest.raises(UsageError, match="not a directory"):
        check_mountpoint(tmp_path / "file", tmp_path / "volume")
    with pytest.raises(UsageError, match="inside the mount point"):
        check_mountpoint(tmp_path / "mnt", tmp_path / "mnt" / "volume")
    with pytest.raises(UsageError, match="inside the mount point"):
        check_mountpoint(tmp_path / "mnt", tmp_path / "mnt")
    with pytest.raises(UsageError, match="inside the volume"):
        check_mountpoint(tmp_path / "mnt" / "volume", tmp_path / "mnt")
    check_mountpoint(tmp_path / "mnt", tmp_path / "mnt2")


@pytest.mark.root
@pytest.mark.mounted
def test_attach_and_detach(tmp_path: Path) -> None:
    mountpoint, source = tmp_path / "m, ü", tmp_path / "volume, ö"
    mountpoint.mkdir()
    descriptor = attach(str(source), mountpoint, parse_mount_options(["noatime,noexec,ro"]))
    try:
        entry = mount_at(mountpoint)
        assert entry is not None
        assert entry.source == str(source)
        assert {"noatime", "noexec", "ro"} <= set(entry.options)
        assert mounts_of(source) == [entry]
        with pytest.raises(UsageError, match="is mounted there already"):
            check_mountpoint(mountpoint, tmp_path / "other")
    finally:
        os.close(descriptor)
        assert detach(mountpoint)
    assert mount_at(mountpoint) is None
    assert not detach(mountpoint)
