"""Room for what writers bring: in memory, in the spool, on its disk, on the depots."""

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ibpfs.cache.flusher import Flusher
from ibpfs.cache.reaper import Reaper
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import BLOCKS
from ibpfs.errors import DeadlineExceeded, NoSpace
from ibpfs.exnode_store.transfer import Transfer

_log = logging.getLogger(__name__)

#: Free bytes of the local disk that writes never take, so that a full disk can be drained.
RESERVE = 64 * 1024 * 1024
_ROOM_CHECK_EVERY = 16 * 1024 * 1024
#: Where there is much more room than that, so many writes of so many bytes in all are let through, before it is
#: looked at again: a look costs 4 us of a small write's 30, and 50 of the 1,100 of one of 1 MiB, cold as it is by then.
_GRANT_WRITES, _GRANT_BYTES = 64, 8 * 1024 * 1024
_MUCH_MORE = 16
#: What may be taken until the next look at the disk: what is written, and what the spool has laid out beyond it.
_AHEAD = _ROOM_CHECK_EVERY + _GRANT_BYTES + BLOCKS
#: Seconds that a write waits for room on a full local disk, or on full depots that are to be given some back; sooner
#: when its deadline is shorter.
LOCAL_LIMIT = 5.0


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
    """Lets a write through when there is room for it, or says why there is none.

    `last_resort` makes depots get so many bytes back before long; False when it cannot.
    """

    def __init__(
        self, transfer: Transfer, spool: Spool, flusher: Flusher, reaper: Reaper, limits: Limits,
        last_resort: Callable[[int], Awaitable[bool]],
    ) -> None:  # fmt: skip
        self._transfer = transfer
        self._reaper = reaper
        self._spool = spool
        self._flusher = flusher
        self._limits = limits
        self._last_resort = last_resort
        self._unchecked = _ROOM_CHECK_EVERY
        self._granted = 0, 0  # writes, bytes

    def takes(self, length: int) -> bool:
        """Whether `length` more bytes may be written as things were a moment ago; else `wait`."""
        writes, granted = self._granted
        if not writes or length > granted or self._flusher.dirty_bytes + length > self._limits.dirty:
            return False
        self._granted = writes - 1, granted - length
        return True

    def look_again(self) -> None:
        """A moment has passed."""
        self._granted = 0, 0

    async def wait(self, length: int) -> None:
        """Return when `length` more bytes may be written; at the deadline NoSpace or DeadlineExceeded."""
        began = since = trio.current_time()
        while not self._has_room(length):
            now = trio.current_time()
            if now - since > min(LOCAL_LIMIT, self._limits.deadline):
                self._say_what_is_full(length)
            if now - began > self._limits.deadline:
                self._say_what_is_full(length)
                raise DeadlineExceeded("the depots do not take what waits in the spool")
            if self._depots_have_room(length) or self._expects_room():
                self._reaper.hurry()
                await self._make_room()
            elif await self._ask_the_depots(length):
                since = trio.current_time()

    async def _ask_the_depots(self, length: int) -> bool:
        """Their figures are of some seconds ago: that they are full must be true now, and not for what we reserve.

        True when they get some back.
        """
        await self._transfer.close_old(every=True)
        await self._transfer.look()
        if self._depots_have_room(length) or self._expects_room():
            return False
        if not await self._last_resort(length + self._flusher.dirty_bytes):
            raise NoSpace("the depots have no room")
        return True

    def _say_what_is_full(self, length: int) -> None:
        if not self._depots_have_room(length):
            raise NoSpace("the depots have no room")
        if not self._disk_has_room(length):
            raise NoSpace("the spool's disk is full")

    async def _make_room(self) -> None:
        dirty = self._flusher.dirty_bytes
        self._flusher.commit_stored()
        if self._flusher.dirty_bytes < dirty:
            return
        if self._spool.reclaimable:
            try:
                await self._flusher.delete_spent()
            except OSError as error:
                _log.warning("the local disk refuses: %s", error.strerror)
            else:
                return
        await self._flusher.wait_landing(0.01 if self._spool.is_giving_back else 0.25)

    def _has_room(self, length: int) -> bool:
        flusher = self._flusher
        if not self._depots_have_room(length):
            return False
        while self._spool.records >= self._limits.records or self._spool.size + length > self._limits.spool:
            if not self._drop_retained():
                return False
        self._unchecked += length
        if self._unchecked >= _ROOM_CHECK_EVERY:
            if not self._disk_has_room(length):
                if not self._spool.is_giving_back:
                    self._drop_retained()
                return False
            self._unchecked = 0
        if flusher.dirty_bytes + length <= self._limits.dirty:
            self._grant()
            return True
        # While no depot answers, the spool may take more than what is waited for otherwise.
        return not self._transfer.answering()

    def _grant(self) -> None:
        limits, spool = self._limits, self._spool
        is_roomy = (
            spool.records + _GRANT_WRITES < limits.records
            and spool.size + 2 * _GRANT_BYTES < limits.spool
            and self._depots_have_room(_MUCH_MORE * _GRANT_BYTES)
        )
        if is_roomy:
            self._granted = _GRANT_WRITES, _GRANT_BYTES
            self._unchecked += _GRANT_BYTES  # it may be so much later than it should that the disk is looked at

    def _drop_retained(self) -> bool:
        """New bytes come before a further copy of old ones. False when what was dropped is still to be deleted."""
        return not self._spool.reclaimable and self._flusher.retention.drop_oldest()

    def _expects_room(self) -> bool:
        """Whether what is deleted will give some back on the depots."""
        return self._reaper.is_busy or self._transfer.expects_room()

    def _depots_have_room(self, length: int) -> bool:
        free = self._transfer.free_bytes(self._transfer.policies.usual.copies)
        return free is None or self._flusher.dirty_bytes + length <= free

    def _disk_has_room(self, length: int) -> bool:
        disk = os.statvfs(self._spool.directory)
        return disk.f_bavail * disk.f_frsize > RESERVE + _AHEAD + length
