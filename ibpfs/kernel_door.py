"""One mount while it lasts: from mount(2) to the moment the kernel has let go of it.

Composes the handlers of fuse_ops with pyfuse3's loop and the calls of kernel.py. Knows no depot.
"""

import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyfuse3
import trio

from ibpfs import kernel
from ibpfs.cache.files import FileCache
from ibpfs.directory_below import DirectoryBelow
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import MAX_INO
from ibpfs.exnode_store.snapshots import Snapshots
from ibpfs.exnode_store.whereabouts import Whereabouts
from ibpfs.fuse_errors import is_news
from ibpfs.fuse_snapshots import SnapshotOperations
from ibpfs.handshake import shaking_hands
from ibpfs.mount_options import MountOptions
from ibpfs.mount_table import mount_entries
from ibpfs.mountinfo import FILE_SYSTEM_TYPE
from ibpfs.request_loop import taking_turns

_log = logging.getLogger(__name__)

#: Requests handled at a time. One that waits for a depot must not keep the others out.
MAX_TASKS = 100
#: Seconds that programs with open files are given, once the mount is out of the tree, before they are cut off.
_GRACE = 2.0
_INVALIDATED_AT_ONCE = 500


@contextmanager
def _to_the_end() -> Iterator[None]:
    """Of the kernel's requests: whoever takes one in the moment in which it lets go of the mount is told ECONNABORTED;
    before and after, it is ENODEV, which libfuse knows."""
    try:
        yield
    except* ConnectionAbortedError:
        _log.debug("the kernel took a request back, and the mount with it")


class KernelDoor:
    """A volume on a mount point."""

    def __init__(
        self, source: Path, mountpoint: Path, options: MountOptions, names: Namespace, files: FileCache,
        describe: Callable[[int], bytes], below: DirectoryBelow, snapshots: Snapshots,
        whereabouts: Whereabouts,
    ) -> None:  # fmt: skip
        self.mountpoint = mountpoint
        self._source = source
        self._options = options
        self._names = names
        self._below = below
        self._operations = SnapshotOperations(names, files, options, describe, snapshots)
        self._operations.tell_whereabouts(whereabouts)
        self._invalidating = trio.Lock()
        self._closed = False
        self._hidden = False  # beneath a dead mount

    def refuse_changes(self, stale: Callable[[], str]) -> None:
        """From when on it says why."""
        self._operations.stale = stale

    async def serve(
        self, signals: AsyncIterator[int], ready: Callable[[], None], staging: Path | None = None
    ) -> None:
        """Mount, and serve until the mount is gone; a signal makes it go. `ready` is called when the mount answers.

        With a staging directory, it takes the place of a dead mount of the same volume.
        """
        descriptor = self._attach(staging)
        logging.getLogger("pyfuse3").addFilter(is_news)
        pyfuse3.init(self._operations, f"/dev/fd/{descriptor}", set())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_ready, ready)
                nursery.start_soon(self._heed, signals)
                with _to_the_end(), taking_turns(), shaking_hands(descriptor):
                    await pyfuse3.main(max_tasks=MAX_TASKS)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._close()
        if not self._operations.initialized.is_set():
            raise VolumeError(f"{self.mountpoint}: the kernel gave the mount up before it was used")

    def _attach(self, staging: Path | None) -> int:
        source = str(self._source)
        if staging is not None:
            try:
                descriptor = kernel.attach_beneath(source, self.mountpoint, self._options, staging)
            except VolumeError as error:
                _log.debug("%s", error)
                kernel.detach(self.mountpoint)
            else:
                self._hidden = True
                return descriptor
        self._below.give_back()
        self._below.look()
        descriptor = kernel.attach(source, self.mountpoint, self._options)
        self._below.protect()
        return descriptor

    async def _uncover(self) -> None:
        """Take away the dead mount that ours lies beneath."""
        if self._hidden:
            await trio.to_thread.run_sync(kernel.detach, self.mountpoint)
            self._hidden = False

    async def _tell_ready(self, ready: Callable[[], None]) -> None:
        await self._operations.initialized.wait()
        await self._uncover()
        # The answer to the kernel's first request has been sent when this task gets to run.
        kernel.tune(self.mountpoint)
        _log.info("%s is mounted on %s", self._source, self.mountpoint)
        ready()

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:
            leaving = False
            async for number in signals:
                _log.info("signal %d: %s is unmounted", number, self.mountpoint)
                if leaving:
                    pyfuse3.terminate()
                else:
                    leaving = True
                    nursery.start_soon(self._leave)

    async def _leave(self) -> None:
        """Out of the tree at once; what programs still have open goes on for a little while."""
        await trio.to_thread.run_sync(kernel.write_back, self.mountpoint)
        await trio.to_thread.run_sync(self._detach)
        await trio.sleep(_GRACE)
        pyfuse3.terminate()

    def _detach(self) -> None:
        entry = kernel.mount_at(self.mountpoint)
        if entry is None or entry.kind != FILE_SYSTEM_TYPE or entry.source != str(self._source):
            return  # gone already, or hidden by another mount that is not ours to take away
        try:
            kernel.detach(self.mountpoint)
        except OSError as error:
            _log.warning("%s: cannot be unmounted: %s", self.mountpoint, error.strerror)

    async def _close(self) -> None:
        async with self._invalidating:
            self._closed = True
            self._operations.left()
            pyfuse3.close(unmount=False)
        await self._uncover()
        # Nothing left when it was unmounted; a mount that nobody serves any more otherwise.
        await trio.to_thread.run_sync(self._detach)
        self._below.release()

    def remounted(self) -> None:
        """The flags of the mount have changed."""
        entry = kernel.mount_at(self.mountpoint)
        if entry is None:
            return
        self._operations.read_only = "ro" in entry.options
        self._operations.noatime = "noatime" in entry.options

    def is_read_only(self) -> bool:
        return self._operations.read_only

    async def forget(self, ino: int) -> None:
        """Have the kernel ask again for what it knows of a file."""
        async with self._invalidating:
            if not self._closed:
                await trio.to_thread.run_sync(_invalidate, [], [ino])

    async def forget_names(self, places: list[tuple[int, bytes]]) -> None:
        """Have the kernel look anew for names that it may believe to be missing."""
        seen = [place for place in places if self._operations.knows(place[0])]
        async with self._invalidating:
            if seen and not self._closed:
                await trio.to_thread.run_sync(_invalidate, seen, list({parent for parent, _ in seen}))

    async def drop_caches(self) -> None:
        """Have the kernel forget names, attributes and pages of this mount."""
        below = any(self.mountpoint in entry.mountpoint.parents for entry in mount_entries())
        inodes = self._operations.known()
        for start in range(0, len(inodes), _INVALIDATED_AT_ONCE):
            some = inodes[start : start + _INVALIDATED_AT_ONCE]
            # Dropping a directory's name would unmount what is mounted below it.
            entries = [place for ino in some if ino < MAX_INO
                       for place in self._names.places(ino, files_only=below)]  # fmt: skip
            async with self._invalidating:
                if self._closed:
                    return
                # In a thread: the kernel may wait for an answer of ours meanwhile.
                await trio.to_thread.run_sync(_invalidate, entries, some)


def _invalidate(entries: list[tuple[int, bytes]], inodes: list[int]) -> None:
    for parent, name in entries:
        with suppress(OSError):
            pyfuse3.invalidate_entry(parent, name)
    for ino in inodes:
        try:
            pyfuse3.invalidate_inode(ino)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.info("inode %d stays in the kernel's cache: %s", ino, error)
