"""Two copies wanted and fewer there: what the spool keeps serves reads and makes up the copies, through kills."""

import shutil

import pytest

from .running import until
from .test_status import make_tree, read_tree
from .volumes import MakeVolume

pytestmark = pytest.mark.mounted


def test_the_spool_outlives_the_only_copy_until_there_are_two(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=2)
    volume.expect("does not answer|append refused|wait in the spool|depot|EIO")
    first, second = volume.depots
    second.kill()
    content = make_tree(volume.mountpoint)
    until(lambda: volume.status()["dirty_bytes"] == 0, 30, "one copy")
    found = volume.status()
    size = sum(map(len, content.values()))
    assert found["retained_bytes"] == size
    assert found["spool_bytes"] > size
    assert found["under_replicated_bytes"] > size

    volume.kill()
    first.kill()
    shutil.rmtree(first.store / "allocations")
    volume.empty_cache()
    volume.mount()
    assert volume.status()["retained_bytes"] == size
    assert read_tree(volume.mountpoint) == content

    first.start()  # knows nothing any more
    second.start()
    until(lambda: volume.status()["spool_bytes"] == 0, 60, "two copies of everything")
    assert volume.status()["under_replicated_bytes"] == 0
    volume.drop_cache()
    assert read_tree(volume.mountpoint) == content
    volume.umount()
    assert volume.spool_files() == []
    assert "clean" in volume.fsck("--data", "-n").stdout
