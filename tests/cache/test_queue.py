"""Which files fly together, by their age alone: no depot, no bytes, and a clock that stands still but for sleeps."""

import math
import time
from itertools import count

import pytest
import trio
from trio.testing import MockClock

from ibpfs.cache.dirty import DirtyFile
from ibpfs.cache.queue import BATCH_SLICES, DELAY, UploadQueue
from ibpfs.cache.spool_file import Frames, Record
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.sealing import AES_256_GCM, MAX_SLICE, Sealing, SliceForm


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


MIB = 1 << 20


class Stream:
    """Writes of a time of its own, and depots that take so many batches at a time, each for so long."""

    def __init__(self, queue: UploadQueue, monkeypatch: pytest.MonkeyPatch, lanes: int = 1000) -> None:
        self.queue, self.lanes = queue, lanes
        self.began, self.wall = trio.current_time(), time.time_ns()
        self.ahead = 0.0  # seconds that the clock was set by
        self.flown: list[tuple[float, int, int, int]] = []  # when, inode, start, stop
        monkeypatch.setattr(time, "time_ns", self.now)

    @property
    def seconds(self) -> float:
        return trio.current_time() - self.began

    def now(self) -> int:
        return self.wall + int((self.seconds + self.ahead) * 1e9)

    def write(self, ino: int, at: int, length: int) -> None:
        """As FileCache and Flusher do."""
        file = self.queue.files.setdefault(ino, DirtyFile(ino, 1, 1, 0))
        file.version += 1
        record = Record(None, 0, 0, ino, 1, at, length, file.version, self.now())  # type: ignore[arg-type]
        file.add(record, at, at + length)
        if file.oldest_at == math.inf:
            file.oldest_at = trio.current_time()
        elif file.idle >= MAX_SLICE:
            self.queue.full.add(ino)

    def fly(self) -> None:
        for _ in range(self.lanes):
            batch = self.queue.next_batch()
            if batch is None:
                return
            for file, flight in batch.flights:
                self.flown.append((self.seconds, file.ino, flight.start, flight.stop))
                file.landed(flight)
                if file.is_clean:
                    del self.queue.files[file.ino]
                elif file.oldest_at == math.inf:
                    file.oldest_at = trio.current_time()

    def when(self, ino: int, at: int) -> float:
        """When this byte flew first."""
        flown = (seconds for seconds, one, start, stop in self.flown if one == ino and start <= at < stop)
        return next(flown, math.inf)


async def test_a_stream_flies_in_whole_slices_however_long_it_is(
    autojump_clock: MockClock, queue: UploadQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written now is not old because what was written before it is."""
    stream = Stream(queue, monkeypatch)
    for at in range(100):
        stream.write(1, at * MIB, MIB)
        if at % 3 == 0:  # so that something is left each time
            stream.fly()
        await trio.sleep(DELAY / 8)
    flown = [(start, stop) for _, _, start, stop in stream.flown]
    assert flown == [(start, start + MAX_SLICE) for start in range(0, 100 * MIB, MAX_SLICE)]


@pytest.mark.parametrize(("ahead", "rewritten"), [(0.0, False), (0.0, True), (-3600.0, False), (3600.0, False)])
async def test_what_is_written_before_a_stream_does_not_wait_for_its_end(
    autojump_clock: MockClock, queue: UploadQueue, monkeypatch: pytest.MonkeyPatch, ahead: float, rewritten: bool
) -> None:
    """Whether it is written again and again, and whatever becomes of the clock."""
    stream = Stream(queue, monkeypatch)
    stream.write(1, 0, 4096)
    stream.ahead = ahead
    for at in range(1, 100):
        if rewritten and at % 5 == 0:
            stream.write(1, 0, 4096)
        stream.write(1, at * MIB, MIB)
        stream.fly()
        await trio.sleep(DELAY / 10)
    assert stream.when(1, 0) <= 2 * DELAY


async def test_a_backlog_from_the_future_does_not_wait(
    autojump_clock: MockClock, queue: UploadQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(queue, monkeypatch)
    stream.ahead = 3600.0
    for at in range(40):
        stream.write(1, 2 * at * MIB, MIB)
    stream.ahead = 0.0
    while queue.files:
        stream.fly()
        await trio.sleep(DELAY / 10)
    assert stream.seconds < 2 * DELAY


async def test_a_file_beside_a_backlog_has_its_turn(
    autojump_clock: MockClock, queue: UploadQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(queue, monkeypatch, lanes=1)
    for at in range(64):
        stream.write(1, at * MIB, MIB)
    stream.write(2, 0, 4096)
    for at in range(64, 200, 4):
        stream.fly()
        await trio.sleep(DELAY / 2)
        for further in range(4):
            stream.write(1, (at + further) * MIB, MIB)
    assert stream.when(2, 0) <= 3 * DELAY


def test_what_is_overwritten_is_not_cut_into_what_it_was(queue: UploadQueue) -> None:
    file = DirtyFile(1, 1, 1, 0)
    form = SliceForm(bytes(16), bytes(16), 1, AES_256_GCM, 4, 16)
    sealing = Sealing(form, bytes(32), 7)
    sealing.add(bytes(16))
    file.add(Record(None, 0, 0, 1, 1, 0, 4, 1, 0), 0, 4)  # type: ignore[arg-type]
    file.add(Record(None, 0, 0, 1, 1, 4, 16, 2, 0, Frames(form, 0, sealing)), 4, 20)  # type: ignore[arg-type]
    assert [(run[0].start, run[-1].stop) for run in file.ready(100, 100)] == [(0, 4), (4, 20)]
    file.add(Record(None, 0, 0, 1, 1, 6, 2, 3, 0), 6, 8)  # type: ignore[arg-type]
    assert not sealing.is_usable
    assert [(run[0].start, run[-1].stop) for run in file.ready(100, 100)] == [(0, 20)]
