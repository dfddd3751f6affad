"""Syncs of the spool and of the exNode store's WAL, on the local disk, while depots are busy with the same bytes."""

import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from ibpfs.cache.fsyncs import Fsyncs
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import SpoolFile, Sync
from ibpfs.depot.disk_pace import DiskPace
from ibpfs.exnode_store.database import Database

_log = logging.getLogger(__name__)

#: Beyond so many unsynced bytes of the spool, which may be those of others, commits are sooner on stable storage.
_MOST = 8 * 1024 * 1024
#: Up to so many, the event loop may wait for a quick disk.
_FEW = 256 * 1024


class Round:
    """One of these syncs, for all who have asked for it before it began."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._is_good = False

    def end(self, *, good: bool) -> None:
        self._is_good = good
        self._done.set()

    async def succeeded(self) -> bool:
        """Return, when it has ended, whether what was written before it was asked for is on stable storage."""
        if not self._done.is_set():
            await self._done.wait()
        return self._is_good


class LocalSync:
    """Of one volume. For a lone fsync whoever sends its bytes to the depot does it then, if the disk is quick; else a
    task of its own: it has its turn when who waits for an fsync waits for depots."""

    def __init__(self, db: Database, spool: Spool, fsyncs: Fsyncs) -> None:
        self._db = db
        self._spool = spool
        self._fsyncs = fsyncs
        self._pace = DiskPace()
        self._next: Round | None = None
        self._in_threads = False  # those of the spool's files
        self._wanted = trio.Event()

    def begin(self) -> Round | None:
        """A sync of all that is written now; None where it would take longer than a commit, or the disk has failed."""
        if not self._spool.syncs_up_to(_MOST):
            return None
        if self._next is None:
            self._next = Round()
            self._wanted.set()
        return self._next

    async def run(self) -> None:
        """Sync what is asked for, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._next is not None:  # and was not done meanwhile
                with self._round():
                    files = self._unsynced()
                    self._db.begin_sync()  # beside the spool's: 300 us for both, not 380
                    if self._is_quick(files):
                        self._sync_here(files)
                    else:
                        await self._sync_in_threads(files)

    def sync_now(self) -> bool:
        """Sync what is asked for, if only one fsync waits for it and the disk is quick; whether that was so."""
        # The kernel tells an error once: where a thread may be told, our own sync would call good what is lost.
        if self._next is None or self._in_threads or not self._is_quick(self._spool.unsynced()):
            return False
        with self._round():
            files = self._unsynced()
            self._db.begin_sync()
            self._sync_here(files)
        return True

    @contextmanager
    def _round(self) -> Iterator[None]:
        """The next one: what happens inside is its sync."""
        wanted, self._next = self._next, None
        assert wanted is not None
        good = False
        try:
            yield
            good = True
        except OSError as error:  # whoever waits for it takes the other way, and meets what is wrong with the store
            _log.warning("the local disk does not sync: %s", error.strerror)
        finally:
            wanted.end(good=good)

    def _unsynced(self) -> list[SpoolFile]:
        files = self._spool.unsynced()
        if any(file.has_failed for file in files):  # in a sync that began after this one was asked for
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return files

    def _is_quick(self, files: list[SpoolFile]) -> bool:
        """Whether the event loop may wait for the disk."""
        if not (self._fsyncs.are_one and self._pace.is_quick and self._db.syncs_quickly):
            return False
        return all(file.has_name for file in files) and sum(file.unsynced_bytes for file in files) <= _FEW

    def _sync_here(self, files: list[SpoolFile]) -> None:
        began = time.perf_counter()
        for file in files:
            file.sync()
        if files:
            self._pace.took(time.perf_counter() - began, in_thread=False)
        if self._db.unsynced:
            self._db.sync_now()

    async def _sync_in_threads(self, files: list[SpoolFile]) -> None:
        began = time.perf_counter()
        if files:
            await self._sync_in_thread(files)
            self._pace.took(time.perf_counter() - began, in_thread=True)
        await self._db.sync(alone=self._fsyncs.are_one)

    async def _sync_in_thread(self, files: list[SpoolFile]) -> None:
        syncs: list[Sync] = []
        try:
            self._in_threads = True
            syncs.extend(file.begin_sync() for file in files)
            await trio.to_thread.run_sync(_run, syncs)
        finally:
            for sync in syncs:
                sync.end()
            self._in_threads = False


def _run(syncs: Sequence[Sync]) -> None:
    for sync in syncs:
        sync.run()
