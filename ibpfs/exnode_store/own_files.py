"""Segments on the volume's own depot, read past it: what the kernel has of their files in memory costs no message.

The depot hands over a descriptor for each segment (OPEN). Stored bytes are never rewritten (I2), so what is read with
it is what a LOAD would bring; what the disk would have to be waited for is left to LOAD.
"""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.sources import Loaded
from ibpfs.memory import unfilled

#: Descriptors at a time, of a segment each.
_MOST = 256
#: Seconds that the depot has to hand one over; a LOAD, perhaps from elsewhere, is next.
_PATIENCE = 0.5


@dataclass(slots=True)
class _File:
    """`begin`: where in it the segment begins."""

    descriptor: int
    begin: int
    replica: int
    label: str
    is_used: bool = True

    def close(self) -> None:
        os.close(self.descriptor)


class OwnFiles:
    """Those that are open. The room of a file that is deleted comes back when it is closed here, too."""

    def __init__(self, ledger: Ledger, depots: DepotSet) -> None:
        self._ledger = ledger
        self._depots = depots
        self._files: dict[int, _File] = {}
        self._in_vain: set[int] = set()  # asked for lately
        self._opening: dict[int, trio.Event] = {}  # set when that has ended

    def read_now(self, segment: int, start: int, stop: int) -> Loaded | None:
        """Return stored bytes [start, stop) where the file is open and the disk need not be waited for, else None."""
        file = self._files.get(segment)
        if file is None:
            return None
        file.is_used = True
        data = unfilled(stop - start)
        is_whole = _read_now(file.descriptor, data, file.begin + start)
        return Loaded(data, file.replica, file.label) if is_whole else None

    def has(self, segment: int, start: int, stop: int) -> bool:
        """Whether `read_now` is likely to have these bytes, by the first and the last of them."""
        file = self._files.get(segment)
        return file is not None and all(
            _read_now(file.descriptor, bytearray(1), file.begin + at) for at in (start, stop - 1)
        )

    async def open(self, segment: int) -> bool:
        """Whether its file is open now and was not before."""
        if segment in self._files or segment in self._in_vain:
            return False
        if segment in self._opening:
            await self._opening[segment].wait()
            return segment in self._files
        ended = self._opening[segment] = trio.Event()
        try:
            return await self._open(segment)
        finally:
            del self._opening[segment]
            ended.set()

    async def _open(self, segment: int) -> bool:
        replica = self._own_copy(segment)
        file = await self._opened(replica) if replica is not None else None
        if file is None:
            self._in_vain.add(segment)
            return False
        self._files[segment] = file
        if len(self._files) > _MOST:
            self._files.pop(next(iter(self._files))).close()
        return True

    def _own_copy(self, segment: int) -> Replica | None:
        for replica in self._ledger.replicas(segment):
            depot = self._depots.find(replica.depot)
            is_sound = replica.shard is None and not replica.suspect
            if is_sound and depot is not None and depot.embedded and depot.answers:
                return replica
        return None

    async def _opened(self, replica: Replica) -> _File | None:
        depot = self._depots.get(replica.depot)
        with suppress(DepotError, DepotUnreachable), trio.move_on_after(_PATIENCE):
            descriptor, begin = await depot.call(lambda: depot.client.open(replica.read))
            label = f"depot {depot.address} allocation {replica.read.label}"
            file = _File(descriptor, begin + replica.base, replica.id, label)
            if _can_tell(descriptor):
                return file
            file.close()
        return None

    def forget(self, segment: int) -> None:
        """What its file holds is wrong."""
        if (file := self._files.pop(segment, None)) is not None:
            file.close()

    def close_unused(self) -> None:
        """Close what nobody has read from since the last call, and what the depot has deleted, though it is read."""
        deleted = []
        for segment, file in list(self._files.items()):
            if _is_deleted(file.descriptor):
                deleted.append(self._files.pop(segment))
            elif not file.is_used:
                self.forget(segment)
            file.is_used = False
        if deleted:  # their blocks are freed with it: 4 ms each
            try:
                trio.lowlevel.start_thread_soon(partial(_close_all, deleted), _nobody_waits)
            except RuntimeError:  # there are no more threads
                _close_all(deleted)
        self._in_vain.clear()

    def close(self) -> None:
        for segment in list(self._files):
            self.forget(segment)


def _close_all(files: Sequence[_File]) -> None:
    for file in files:
        with suppress(OSError):
            file.close()


def _nobody_waits(_: object) -> None:
    pass


def _read_now(descriptor: int, into: bytearray, at: int) -> bool:
    """Whether all of it could be had without waiting for the disk."""
    try:
        return os.preadv(descriptor, [into], at, os.RWF_NOWAIT) == len(into)
    except OSError:
        return False


def _is_deleted(descriptor: int) -> bool:
    try:
        return os.fstat(descriptor).st_nlink == 0
    except OSError:
        return True


def _can_tell(descriptor: int) -> bool:
    """Whether its file system knows what can be had without waiting."""
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True
