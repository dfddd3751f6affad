"""How pyfuse3's tasks take turns at reading the kernel's requests.

pyfuse3 takes what it needs of trio from an attribute of its own, and so can be given something else (as its asyncio
layer does). Its tasks pass a lock on after every request, so that whoever answered one waits behind the next reader.
Here a task that answered without waiting for anything, as most do, goes on reading: of 55 us of the CPU time of a chmod
18 are saved, of a create and write 70 of 330. The next request of one program comes a moment after its answer: to wait
for it here for that moment is cheaper than a turn of the event loop, and an untar 18 % faster. To wait awake is cheaper
still, where the program has a processor of its own: one that sleeps takes 40 us to be woken on a virtual machine.
"""

import select
import time
import types
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace, TracebackType
from typing import Any

import pyfuse3
import trio

from ibpfs.alertness import CARRIED, LISTENED, Alertness

#: Requests that are answered in a row before other tasks have their turn, and seconds since their last one after which
#: they have it sooner. A MiB of a stream takes 1 to 3 ms; with a turn after 16 of these uploads fell behind in every
#: third run (in memory: 24,000 page faults of 128 MiB, else 8,000), and fsync took 150 to 400 ms, not 10.
IN_A_ROW = 16
LONG = 1.2e-3
#: The same while a stream is carried to depots: after each MiB, or so, while who writes it fills the next one.
SHORT = 0.3e-3
#: Seconds for which the event loop stands still for the next request, where no request waits for anything.
LINGER = 50e-6
#: Descriptors below this may be given to select(2), which alone takes less than a millisecond as its limit.
SELECTABLE = 1024

Task = Callable[..., Coroutine[Any, Any, None]]


class Reading:
    """The right to read the next request: pyfuse3's `trio.Lock` and `wait_readable` in one, for one descriptor.

    It is free while its last holder answers. Who then has to wait for something leaves it to another (`left`).
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._parked = 0  # tasks that handed control to the event loop, those in `_waiting` among them
        self._in_a_row = 0
        self._turned_at = 0.0  # when others had had their turn
        self._poll: select.poll | None = None
        self._alertness = Alertness()
        self._closing = False

    async def __aenter__(self) -> None:
        if self._taken:
            await self._wait()
        self._taken = True

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken = False

    def parked(self) -> None:
        self._parked += 1
        self.left()

    def resumed(self) -> None:
        self._parked -= 1

    def left(self) -> None:
        """A task has to wait, or ends. Where it was to read next, let somebody else do so."""
        if not self._taken and self._waiting:
            self._taken = True
            trio.lowlevel.reschedule(self._waiting.popleft())

    def notify_closing(self, descriptor: int) -> None:
        """pyfuse3 is to end, also where nobody waits for a request just now."""
        self._closing = True
        trio.lowlevel.notify_closing(descriptor)

    async def wait_readable(self, descriptor: int) -> None:
        """Return when there is a request. Raises ClosedResourceError once pyfuse3 is to end."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
            LISTENED.add(descriptor)
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW or time.perf_counter() - self._turned_at > (SHORT if CARRIED else LONG):
            await trio.lowlevel.checkpoint()  # not a wait: the processor would go to sleep
            self._turned()
            if self._closing:
                raise trio.ClosedResourceError
        if not self._poll.poll(0) and not self._linger(self._poll, descriptor):
            await trio.lowlevel.wait_readable(descriptor)
            self._turned()

    def _turned(self) -> None:
        self._in_a_row = 0
        self._turned_at = time.perf_counter()

    def _linger(self, poll: select.poll, descriptor: int) -> bool:
        if self._parked > len(self._waiting):
            return False
        if self._alertness.is_worth_it():
            end = time.perf_counter() + LINGER
            while time.perf_counter() < end:
                if poll.poll(0):
                    self._alertness.paid()
                    return True
            self._alertness.was_in_vain()  # as well where the request is here, and others had our processor meanwhile
        return descriptor < SELECTABLE and bool(select.select([descriptor], [], [], LINGER)[0])


class _Nursery:
    """A nursery that says when one of its tasks waits or ends."""

    def __init__(self, nursery: trio.Nursery, reading: Reading) -> None:
        self._nursery = nursery
        self._reading = reading

    def start_soon(self, task: Task, *arguments: Any, name: str) -> None:
        self._nursery.start_soon(self._run, task, arguments, name=name)

    async def _run(self, task: Task, arguments: tuple[Any, ...]) -> None:
        try:
            await _watched(task(*arguments), self._reading)
        finally:
            self._reading.left()


@types.coroutine
def _watched(task: Coroutine[Any, Any, None], reading: Reading) -> Generator[Any, Any, None]:
    """Run `task`, and tell `reading` whenever it hands control to the event loop."""
    resume: Callable[[Any], Any] = task.send
    given: Any = None
    while True:
        try:
            trap = resume(given)
        except StopIteration:
            return
        reading.parked()
        try:
            given, resume = (yield trap), task.send
        except BaseException as error:
            given, resume = error, task.throw
        reading.resumed()


@contextmanager
def taking_turns() -> Iterator[None]:
    """Have pyfuse3's tasks take turns like this as long as it lasts."""
    reading = Reading()

    @asynccontextmanager
    async def open_nursery() -> AsyncIterator[_Nursery]:
        async with trio.open_nursery() as nursery:
            yield _Nursery(nursery, reading)

    before = pyfuse3.trio  # type: ignore[attr-defined]
    watched = {"wait_readable": reading.wait_readable, "notify_closing": reading.notify_closing}
    lowlevel = SimpleNamespace(**{**vars(trio.lowlevel), **watched})
    ours = {"lowlevel": lowlevel, "Lock": lambda: reading, "open_nursery": open_nursery}
    pyfuse3.trio = SimpleNamespace(**{**vars(trio), **ours})  # type: ignore[attr-defined]
    try:
        yield
    finally:
        pyfuse3.trio = before  # type: ignore[attr-defined]
        LISTENED.clear()
