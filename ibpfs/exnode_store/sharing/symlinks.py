"""The symbolic links of a received directory: made last, and never followed while others are made."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ibpfs.errors import DataError
from ibpfs.exnode_store.sharing.contents import LINK, Entry

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What file systems say that hold no symbolic links.
_NOT_OFFERED: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def make_links(root: Path, entries: Sequence[Entry]) -> list[str]:
    """Make those of `entries` in the tree at `root`, which has its directories. Raises DataError.

    Those that an earlier run made are left. Returns the paths of those that this file system cannot hold.
    """
    return ["/".join(entry.path) for entry in entries if entry.kind == LINK and not _make(root, entry)]


def _make(root: Path, entry: Entry) -> bool:
    """False: it cannot be made on this file system."""
    assert entry.target is not None
    *above, name = entry.path
    place = root.joinpath(*entry.path)
    try:
        with _directory(root, above) as parent:
            try:
                os.symlink(entry.target, name, dir_fd=parent)
            except FileExistsError:
                if os.readlink(name, dir_fd=parent) != entry.target:
                    raise
            with suppress(OverflowError, OSError):  # a time that this file system cannot hold
                os.utime(name, ns=(time.time_ns(), entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return False
        raise DataError(f"{place}: the symbolic link cannot be made: {error.strerror}") from None
    return True


@contextmanager
def _directory(root: Path, names: Sequence[str]) -> Iterator[int]:
    """A descriptor of the directory below `root`; whatever is a link on the way there is an error."""
    found = os.open(root, _OPEN)
    try:
        for name in names:
            inner = os.open(name, _OPEN, dir_fd=found)
            os.close(found)
            found = inner
        yield found
    finally:
        os.close(found)
