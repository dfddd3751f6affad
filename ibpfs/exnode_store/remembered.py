"""What the tables of inodes, attributes and names say now, kept in memory: see `Remembered`."""

import re
from collections import OrderedDict
from functools import lru_cache
from typing import Any

Row = tuple[Any, ...]
#: A name's row: its id, and the inode that it stands for.
Dentry = tuple[int, int]

#: Inodes whose rows are kept, about 0.7 KB each; those of which it is known that they have no attributes; and names,
#: about 0.3 KB each.
_MOST_ROWS, _MOST_PLAIN, _MOST_NAMES = 10_000, 100_000, 20_000
_WRITES = re.compile(
    r"\b(INSERT|REPLACE|UPDATE|DELETE|ALTER|DROP)\b(\s+(OR|ABORT|FAIL|IGNORE|REPLACE|ROLLBACK|INTO|FROM|TABLE))*\s+"
    r"""(["'`[]?main["'`\]]?\s*\.\s*)?["'`[]?(inodes|xattrs|dentries)\b""",
    re.IGNORECASE,
)


class Remembered:
    """Only the owner of a volume writes these tables, and always through the one Database.

    A create reads five rows, at 4 to 8 us each, an unlink or a rename as many. Whoever writes to their tables by a
    statement of his own has all of it forgotten; so has a transaction that is rolled back after it changed something.
    """

    def __init__(self) -> None:
        # The oldest of a plain dict is found behind the places of all that went before it: 8 us for each that goes.
        self.rows: OrderedDict[int, Row] = OrderedDict()
        self.plain: set[int] = set()  # without any extended attribute
        self.names = Names()

    def keep(self, ino: int, row: Row) -> None:
        if len(self.rows) >= _MOST_ROWS and ino not in self.rows:
            self.rows.popitem(last=False)
        self.rows[ino] = row

    def keep_plain(self, ino: int) -> None:
        if len(self.plain) >= _MOST_PLAIN:
            self.plain.clear()
        self.plain.add(ino)

    def forget(self, ino: int) -> None:
        self.rows.pop(ino, None)

    def clear(self) -> None:
        self.rows.clear()
        self.plain.clear()
        self.names.clear()

    def heed(self, sql: str) -> None:
        """Somebody is about to execute this, who tells nothing of what it changes."""
        if _writes(sql):
            self.clear()


@lru_cache(maxsize=1024)
def _writes(sql: str) -> bool:
    """Whether a statement, however it is spelled, changes what is kept here."""
    return _WRITES.search(sql) is not None


class Names:
    """Of directories, by inode: names in them. `whole`: those of which all names are here, so others do not exist."""

    def __init__(self, most: int = _MOST_NAMES) -> None:
        self.most = most
        self.of: OrderedDict[int, dict[bytes, Dentry]] = OrderedDict()  # as `Remembered.rows`
        self.whole: set[int] = set()
        self._count = 0  # names and directories

    def keep(self, parent: int, name: bytes, dentry: Dentry) -> None:
        here = self._directory(parent)
        if name not in here:
            self._count += 1
        here[name] = dentry

    def keep_whole(self, parent: int, names: dict[bytes, Dentry]) -> None:
        """These are all."""
        self.forget_directory(parent)
        self._directory(parent).update(names)
        self._count += len(names)
        self.whole.add(parent)

    def forget(self, parent: int, name: bytes) -> None:
        if self.of.get(parent, {}).pop(name, None) is not None:
            self._count -= 1

    def forget_directory(self, parent: int) -> None:
        """Nothing is said about it any more."""
        self.whole.discard(parent)
        if parent in self.of:
            self._count -= 1 + len(self.of.pop(parent))

    def clear(self) -> None:
        self.of.clear()
        self.whole.clear()
        self._count = 0

    def _directory(self, parent: int) -> dict[bytes, Dentry]:
        """There is room for one more name in it: whole directories go, the oldest first, that one last."""
        while self.of and self._count >= self.most:
            self.forget_directory(next((one for one in self.of if one != parent), parent))
        here = self.of.get(parent)
        if here is None:
            self._count += 1
            here = self.of[parent] = {}
        return here
