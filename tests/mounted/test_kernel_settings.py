"""What a mount by root raises in the kernel."""

import os
from pathlib import Path

import pytest

from .volumes import Volume, mount_table

pytestmark = [pytest.mark.mounted, pytest.mark.root]


def test_the_mount_reads_far_ahead(volume: Volume) -> None:
    (line,) = [one for one in mount_table() if os.fsdecode(one.split()[4]) == str(volume.mountpoint)]
    device = line.split()[2].decode()
    assert int(Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text()) >= 1024


def test_the_mount_is_known_by_its_volume_and_type(volume: Volume) -> None:
    (line,) = [one for one in mount_table() if os.fsdecode(one.split()[4]) == str(volume.mountpoint)]
    kind, source = line.split(b" - ")[1].split()[:2]
    assert (kind, os.fsdecode(source)) == (b"fuse.ibpfs", str(volume.root))
