"""Which files fly together, by their age alone: no depot, no bytes, and a clock that stands still but for sleeps."""

import math
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from ibpfs.cache.dirty import DirtyFile
from ibpfs.cache.queue import BATCH_SLICES, DELAY, UploadQueue
from ibpfs.cache.spool_file import Record
from ibpfs.exnode_store.policies import Policy


@pytest.fixture
def queue() -> UploadQueue:
    return UploadQueue(lambda number: Policy(number, 1, 1))


def write(queue: UploadQueue, ino: int) -> DirtyFile:
    file = queue.files.setdefault(ino, DirtyFile(ino, 1, 1, 0))
    file.version += 1
    record = Record(None, 0, 0, ino, 1, 0, 10, file.version, 0)  # type: ignore[arg-type]
    file.add(record, 0, 10)
    if file.oldest_at == math.inf:
        file.oldest_at = trio.current_time()
    return file


def fly(queue: UploadQueue) -> list[int]:
    batch = queue.next_batch()
    return [] if batch is None else [file.ino for file, _ in batch.flights]


async def test_nothing_flies_before_it_is_old(autojump_clock: MockClock, queue: UploadQueue) -> None:
    write(queue, 1)
    assert fly(queue) == []
    await trio.sleep(0.9 * DELAY)
    write(queue, 2)
    assert fly(queue) == []
    await trio.sleep(0.11 * DELAY)
    assert fly(queue) == [1]
    await trio.sleep(0.88 * DELAY)
    assert fly(queue) == []
    await trio.sleep(0.02 * DELAY)
    assert fly(queue) == [2]
    assert fly(queue) == []


async def test_with_an_old_file_come_those_half_as_old(autojump_clock: MockClock, queue: UploadQueue) -> None:
    for ino in range(1, 11):
        write(queue, ino)
        await trio.sleep(0.1 * DELAY + 1e-6)
    assert fly(queue) == [1, 2, 3, 4, 5, 6]  # 1.0 to 0.5 old
    assert fly(queue) == []


async def test_the_oldest_come_first(autojump_clock: MockClock, queue: UploadQueue) -> None:
    young = [write(queue, ino) for ino in range(1, 2 * BATCH_SLICES)]
    write(queue, 5000)
    await trio.sleep(0.6 * DELAY)
    for file in young:
        file.oldest_at = trio.current_time()  # as if it had flown, and was written again
    await trio.sleep(0.5 * DELAY)
    taken = fly(queue)
    assert taken[0] == 5000
    assert len(taken) == BATCH_SLICES


async def test_what_is_old_and_cannot_fly_takes_nobody_along(autojump_clock: MockClock, queue: UploadQueue) -> None:
    write(queue, 1)
    await trio.sleep(DELAY)
    assert fly(queue) == [1]  # to a depot that does not answer
    write(queue, 1)
    await trio.sleep(1.1 * DELAY)
    write(queue, 2)
    await trio.sleep(0.6 * DELAY)
    assert fly(queue) == []
    await trio.sleep(0.4 * DELAY)
    assert fly(queue) == [2]


async def test_what_flew_in_vain_does_not_wait_again(autojump_clock: MockClock, queue: UploadQueue) -> None:
    first, _ = write(queue, 1), write(queue, 2)
    assert fly(queue) == []
    queue.make_old(first)
    assert fly(queue) == [1]
    assert fly(queue) == []


async def test_whenever_something_is_old_it_is_found(autojump_clock: MockClock, queue: UploadQueue) -> None:
    """However often it was looked for in vain, and whatever was written, taken or forgotten meanwhile."""
    numbers = count(1)
    for step in range(200):
        if step % 3 == 0:
            write(queue, next(numbers))
        if step % 7 == 0 and queue.files:
            queue.files.pop(next(iter(queue.files)))
        await trio.sleep(DELAY * (0.05 + step % 5 / 10))
        old = {file.ino for file in queue.files.values() if file.oldest_at <= trio.current_time() - DELAY}
        assert old <= set(fly(queue))
