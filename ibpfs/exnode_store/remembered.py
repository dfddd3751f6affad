"""What the tables of inodes, attributes, names and policies say now, kept in memory: see `Remembered`."""

import re
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from xxhash import xxh3_64_intdigest

Row = tuple[Any, ...]
#: A name's row: its id, and the inode that it stands for.
Dentry = tuple[int, int]

#: Inodes whose rows are kept, about 0.7 KB each; those of which it is known that they have no attributes; and names,
#: about 0.3 KB each.
_MOST_ROWS, _MOST_PLAIN, _MOST_NAMES = 10_000, 100_000, 20_000
#: From so many names on a whole directory has a Bloom filter, which outlives its names here; its bits, 1 MiB, of which
#: each name sets two: one in 2,000 of those that are not there is looked for in vain with 100,000 names, one in 20 with
#: a million. And so many such directories.
_LARGE, _BITS, _MOST_FILTERS = 4096, 1 << 23, 8
_WRITES = re.compile(
    r"\b(INSERT|REPLACE|UPDATE|DELETE|ALTER|DROP)\b(\s+(OR|ABORT|FAIL|IGNORE|REPLACE|ROLLBACK|INTO|FROM|TABLE))*\s+"
    r"""(["'`[]?main["'`\]]?\s*\.\s*)?["'`[]?(inodes|xattrs|dentries|policies)\b""",
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
        self.policies: dict[int, Row] = {}  # each batch that is uploaded asks: 30 us of an fsync

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
        self.policies.clear()

    def heed(self, sql: str) -> None:
        """Somebody is about to execute this, who tells nothing of what it changes."""
        if _writes(sql):
            self.clear()


@lru_cache(maxsize=1024)
def _writes(sql: str) -> bool:
    """Whether a statement, however it is spelled, changes what is kept here."""
    return _WRITES.search(sql) is not None


class Names:
    """Of directories, by inode: names in them. `whole`: those of which all names are here, so others do not exist.

    `filters`: bits of all names, of directories that were whole until they became too large.
    """

    def __init__(self, most: int = _MOST_NAMES) -> None:
        self.most = most
        self.large = _LARGE
        self.of: OrderedDict[int, dict[bytes, Dentry]] = OrderedDict()  # as `Remembered.rows`
        self.whole: set[int] = set()
        self.filters: OrderedDict[int, bytearray] = OrderedDict()
        self._count = 0  # names and directories

    def lacks(self, parent: int, name: bytes) -> bool:
        """Whether it is known that the directory has no such name."""
        if parent in self.whole:
            return name not in self.of[parent]
        bits = self.filters.get(parent)
        return bits is not None and not _may_have(bits, name)

    def keep(self, parent: int, name: bytes, dentry: Dentry) -> None:
        here = self._directory(parent)
        if name not in here:
            self._count += 1
        here[name] = dentry
        if parent in self.filters:
            _add(self.filters[parent], name)
        elif len(here) >= self.large and parent in self.whole:
            if len(self.filters) >= _MOST_FILTERS:
                self.filters.popitem(last=False)
            bits = self.filters[parent] = bytearray(_BITS // 8)
            for each in here:
                _add(bits, each)

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
        self.filters.pop(parent, None)
        self._forget_names(parent)

    def _forget_names(self, parent: int) -> None:
        self.whole.discard(parent)
        if parent in self.of:
            self._count -= 1 + len(self.of.pop(parent))

    def clear(self) -> None:
        self.of.clear()
        self.whole.clear()
        self.filters.clear()
        self._count = 0

    def _directory(self, parent: int) -> dict[bytes, Dentry]:
        """There is room for one more name in it: whole directories go, the oldest first, that one last."""
        while self.of and self._count >= self.most:
            self._forget_names(next((one for one in self.of if one != parent), parent))
        here = self.of.get(parent)
        if here is None:
            self._count += 1
            here = self.of[parent] = {}
        return here


def _add(bits: bytearray, name: bytes) -> None:
    digest = xxh3_64_intdigest(name)
    for bit in (digest % _BITS, (digest >> 32) % _BITS):
        bits[bit >> 3] |= 1 << (bit & 7)


def _may_have(bits: bytearray, name: bytes) -> bool:
    digest = xxh3_64_intdigest(name)
    first, second = digest % _BITS, (digest >> 32) % _BITS
    return bool(bits[first >> 3] >> (first & 7) & bits[second >> 3] >> (second & 7) & 1)
