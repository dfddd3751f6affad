"""The trash over time: what was kept long enough goes, and the oldest before depots run out of room."""

import logging
from collections.abc import Awaitable, Callable

import trio

from ibpfs.errors import NoSpace
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.quantities import format_size

_log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
#: Below this share of all room the oldest goes until there is so much.
LOW, ENOUGH = 0.05, 0.06
#: Looks after which it is seen whether the depots have got it.
_PATIENCE = 3
_ROWS = 300
_ROWS_FOR_ROOM = 50


class TrashKeeper:
    """`let_go` is told each inode that lost a name in the trash, `reaped` returns when what was let go of is deleted.

    `used` returns the bytes that the volume holds, `stuck` those that wait because depots have no room for them.
    """

    def __init__(
        self, names: Namespace, transfer: Transfer, used: Callable[[], int], stuck: Callable[[], int],
        let_go: Callable[[int], None], reaped: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._names = names
        self._trash = names.trash
        self._transfer = transfer
        self._used = used
        self._stuck = stuck
        self._let_go = let_go
        self._reaped = reaped
        self._patience = 0
        self._bytes: tuple[float, int] | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY)
            try:
                await self.empty(expired=True)
                await self._look_for_room()
            except (NoSpace, OSError) as error:
                _log.info("the trash is not emptied yet: %s", error)

    async def empty(self, *, expired: bool = False, until: float | None = None) -> int:
        """Let go of everything, of what was deleted by `until`, or of what has `expired`; return how many names."""
        count = 0
        while gone := self._trash.expired(_ROWS) if expired else self._trash.let_go(_ROWS, until):
            self._go(gone)
            count += len(gone)
            await trio.lowlevel.checkpoint()
        return count

    def _go(self, inos: list[int]) -> int:
        """Return the file bytes that go with them."""
        freed = 0
        for ino in dict.fromkeys(inos):
            inode = self._names.find(ino)
            if inode is not None and not inode.nlink and not self._trash.holds(ino):
                freed += inode.allocated
                self._let_go(ino)
        return freed

    async def _look_for_room(self) -> None:
        if self._trash.is_empty:
            return
        free = self._transfer.free_bytes(self._transfer.policies.usual.copies)
        self._patience -= 1
        if free is None or self._patience > 0:
            return
        total, stuck = free + self._used(), self._stuck()
        if free < LOW * total or stuck:
            await self.make_room(max(stuck, int(ENOUGH * total) - free))
            self._patience = _PATIENCE

    async def make_room(self, wanted: int) -> bool:
        """Let go of the oldest, until about so many bytes will be free; False when there is nothing."""
        freed, names = 0, 0
        while freed < max(wanted, 1) and (gone := self._trash.let_go(_ROWS_FOR_ROOM)):
            freed += self._go(gone)
            names += len(gone)
            await trio.lowlevel.checkpoint()
        if not names:
            return False
        _log.info("the depots are nearly full: %d names, %s, are out of the trash", names, format_size(freed))
        await self._reaped()
        await self._transfer.close_old(every=True)
        return True

    def bytes(self) -> int:
        """File bytes in there, as of some seconds ago: counting them takes a while when there are many."""
        now = trio.current_time()
        if self._bytes is None or now - self._bytes[0] > LOOK_EVERY:
            self._bytes = now, self._trash.bytes()
        return self._bytes[1]
