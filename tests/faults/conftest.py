"""The fixtures of tests on real mounts, here as well; and a disk that forgets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.conftest import depots, directory, session, source_tree, volume, volumes
from tests.mounted.running import kill_and_wait, processes_of
from tests.mounted.volumes import detach_below

from .disks import Disk

__all__ = ["depots", "directory", "session", "source_tree", "volume", "volumes"]


@pytest.fixture
def disk(directory: Path) -> Iterator[Disk]:
    """A file system in memory that forgets what was not synced, when it is told to."""
    one = Disk(directory / "disk")
    try:
        yield one
    finally:
        kill_and_wait([pid for pid in processes_of(one.mountpoint) if pid != one.process.pid])
        detach_below(directory)
        one.close()
