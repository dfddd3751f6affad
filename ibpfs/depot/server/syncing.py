"""Making bytes durable, many requests at a time: whoever waits while a sync runs shares the next one."""

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ibpfs.depot.disk_pace import DiskPace
from ibpfs.depot.server.counters import Durations
from ibpfs.writeback import start_writeback, wait_for_writeback

# Syncs at one time share the commits of the file system's journal, the more so when the blocks of all files are laid
# out before the first of them. Measured on ext4, 8 new files: one after another 7 ms, in 8 threads 0.8 ms.
WORKERS = 8
# Beyond so many, one syncfs: 64 new files 2 ms against 7 ms in threads, which need the interpreter for each. Below it
# none, for it also waits for what strangers have written: 70 ms beside somebody who writes 300 MB/s.
MANY = 32
# One client alone, that waits for each reply, has nobody beside it for whom a thread would be worth its price: 100 us
# of the CPU time of a STORE, and four switches between threads that it waits for. So the event loop itself waits for a
# quick disk where nobody else has wanted one of so many syncs.
ALONE = 8

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Unsynced:
    """What a session wrote since its last sync. Owns the descriptors, one per file."""

    files: dict[tuple[int, int], int] = field(default_factory=dict)  # by device and inode
    directories: set[str] = field(default_factory=set)
    deleted: list[int] = field(default_factory=list)  # of files without a name, whose blocks come back with `close`

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.deleted)

    def __len__(self) -> int:
        return len(self.files) + len(self.directories) + len(self.deleted)

    def take(self, fd: int) -> None:
        """The first descriptor of a file stands for all: it hears of every error since it was opened."""
        status = os.fstat(fd)
        if self.files.setdefault((status.st_dev, status.st_ino), fd) != fd:
            os.close(fd)

    @property
    def units(self) -> "list[_Unit]":
        return [*self.files.values(), *self.directories]

    def close(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])
        self.directories.clear()
        while self.deleted:
            with suppress(OSError):  # nobody needs what they held
                os.close(self.deleted.pop())


_Unit = int | str  # a descriptor, or the path of a directory


@dataclass(slots=True, eq=False)
class _Request:
    unsynced: Unsynced
    token: trio.lowlevel.TrioToken
    task: trio.lowlevel.Task
    left: int
    error: OSError | None = None

    def end(self) -> None:
        self.token.run_sync_soon(trio.lowlevel.reschedule, self.task)


_Piece = tuple[_Request, _Unit]


class SyncThreads:
    """`settle` returns when all it was given is on stable storage. Use as a context manager."""

    def __init__(self) -> None:
        self.durations = Durations()  # of `settle`
        self._waiting: deque[_Piece] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._pace = DiskPace()
        self._whose: object = None  # the task that wanted the last sync, and how many before it were its own
        self._in_a_row = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"sync-{n}", daemon=True) for n in range(WORKERS)
        ]

    def __enter__(self) -> "SyncThreads":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    async def settle(self, unsynced: Unsynced) -> None:
        """Takes the descriptors over and closes them. Raises OSError when any of it may not be durable.

        Not cancellable: the caller is about to promise that the bytes are there.
        """
        if not unsynced.units:
            unsynced.close()
            return
        began = time.perf_counter()
        here = self._is_alone(trio.lowlevel.current_task()) and self._pace.is_quick and len(unsynced) == 1
        error = _settle_here(unsynced) if here else await self._settle_in_threads(unsynced)
        seconds = time.perf_counter() - began
        self._pace.took(seconds, in_thread=not here)
        self.durations.add(seconds)
        if error is not None:
            raise error

    def _is_alone(self, task: object) -> bool:
        """Whether nobody but this task wanted the last syncs."""
        self._in_a_row = self._in_a_row + 1 if task is self._whose else 0
        self._whose = task
        return self._in_a_row >= ALONE

    async def _settle_in_threads(self, unsynced: Unsynced) -> OSError | None:
        now = trio.lowlevel
        units = unsynced.units
        request = _Request(unsynced, now.current_trio_token(), now.current_task(), len(units))
        with self._wake:
            self._waiting.extend((request, unit) for unit in units)
            self._wake.notify(request.left)
        await trio.lowlevel.wait_task_rescheduled(_not_to_be_cancelled)
        return request.error

    def _work(self) -> None:
        while pieces := self._next():
            error = _attempt([unit for _, unit in pieces])
            with self._wake:
                finished = _ticked_off(pieces, error)
            for request in sorted(finished, key=lambda one: len(one.unsynced.deleted)):  # to free blocks takes longer
                request.unsynced.close()
                request.end()

    def _next(self) -> list[_Piece]:
        """One's share of what waits; all of it when that is much."""
        with self._wake:
            while not self._waiting and not self._stopping:
                self._wake.wait()
            waiting = len(self._waiting)
            share = waiting if waiting > MANY else min(waiting, waiting // WORKERS + 1)
            return [self._waiting.popleft() for _ in range(share)]


def _not_to_be_cancelled(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _ticked_off(pieces: list[_Piece], error: OSError | None) -> list[_Request]:
    finished = []
    for request, _ in pieces:
        request.error = request.error or error
        request.left -= 1
        if not request.left:
            finished.append(request)
    return finished


def _attempt(units: list[_Unit]) -> OSError | None:
    try:
        _sync(units)
    except OSError as error:
        return error
    return None


def _settle_here(unsynced: Unsynced) -> OSError | None:
    try:
        return _attempt(unsynced.units)
    finally:
        unsynced.close()


def settle_now(unsynced: Unsynced) -> None:
    """Where blocking does not matter."""
    _sync(unsynced.units)


def _sync(units: list[_Unit]) -> None:
    if len(units) > MANY:
        _sync_file_systems(units)
        return
    for unit in units if len(units) > 1 else ():
        if isinstance(unit, int):
            start_writeback(unit)
    for unit in units:
        if isinstance(unit, int):
            os.fdatasync(unit)
        else:
            _sync_directory(unit)


def _sync_file_systems(units: list[_Unit]) -> None:
    for unit in one_per_file_system(units):
        if isinstance(unit, int):
            _checked(_libc.syncfs(unit))
        else:
            _sync_directory(unit, lambda fd: _checked(_libc.syncfs(fd)))
    for unit in units:
        if isinstance(unit, int):  # its own errors, also those from before: syncfs knows only who opened what when
            wait_for_writeback(unit)


def one_per_file_system(units: list[_Unit]) -> list[_Unit]:
    """A depot may keep its resources on several."""
    return list({os.stat(unit).st_dev: unit for unit in units}.values())  # noqa: PTH116 - descriptors, too


def _sync_directory(path: str, sync: Callable[[int], None] = os.fsync) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(fd)  # not fdatasync, which may leave out new names
    finally:
        os.close(fd)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_directory(directory: Path) -> None:
    """For set-up, where blocking does not matter."""
    _sync_directory(str(directory))
