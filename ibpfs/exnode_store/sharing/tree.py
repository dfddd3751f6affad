"""A file or directory of a volume as entries of a share, without their bytes. Reads the store alone."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ibpfs.errors import UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.sharing.contents import (
    DIRECTORY,
    FILE,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PATH,
    BadContent,
    check_name,
)


@dataclass(frozen=True, slots=True)
class Found:
    """A file or directory; `path` as in `Entry`."""

    path: tuple[str, ...]
    ino: int
    kind: str
    mode: int
    mtime_ns: int


@dataclass
class Walk:
    """`left_out`: what no link can carry."""

    db: Database
    left_out: list[str] = field(default_factory=list)

    def below(self, ino: int) -> Iterator[Found]:
        """It and all below, parents first. UsageError when that is too much for a link."""
        count = 0
        waiting: list[tuple[tuple[str, ...], int]] = [((), ino)]
        while waiting:
            path, number = waiting.pop()
            found = self._found(path, number)
            if found is None:
                continue
            count += 1
            if count > MAX_ENTRIES:
                raise UsageError(f"more than {MAX_ENTRIES} files: too much for one link")
            yield found
            if found.kind == DIRECTORY:
                waiting += self._names(path, number)

    def _found(self, path: tuple[str, ...], ino: int) -> Found | None:
        row = self.db.row("SELECT mode, mtime_ns FROM inodes WHERE ino = ?", (ino,))
        if row is None:  # deleted since its directory was read
            return None
        mode, mtime_ns = row
        kind = DIRECTORY if stat.S_ISDIR(mode) else FILE if stat.S_ISREG(mode) else None
        if kind is None:
            self._leave_out(path)
            return None
        return Found(path, ino, kind, mode & 0o777, mtime_ns)

    def _names(self, path: tuple[str, ...], ino: int) -> Iterator[tuple[tuple[str, ...], int]]:
        rows = self.db.rows("SELECT name, ino FROM dentries WHERE parent = ? ORDER BY id DESC", (ino,))
        for name, number in rows:
            inner = (*path, os.fsdecode(name))
            if len(inner) > MAX_DEPTH or sum(len(os.fsencode(one)) + 1 for one in inner) > MAX_PATH:
                self._leave_out(inner)
                continue
            try:
                check_name(inner[-1])
            except BadContent:
                self._leave_out(inner)
            else:
                yield inner, number

    def _leave_out(self, path: tuple[str, ...]) -> None:
        if not path:
            raise UsageError("neither a file nor a directory")
        self.left_out.append("/".join(path))
