"""Syncs of a WAL: in a thread of their own, or where the event loop has nothing else to do, without one.

trio's threads cost 46 us of CPU time for each call (a name is set, a context copied, a limit taken), this one 36, and
each fsync waits for one; where it waits for the disk itself, there are four switches between threads less, too.
"""

import os
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import trio

from ibpfs.depot.disk_pace import DiskPace
from ibpfs.writeback import start_writeback

#: Zeros that a small sync lays out behind the end of a WAL that grows: frames that take their place are no new blocks,
#: which a sync needs a commit of the file system's journal for. SQLite takes zeros for the end.
AHEAD = 256 * 1024
_SMALL = 64 * 1024

_ZEROS = bytes(AHEAD)


@dataclass(slots=True, eq=False)
class _Job:
    descriptor: int
    directory: Path | None
    token: trio.lowlevel.TrioToken = field(default_factory=trio.lowlevel.current_trio_token)
    task: trio.lowlevel.Task = field(default_factory=trio.lowlevel.current_task)
    error: BaseException | None = None

    def run(self) -> None:
        try:
            _sync(self.descriptor, self.directory)
        except BaseException as error:  # is the caller's, whatever it is
            self.error = error
        self.token.run_sync_soon(trio.lowlevel.reschedule, self.task)


@dataclass(slots=True, eq=False)
class _Beginning:
    descriptor: int

    def run(self) -> None:
        start_writeback(self.descriptor)
        os.close(self.descriptor)


class WalSync:
    """The thread starts with the first sync, and ends with this object."""

    def __init__(self, path: Path) -> None:
        """`path`: of the database."""
        self._path = path
        self._jobs: SimpleQueue[_Job | _Beginning | None] = SimpleQueue()
        self._is_running = False
        self._has_name = False  # the WAL's own name is on stable storage
        self._pace = DiskPace()
        self._descriptor = -1  # of the WAL, which is the same file as long as the database is open
        self._end = 0  # of that file, when it was last looked at
        self._stop = weakref.finalize(self, self._jobs.put, None)

    @property
    def is_quick(self) -> bool:
        """Whether syncs take so little time that the next one may be waited for by `sync_now`."""
        return self._has_name and self._pace.is_quick

    def begin(self) -> None:
        """Let the disk begin with what the next sync waits for."""
        self._lay_ahead()
        start_writeback(self._descriptor)

    def sync_now(self) -> None:
        """As `sync` where `is_quick`, and nobody else does anything meanwhile."""
        began = time.perf_counter()
        self._lay_ahead()
        os.fdatasync(self._descriptor)
        self._pace.took(time.perf_counter() - began, in_thread=False)

    async def sync(self) -> None:
        """Return, however late, when what the WAL holds now is on stable storage. OSError when the disk refuses."""
        began = time.perf_counter()
        self._lay_ahead()
        await self._sync_in_thread()
        self._pace.took(time.perf_counter() - began, in_thread=True)

    def _lay_ahead(self) -> None:
        """In the thread that writes to the database, so never while SQLite appends."""
        if self._descriptor < 0:
            self._descriptor = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
        size = os.fstat(self._descriptor).st_size
        grown, self._end = size - self._end, size
        if 0 < grown <= _SMALL:
            with suppress(OSError):  # a full disk is met by whoever writes next
                self._end += os.pwrite(self._descriptor, _ZEROS, size)

    def begin_in_thread(self) -> None:
        """As `begin`, of so much that it may take a moment; a hint. One at most waits for a disk that is slow."""
        with suppress(OSError, RuntimeError):  # of which a thread that cannot start is one
            self._lay_ahead()
            self._start()
            if self._jobs.empty():
                self._jobs.put(_Beginning(os.dup(self._descriptor)))

    def _start(self) -> None:
        if not self._is_running:
            threading.Thread(target=_work, args=(self._jobs,), name="wal-sync", daemon=True).start()
            self._is_running = True

    async def _sync_in_thread(self) -> None:
        self._start()
        job = _Job(self._descriptor, None if self._has_name else self._path.parent)
        self._jobs.put(job)
        await trio.lowlevel.wait_task_rescheduled(_not_to_be_cancelled)
        if job.error is not None:
            raise job.error
        self._has_name = True

    def close(self) -> None:
        self._stop()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _not_to_be_cancelled(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _work(jobs: "SimpleQueue[_Job | _Beginning | None]") -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # with what it refers to, while there is no other


def _sync(descriptor: int, directory: Path | None) -> None:
    # One descriptor for all: one opened now is not told of an error that SQLite has met first, in a checkpoint.
    os.fdatasync(descriptor)
    if directory is not None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
