"""Deleting goes on in transactions that change at most 1,000 rows each."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from ibpfs.cache.fsyncs import Fsyncs
from ibpfs.cache.reaper import Reaper
from ibpfs.exnode_store.attributes import NewInode
from tests.exnode_store.ledgers import Volume

if TYPE_CHECKING:
    from ibpfs.cache.flusher import Flusher

MOST = 1000


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "volume")


def fill(volume: Volume, name: bytes, pieces: int, *, together: bool) -> int:
    """A file of so many slices, in one segment or each in a segment of its own."""
    ino = volume.names.create(1, name, NewInode(0o100644, 0, 0)).ino
    with volume.db.transaction():
        segment = volume.segment()
        for piece in range(pieces):
            volume.write(ino, 10 * piece, 5, segment)
            if not together:
                volume.ledger.close_segment(segment)
                segment = volume.segment()
        volume.ledger.close_segment(segment)
    return ino


def changes_of(volume: Volume, work: Callable[[], Any]) -> list[int]:
    """How many rows each transaction of `work` has changed."""
    found, last = [], volume.db.changed_rows

    def note(statement: str) -> None:
        nonlocal last
        if statement == "COMMIT":
            found.append(volume.db.changed_rows - last)
            last = volume.db.changed_rows

    volume.db._connection.set_trace_callback(note)
    work()
    volume.db._connection.set_trace_callback(None)
    return found


@pytest.mark.parametrize("together", [True, False])
def test_inodes_without_names(volume: Volume, *, together: bool) -> None:
    sizes = [1200, 29, 90, *[28] * 40, 700]
    for number, pieces in enumerate(sizes):
        fill(volume, b"file%d" % number, pieces, together=together)
    reaper = Reaper(volume.db, volume.names, volume.ledger, cast("Flusher", SimpleNamespace(files={})), Fsyncs())
    for number in range(len(sizes)):
        reaper.doom(volume.names.unlink(1, b"file%d" % number).ino)

    def reap() -> None:
        while reaper.is_busy:
            reaper.finish()

    changed = changes_of(volume, reap)
    assert max(changed) <= MOST
    assert len(changed) < sum(sizes) // 20
    assert volume.db.value("SELECT count(*) FROM mappings") == 0
    assert volume.db.value("SELECT count(*) FROM segments WHERE live > 0") == 0


@pytest.mark.parametrize("together", [True, False])
def test_the_end_of_a_file(volume: Volume, *, together: bool) -> None:
    ino = fill(volume, b"file", 1200, together=together)

    def cut() -> None:
        if volume.ledger.truncate(ino, 0, volume.names.inode(ino).version + 1, spooled=False):
            while volume.ledger.cut(ino):
                pass

    assert max(changes_of(volume, cut)) <= MOST
    assert volume.db.value("SELECT count(*) FROM mappings") == 0


async def test_who_waits_for_an_fsync_comes_first_for_a_while(
    volume: Volume, autojump_clock: trio.testing.MockClock
) -> None:
    fsyncs = Fsyncs()
    reaper = Reaper(volume.db, volume.names, volume.ledger, cast("Flusher", SimpleNamespace(files={})), fsyncs)
    fill(volume, b"file", 1, together=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)
        await trio.testing.wait_all_tasks_blocked()
        with fsyncs:
            reaper.doom(volume.names.unlink(1, b"file").ino)
            await trio.sleep(0.9)
            assert reaper.is_busy
        await trio.sleep(0.25)
        assert not reaper.is_busy
        fill(volume, b"file", 1, together=True)
        with fsyncs:
            reaper.doom(volume.names.unlink(1, b"file").ino)
            with trio.fail_after(0.3):  # who waits for the room comes before those
                await reaper.done()
        fill(volume, b"file", 1, together=True)
        with fsyncs:
            reaper.doom(volume.names.unlink(1, b"file").ino)
            await trio.sleep(1.5)
            assert not reaper.is_busy
        nursery.cancel_scope.cancel()


def test_what_was_cut_a_moment_ago_is_finished_at_the_end(volume: Volume) -> None:
    reaper = Reaper(volume.db, volume.names, volume.ledger, cast("Flusher", SimpleNamespace(files={})), Fsyncs())
    for name in (b"one", b"two"):
        ino = fill(volume, name, 600, together=True)
        assert volume.ledger.truncate(ino, 0, volume.names.inode(ino).version + 1, spooled=False)
        reaper.cut(ino)
    reaper.finish()
    assert volume.db.value("SELECT count(*) FROM voids") == 0
    assert volume.db.value("SELECT count(*) FROM mappings") == 0
