"""One depot to a store: the lock."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ibpfs.errors import IbpfsError

_ATTEMPTS = 5
_PAUSE = 0.04


class StoreLocked(IbpfsError):
    """Another depot serves this store."""


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Raises StoreLocked."""
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(fd):
            raise StoreLocked(f"another depot serves {store}")
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    # Whoever asks whether a depot runs holds the lock for an instant: that is no other depot.
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        else:
            return True
    return False
