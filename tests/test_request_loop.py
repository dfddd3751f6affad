"""The right to read: one reader at a time, never nobody, and the rest of the process has its turn."""

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pyfuse3
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ibpfs import request_loop
from ibpfs.request_loop import IN_A_ROW, LONG, SHORT, taking_turns

TASKS = 4


class Kernel:
    """Requests are bytes in a pipe; they are read by tasks that do what pyfuse3's do, with the trio it would use."""

    def __init__(self, handle: Callable[[int], AsyncIterator[None]] | None = None) -> None:
        self.ours, self.theirs = os.pipe()
        os.set_blocking(self.ours, False)
        self.handle = handle
        self.answered: list[int] = []
        self.readers = 0

    def ask(self, *requests: int) -> None:
        os.write(self.theirs, bytes(requests))

    async def serve(self) -> None:
        lock = pyfuse3.trio.Lock()  # type: ignore[attr-defined]
        async with pyfuse3.trio.open_nursery() as nursery:  # type: ignore[attr-defined]
            for number in range(TASKS):
                nursery.start_soon(self._session, lock, name=f"session {number}")

    async def _session(self, lock: trio.Lock) -> None:
        while True:
            async with lock:
                self.readers += 1
                assert self.readers == 1
                try:
                    await pyfuse3.trio.lowlevel.wait_readable(self.ours)  # type: ignore[attr-defined]
                finally:
                    self.readers -= 1
            (request,) = os.read(self.ours, 1)
            await self._answer(request)
            self.answered.append(request)

    async def _answer(self, request: int) -> None:
        if self.handle is not None:
            async for _ in self.handle(request):
                pass


@contextmanager
def kernel(handle: Callable[[int], AsyncIterator[None]] | None = None) -> Iterator[Kernel]:
    with taking_turns():
        made = Kernel(handle)
        try:
            yield made
        finally:
            os.close(made.ours)
            os.close(made.theirs)


async def served(made: Kernel, count: int) -> None:
    with trio.fail_after(20):
        while len(made.answered) < count:
            await trio.lowlevel.checkpoint()


def test_pyfuse3_has_its_own_trio_back_afterwards() -> None:
    with taking_turns():
        assert pyfuse3.trio is not trio  # type: ignore[attr-defined]
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]


async def test_requests_that_wait_for_nothing_are_answered_in_their_order() -> None:
    with kernel() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve)
            made.ask(*range(200))
            await served(made, 200)
            nursery.cancel_scope.cancel()
        assert made.answered == list(range(200))


async def test_who_waits_keeps_nobody_from_being_answered() -> None:
    released = trio.Event()

    async def handle(request: int) -> AsyncIterator[None]:
        if request == 0:
            await released.wait()
        yield

    with kernel(handle) as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve)
            made.ask(0, 1, 2, 3)
            await served(made, 3)
            assert made.answered == [1, 2, 3]
            released.set()
            await served(made, 4)
            made.ask(4)  # the one that waited is no reader too many
            await served(made, 5)
            nursery.cancel_scope.cancel()
        assert made.answered == [1, 2, 3, 0, 4]


async def most_between_turns(made: Kernel, requests: int) -> int:
    """How many of so many requests, which are all there, are answered between two turns of another task."""
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(len(made.answered))
            await trio.lowlevel.checkpoint()

    made.ask(*(number % 250 for number in range(requests)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.serve)
        nursery.start_soon(other)
        await served(made, requests)
        nursery.cancel_scope.cancel()
    return max(later - earlier for earlier, later in pairwise(turns))


async def test_endless_requests_leave_others_their_turn() -> None:
    with kernel() as made:
        # Twice, because the loop shuffles whom it lets run.
        assert await most_between_turns(made, IN_A_ROW * 20) <= 2 * IN_A_ROW


@pytest.mark.parametrize("carried", [False, True])
async def test_long_requests_leave_others_their_turn_sooner(carried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And while a stream is carried after shorter ones."""
    if carried:
        monkeypatch.setattr(request_loop, "CARRIED", {"a stream"})

    async def handle(_: int) -> AsyncIterator[None]:
        end = time.perf_counter() + (SHORT if carried else LONG)
        while time.perf_counter() < end:
            pass
        for nothing in ():
            yield nothing

    with kernel(handle) as made:
        assert await most_between_turns(made, IN_A_ROW * 4) <= 4


async def test_told_to_close_between_two_requests_it_reads_no_more() -> None:
    ended = trio.Event()

    async def close(made: Kernel) -> None:
        while not made.answered:
            await trio.lowlevel.checkpoint()
        pyfuse3.trio.lowlevel.notify_closing(made.ours)  # type: ignore[attr-defined]

    async def serve(made: Kernel) -> None:
        with pytest.raises(ExceptionGroup) as error:
            await made.serve()
        assert error.group_contains(trio.ClosedResourceError)
        ended.set()

    with kernel() as made, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close, made)
            nursery.start_soon(serve, made)
            made.ask(*range(3 * IN_A_ROW))
            await ended.wait()
        assert 0 < len(made.answered) < 3 * IN_A_ROW


async def test_a_task_that_fails_ends_them_all() -> None:
    async def handle(request: int) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if request:
            raise ZeroDivisionError
        yield

    with kernel(handle) as made, trio.fail_after(20):
        made.ask(0, 0, 1)
        with pytest.raises(ExceptionGroup) as error:
            await made.serve()
        assert error.group_contains(ZeroDivisionError, depth=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.data())
def test_every_request_is_answered_once(requests: list[int], data: st.DataObject) -> None:
    pauses = data.draw(st.lists(st.integers(0, 3), min_size=256, max_size=256))

    async def handle(request: int) -> AsyncIterator[None]:
        for _ in range(pauses[request]):
            await trio.lowlevel.checkpoint()
        yield

    async def run() -> None:
        with kernel(handle) as made:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.serve)
                for request in requests:
                    made.ask(request)
                    if request % 2:
                        await trio.lowlevel.checkpoint()
                await served(made, len(requests))
                nursery.cancel_scope.cancel()
            assert sorted(made.answered) == sorted(requests)

    trio.run(run)


async def test_while_a_request_waits_nobody_stands_still_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    lingered: list[int] = []
    released = trio.Event()

    async def handle(request: int) -> AsyncIterator[None]:
        if request == 0:
            await released.wait()
        yield

    def select(read: list[int], *_: object) -> tuple[list[int], list[int], list[int]]:
        lingered.append(len(made.answered))
        return [], [], []

    monkeypatch.setattr("ibpfs.request_loop.select.select", select)
    monkeypatch.setattr("ibpfs.request_loop.SELECTABLE", sys.maxsize)  # the process of the tests may have many open
    with kernel(handle) as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve)
            made.ask(0, 1, 2)
            await served(made, 2)
            assert lingered == []
            released.set()
            await served(made, 3)
            made.ask(3)
            await served(made, 4)
            await trio.testing.wait_all_tasks_blocked()
            assert lingered == [4]
            nursery.cancel_scope.cancel()


async def test_who_waited_awake_in_vain_waits_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    class Poll:
        def register(self, *_: object) -> None: ...

        def poll(self, _: int) -> list[object]:
            looks.append(len(made.answered))
            return []

    monkeypatch.setattr("ibpfs.request_loop.select.poll", Poll)
    with kernel() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve)
            for number in range(3):
                made.ask(number)
                await served(made, number + 1)
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert looks.count(0) > 1  # nothing had been asked: in vain
    assert looks.count(1) == 1  # so this one slept
