"""Making bytes durable: which descriptors are kept, how many syncs there are, who hears of errors."""

import errno
import math
import os
import threading
from pathlib import Path

import pytest
import trio

from ibpfs.depot import disk_pace
from ibpfs.depot.server.syncing import ALONE, MANY, SyncThreads, Unsynced, one_per_file_system, settle_now


def written(directory: Path, name: str) -> int:
    fd = os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"data")
    return fd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_file_written_many_times_is_synced_once(tmp_path: Path) -> None:
    unsynced = Unsynced()
    first, second, other = written(tmp_path, "a"), written(tmp_path, "a"), written(tmp_path, "b")
    for fd in (first, second, other):
        unsynced.take(fd)
    assert unsynced.units == [first, other]
    assert not is_open(second)
    unsynced.close()
    assert not is_open(first)
    assert not unsynced


@pytest.mark.parametrize("count", [1, 2, MANY + 10])
async def test_what_was_settled_is_closed(tmp_path: Path, count: int) -> None:
    descriptors = [written(tmp_path, str(number)) for number in range(count)]
    unsynced = Unsynced(directories={str(tmp_path)})
    for fd in descriptors:
        unsynced.take(fd)
    with SyncThreads() as syncs:
        await syncs.settle(unsynced)
    assert not any(map(is_open, descriptors))


async def test_what_was_deleted_and_nothing_else_is_closed_at_once(tmp_path: Path) -> None:
    fd = written(tmp_path, "a")
    with SyncThreads() as syncs:
        await syncs.settle(Unsynced(deleted=[fd]))
    assert not is_open(fd)


@pytest.mark.parametrize("count", [1, 2])
async def test_what_was_deleted_is_closed_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    closed: dict[int, int] = {}
    close = os.close

    def noted(fd: int) -> None:
        closed[fd] = threading.get_ident()
        close(fd)

    with SyncThreads() as syncs:
        for _ in range(2 * ALONE):  # who is alone, with a quick disk, has nothing done by threads else
            await syncs.settle(Unsynced(directories={str(tmp_path)}))
        deleted = [written(tmp_path, str(number)) for number in range(count)]
        unsynced = Unsynced(directories={str(tmp_path)}, deleted=list(deleted))
        monkeypatch.setattr(os, "close", noted)
        await syncs.settle(unsynced)
        monkeypatch.undo()
    assert not any(map(is_open, deleted))
    assert all(closed[fd] != threading.get_ident() for fd in deleted)


@pytest.mark.parametrize("count", [1, 5, MANY + 10])
async def test_who_waits_hears_of_an_error(tmp_path: Path, count: int) -> None:
    """A pipe can be written to and never be synced."""
    reader, writer = os.pipe()
    unsynced, sound = Unsynced(), Unsynced()
    unsynced.take(writer)
    for number in range(count - 1):
        unsynced.take(written(tmp_path, str(number)))
    sound.take(written(tmp_path, "sound"))
    with SyncThreads() as syncs:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - whatever the kernel calls it
            await syncs.settle(unsynced)
        await syncs.settle(sound)
    os.close(reader)
    assert caught.value.errno in (errno.EINVAL, errno.ESPIPE, errno.EROFS)


def test_many_files_are_synced_on_every_file_system_they_lie_on(tmp_path: Path, small_disk: Path) -> None:
    here = [written(tmp_path, str(number)) for number in range(3)]
    there = [written(small_disk, str(number)) for number in range(2)]
    try:
        chosen = one_per_file_system([*here, *there, str(tmp_path)])
        assert {Path(f"/proc/self/fd/{one}").stat().st_dev if isinstance(one, int) else Path(one).stat().st_dev
                for one in chosen} == {tmp_path.stat().st_dev, small_disk.stat().st_dev}  # fmt: skip
        assert len(chosen) == 2
    finally:
        for fd in (*here, *there):
            os.close(fd)


def test_without_threads(tmp_path: Path) -> None:
    unsynced = Unsynced(directories={str(tmp_path)})
    unsynced.take(written(tmp_path, "a"))
    settle_now(unsynced)
    unsynced.close()


async def test_who_is_alone_waits_for_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a disk that was slow is waited for in a thread again."""
    here: list[bool] = []
    monkeypatch.setattr(os, "fdatasync", lambda _: here.append(threading.current_thread() is threading.main_thread()))
    monkeypatch.setattr(disk_pace, "STALL", math.inf)
    with SyncThreads() as syncs:

        async def settle() -> None:
            unsynced = Unsynced()
            unsynced.take(written(tmp_path, "a"))
            await syncs.settle(unsynced)

        async def settle_often() -> None:
            for _ in range(2 * ALONE):
                syncs._pace.took(0.0, in_thread=False)
                await settle()

        await settle_often()
        assert here == [False] * ALONE + [True] * ALONE
        syncs._pace.took(1.0, in_thread=False)
        syncs._pace.took(1.0, in_thread=False)
        await settle()
        assert here[-1] is False
        syncs._pace.took(0.0, in_thread=False)
        await settle()
        assert here[-1] is True
        here.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle_often)
            nursery.start_soon(settle_often)
        assert not all(here[-ALONE:])
