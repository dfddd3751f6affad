"""The mount table as it is written, what cannot be mounted on, and a mount that is made and taken away."""

import os
from pathlib import Path

import pytest

from ibpfs.errors import UsageError
from ibpfs.kernel import attach, check_mountpoint, detach, mount_at, mount_entries, mounts_of
from ibpfs.mount_options import parse_mount_options

TABLE = rb"""27 1 259:1 / / rw,relatime - ext4 /dev/root rw
42 27 0:39 / /mnt/with\040blank rw,nosuid,noatime shared:5 - fuse.ibpfs /srv/a\054b\134c rw,user_id=0
43 27 0:40 / /mnt/over rw master:1 propagate_from:2 - fuse.ibpfs /srv/vol ro
"""


def test_table_is_read_with_its_escapes(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(TABLE)
    root, blank, over = mount_entries(table)
    assert (root.device, root.kind, root.source) == ("259:1", "ext4", "/dev/root")
    assert blank.mountpoint == Path("/mnt/with blank")
    assert blank.source == "/srv/a,b\\c"
    assert blank.options == ("rw", "nosuid", "noatime")
    assert (over.kind, over.device) == ("fuse.ibpfs", "0:40")


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
