"""Room for what writers bring: in memory, in the spool, on its disk, on the depots."""

import os
from dataclasses import dataclass

import trio

from ibpfs.cache.flusher import Flusher
from ibpfs.cache.spool import Spool
from ibpfs.errors import DeadlineExceeded, NoSpace
from ibpfs.exnode_store.transfer import Transfer

#: Free bytes of the local disk that writes never take, so that a full disk can be drained.
RESERVE = 64 * 1024 * 1024
_ROOM_CHECK_EVERY = 16 * 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """How much may wait: dirty bytes while depots answer, bytes of the spool while they do not."""

    dirty: int = 256 * 1024 * 1024
    spool: int = 1 << 40
    #: Writes that may wait, however small: each takes about 600 bytes of memory.
    records: int = 150_000
    #: Seconds a write waits for room before it fails.
    deadline: float = 20.0


class Room:
    """Lets a write through when there is room for it, or says why there is none."""

    def __init__(self, transfer: Transfer, spool: Spool, flusher: Flusher, limits: Limits) -> None:
        self._transfer = transfer
        self._spool = spool
        self._flusher = flusher
        self._limits = limits
        self._unchecked = _ROOM_CHECK_EVERY
        self._copies = transfer.policy(1).copies

    async def wait(self, length: int) -> None:
        """Return when `length` more bytes may be written; at the deadline NoSpace or DeadlineExceeded."""
        if self._has_room(length):
            return
        # After a second of waiting the reason is clear enough to be told when the deadline comes.
        deadline = trio.current_time() + self._limits.deadline
        while not self._has_room(length):
            if trio.current_time() > deadline:
                if not self._disk_has_room():
                    raise NoSpace("the spool's disk is full")
                raise DeadlineExceeded("the depots do not take what waits in the spool")
            await self._flusher.wait_landing(0.25)

    def _has_room(self, length: int) -> bool:
        flusher = self._flusher
        free = self._transfer.free_bytes(self._copies)
        if free is not None and flusher.dirty_bytes + length > free:
            raise NoSpace("the depots have no room")
        if self._spool.records >= self._limits.records or self._spool.size + length > self._limits.spool:
            return False
        self._unchecked += length
        if self._unchecked >= _ROOM_CHECK_EVERY:
            if not self._disk_has_room():
                return False
            self._unchecked = 0
        if flusher.dirty_bytes + length <= self._limits.dirty:
            return True
        # While no depot answers, the spool may take more than what is waited for otherwise.
        return not self._transfer.answering()

    def _disk_has_room(self) -> bool:
        disk = os.statvfs(self._spool.directory)
        return disk.f_bavail * disk.f_frsize > RESERVE + _ROOM_CHECK_EVERY
