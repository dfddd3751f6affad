"""What goes on after a name or the end of a file is gone: deleting, a transaction at a time."""

from contextlib import suppress
from itertools import islice

import trio

from ibpfs.cache.flusher import Flusher
from ibpfs.cache.fsyncs import Fsyncs
from ibpfs.errors import NoSpace
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import MOST_MAPPINGS, Ledger
from ibpfs.exnode_store.namespace import Namespace

#: How many unlinked inodes go in one transaction: a file of 4 KiB changes 10 pages, which are mostly its neighbour's.
#: Measured: rm costs 197 us of CPU time for each alone, 159 us together.
_TOGETHER = 32
#: Seconds without another unlinked inode before they are deleted, and how often that is waited for at most: in its way
#: they were a quarter of what an `rm -rf` took.
_GATHER, _PATIENCE = 0.1, 20
#: Seconds that deleting may then wait while one program after another waits for an fsync: beside the deleting of 500
#: files each of these took 190 us more.
_FOR_FSYNCS = 1.0
#: Mappings of another inode than a transaction's first that are deleted with it; one that has more is left to the next.
_FEW = 30
#: Rows that a transaction has changed when no other inode is taken up in it: one more of _FEW stays below 1,000.
_ENOUGH = 1000 - 10 * _FEW
#: Transactions at the end of a mount; the next one does the rest.
_STEPS_AT_END = 100


class Reaper:
    """Deletes unlinked inodes, and mappings that truncations have made void."""

    def __init__(self, db: Database, names: Namespace, ledger: Ledger, flusher: Flusher, fsyncs: Fsyncs) -> None:
        self._db = db
        self._names = names
        self._ledger = ledger
        self._flusher = flusher
        self._fsyncs = fsyncs
        self._doomed: dict[int, None] = {}  # in the order of their ends
        self._to_cut: list[int] = []
        self._work_wanted = trio.Event()
        self._is_wanted = False  # somebody waits for the room that deleting gives back

    def recover(self) -> set[int]:
        """Take up what an earlier owner left; return the inodes that are doomed."""
        self._doomed.update(dict.fromkeys(self._names.unlinked()))
        self._to_cut += self._ledger.voided()
        self._work_wanted.set()
        return set(self._doomed)

    def doom(self, ino: int) -> None:
        """Nobody can reach this inode any more."""
        self._drop_dirty(ino)
        self._doomed[ino] = None
        self._work_wanted.set()

    def cut(self, ino: int) -> None:
        """A truncation has left mappings of this inode to delete."""
        self._to_cut.append(ino)
        self._work_wanted.set()

    def hurry(self) -> None:
        """Wait for nothing until all that is doomed now is deleted."""
        self._is_wanted = bool(self._doomed)

    @property
    def is_busy(self) -> bool:
        """Whether something unlinked has still to be deleted."""
        return bool(self._doomed)

    async def done(self) -> None:
        """Return when nothing is doomed any more."""
        while self._doomed:
            self.hurry()
            await trio.sleep(0.01)

    async def run(self) -> None:
        """Reap unlinked inodes and finish truncations, a transaction at a time, until cancelled."""
        latest = trio.current_time()
        while True:
            try:
                while self._to_cut:
                    await self._cut(self._to_cut[-1])
                while self._doomed:
                    await self._leave_way(latest)
                    self._reap(list(islice(self._doomed, _TOGETHER)))
                    await trio.lowlevel.checkpoint()
                while self._to_cut:
                    await self._cut(self._to_cut[-1])
            except (NoSpace, OSError):
                await trio.sleep(1.0)  # the local disk is full; who writes is told
                continue
            self._work_wanted, self._is_wanted = trio.Event(), False
            if not self._doomed:  # nobody came while truncations were finished
                await self._work_wanted.wait()
                await self._gather()
                latest = trio.current_time() + _FOR_FSYNCS

    async def _gather(self) -> None:
        for _ in range(_PATIENCE):
            before = len(self._doomed)
            await trio.sleep(_GATHER)
            if self._is_wanted or len(self._doomed) == before:
                return

    async def _leave_way(self, latest: float) -> None:
        while not self._is_wanted and self._fsyncs.go_on and trio.current_time() < latest:  # noqa: ASYNC110
            await trio.sleep(_GATHER)

    def finish(self) -> None:
        """What was unlinked or cut a moment ago, before the store is closed."""
        with suppress(NoSpace, OSError):
            # All of them: what a flight in vain had kept from being finished is in nobody's list.
            self._to_cut = self._ledger.voided()
            for _ in range(_STEPS_AT_END):
                self._reap(list(islice(self._doomed, _TOGETHER)))
                if self._to_cut and not self._ledger.cut(self._to_cut[-1], idle=self._is_idle(self._to_cut[-1])):
                    self._to_cut.pop()

    async def _cut(self, ino: int) -> None:
        # A kill may have left a truncation of which nothing is left that would settle it.
        while self._ledger.cut(ino, idle=self._is_idle(ino)):
            await trio.lowlevel.checkpoint()
        self._to_cut.remove(ino)

    def _is_idle(self, ino: int) -> bool:
        return ino not in self._flusher.files

    def _reap(self, inos: list[int]) -> None:
        """One transaction: as many of them as it may hold, the first in part if need be."""
        gone: list[int] = []
        if not inos:
            return
        with self._db.transaction() as db:
            enough = db.changed_rows + _ENOUGH
            for ino in inos:
                self._drop_dirty(ino)
                if not self._names.reap(ino, _FEW if gone else MOST_MAPPINGS):
                    break
                gone.append(ino)
                if db.changed_rows >= enough:
                    break
        for ino in gone:
            self._doomed.pop(ino, None)

    def _drop_dirty(self, ino: int) -> None:
        file = self._flusher.files.get(ino)
        if file is not None:
            before = file.dirty
            self._flusher.added(file, before, file.drop())
            self._flusher.forget(ino)
