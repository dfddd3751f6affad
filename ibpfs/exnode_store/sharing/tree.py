"""A file or directory of a volume as entries of a share, without their bytes. Reads the store alone."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ibpfs.errors import UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.sharing.contents import (
    DIRECTORY,
    FILE,
    LINK,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PATH,
    BadContent,
    check_name,
    check_target,
)

_UNFIT = {stat.S_IFSOCK: "sockets", stat.S_IFIFO: "named pipes", stat.S_IFBLK: "devices", stat.S_IFCHR: "devices"}


@dataclass(frozen=True, slots=True)
class Found:
    """A file, directory or symbolic link; `path` and `target` as in `Entry`."""

    path: tuple[str, ...]
    ino: int
    kind: str
    mode: int
    mtime_ns: int
    target: str | None = None


@dataclass
class Walk:
    """`left_out`: what no link can carry; `unfit`: how many of these of which kind."""

    db: Database
    left_out: list[str] = field(default_factory=list)
    unfit: Counter[str] = field(default_factory=Counter)

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
        if stat.S_ISLNK(mode):
            return self._link(path, ino, mtime_ns)
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            self._leave_out(path, _UNFIT.get(stat.S_IFMT(mode), "of no known kind"))
            return None
        return Found(path, ino, DIRECTORY if stat.S_ISDIR(mode) else FILE, mode & 0o777, mtime_ns)

    def _link(self, path: tuple[str, ...], ino: int, mtime_ns: int) -> Found | None:
        target = _without_idle_words(os.fsdecode(self.db.value("SELECT target FROM symlinks WHERE ino = ?", (ino,))))
        try:
            check_target(path, target)
        except BadContent:
            self._leave_out(path, "symbolic links that could lead out of it")
            return None
        return Found(path, ino, LINK, 0o777, mtime_ns, target)

    def _names(self, path: tuple[str, ...], ino: int) -> Iterator[tuple[tuple[str, ...], int]]:
        rows = self.db.rows("SELECT name, ino FROM dentries WHERE parent = ? ORDER BY id DESC", (ino,))
        for name, number in rows:
            inner = (*path, os.fsdecode(name))
            if len(inner) > MAX_DEPTH or sum(len(os.fsencode(one)) + 1 for one in inner) > MAX_PATH:
                self._leave_out(inner, "too deep")
                continue
            try:
                check_name(inner[-1])
            except BadContent:
                self._leave_out(inner, "of names that no link can carry")
            else:
                yield inner, number

    def _leave_out(self, path: tuple[str, ...], kind: str) -> None:
        if not path:
            raise UsageError("neither a file nor a directory")
        self.left_out.append("/".join(path))
        self.unfit[kind] += 1


def _without_idle_words(target: str) -> str:
    """The same place: nothing between two slashes, and `.`, lead nowhere."""
    words = "/".join(word for word in target.split("/") if word not in ("", "."))
    return f"/{words}" if target.startswith("/") else words or "."
