"""What goes on after a name or the end of a file is gone: deleting, a transaction at a time."""

import trio

from ibpfs.cache.flusher import Flusher
from ibpfs.errors import NoSpace
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace


class Reaper:
    """Deletes unlinked inodes, and mappings that truncations have made void."""

    def __init__(self, names: Namespace, ledger: Ledger, flusher: Flusher) -> None:
        self._names = names
        self._ledger = ledger
        self._flusher = flusher
        self._doomed: list[int] = []
        self._to_cut: list[int] = []
        self._work_wanted = trio.Event()

    def recover(self) -> set[int]:
        """Take up what an earlier owner left; return the inodes that are doomed."""
        self._doomed += self._names.unlinked()
        self._to_cut += self._ledger.voided()
        self._work_wanted.set()
        return set(self._doomed)

    def doom(self, ino: int) -> None:
        """Nobody can reach this inode any more."""
        self._drop_dirty(ino)
        self._doomed.append(ino)
        self._work_wanted.set()

    def cut(self, ino: int) -> None:
        """A truncation has left mappings of this inode to delete."""
        self._to_cut.append(ino)
        self._work_wanted.set()

    async def run(self) -> None:
        """Reap unlinked inodes and finish truncations, a transaction at a time, until cancelled."""
        while True:
            try:
                while self._doomed:
                    await self._reap(self._doomed[-1])
                while self._to_cut:
                    await self._cut(self._to_cut[-1])
            except (NoSpace, OSError):
                await trio.sleep(1.0)  # the local disk is full; who writes is told
                continue
            self._work_wanted = trio.Event()
            if not self._doomed:  # nobody came while truncations were finished
                await self._work_wanted.wait()

    async def _cut(self, ino: int) -> None:
        while self._ledger.cut(ino):
            await trio.lowlevel.checkpoint()
        self._to_cut.remove(ino)

    async def _reap(self, ino: int) -> None:
        self._drop_dirty(ino)
        while not self._names.reap(ino):
            await trio.lowlevel.checkpoint()
        self._doomed.remove(ino)

    def _drop_dirty(self, ino: int) -> None:
        file = self._flusher.files.get(ino)
        if file is not None:
            before = file.dirty
            self._flusher.added(file, before, file.drop())
            self._flusher.forget(ino)
