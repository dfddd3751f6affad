"""Access times: seen at once, in the store soon, and never instead of a time that somebody set."""

from pathlib import Path

import pytest
import trio

from ibpfs.cache import access_times
from ibpfs.config import VolumePaths
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume

from .stack import Stack, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


def stored(stack: Stack, ino: int) -> int:
    return stack.names.inode(ino).atime_ns


async def test_an_access_is_seen_at_once_and_stored_within_seconds(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino, seq = now.create(b"file").ino, now.db.seq
        now.files.accessed(ino, 5_000_000_000)
        assert now.files.inode(ino).atime_ns == 5_000_000_000
        assert (stored(now, ino), now.db.seq) == (1_000_000_000, seq)
        with trio.fail_after(20):
            while stored(now, ino) != 5_000_000_000:
                await trio.sleep(0.05)
        assert now.files.inode(ino).version == 1


async def test_what_was_accessed_last_is_stored_at_the_end(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"file").ino
        now.files.accessed(ino, 5_000_000_000)
    async with run_stack(volume) as now:
        assert stored(now, ino) == 5_000_000_000


async def test_a_change_takes_the_access_along(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"file").ino
        now.files.accessed(ino, 5_000_000_000)
        now.files.change(ino, AttributeChange(mode=0o600))
        assert stored(now, ino) == 5_000_000_000
        now.files.accessed(ino, 6_000_000_000)
        now.files.change(ino, AttributeChange(atime_ns=7))
        assert (stored(now, ino), now.files.inode(ino).atime_ns) == (7, 7)


async def test_many_are_not_kept_waiting_and_of_what_is_gone_none(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        first = now.create(b"first").ino
        for ino in range(first, first + access_times._MOST):
            now.files.accessed(ino, 9)
        assert stored(now, first) == 9
        assert now.db.value("SELECT count(*) FROM inodes") == 2
