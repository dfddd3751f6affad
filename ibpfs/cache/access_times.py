"""Access times that are not in the store yet: they are written together, so that the first read of a small file writes
nothing. A kill of the process may lose those of the last second; a change of the inode takes its own along.
"""

from contextlib import suppress

from ibpfs.errors import NoSpace
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.namespace import Namespace

#: Of one transaction.
_MOST = 200


class AccessTimes:
    """By inode, in nanoseconds."""

    def __init__(self, db: Database, names: Namespace) -> None:
        self._db = db
        self._names = names
        self._times: dict[int, int] = {}

    def note(self, ino: int, now_ns: int) -> None:
        self._times[ino] = now_ns
        if len(self._times) >= _MOST:
            self.write()

    def get(self, ino: int) -> int | None:
        return self._times.get(ino)

    def forget(self, ino: int) -> None:
        """It is in the store now, or the inode is gone."""
        self._times.pop(ino, None)

    def write(self) -> None:
        """All of them. What the disk refuses is lost: nobody waits for an access time."""
        times, self._times = self._times, {}
        if times:
            with suppress(NoSpace, OSError), self._db.transaction():
                for ino, accessed in times.items():
                    self._names.accessed(ino, accessed)
