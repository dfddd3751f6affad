"""Directories of volumes that are being made. A mark says so until they are whole: what a kill leaves is then known to
hold nothing that anybody has, and is taken away by who makes a volume there next."""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ibpfs.config import VolumePaths, sync_directory
from ibpfs.errors import VolumeError

MARK = ".unfinished"
_SIDES = "", "-wal", "-shm", "-journal"


@contextmanager
def marked(root: Path) -> Iterator[None]:
    """The mark is there while in the block, and stays when the block fails. VolumeError when somebody else is at it."""
    mark = root / MARK
    descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, mark)
        sync_directory(root)
        yield
        mark.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, mark: Path) -> None:
    """The lock ends with its process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), mark.stat()):
            return
    except (BlockingIOError, FileNotFoundError):  # or it was done with just now
        pass
    raise VolumeError(f"{mark.parent}: another process is making a volume there")


def take_away(paths: VolumePaths, kept: Collection[str] = ()) -> None:
    """What is left of a volume that was not finished, but for the names `kept`. VolumeError when anything else is
    there."""
    mark = paths.root / MARK
    if paths.properties.exists() or not mark.exists():
        return
    descriptor = os.open(mark, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(descriptor, mark)
        entries = [entry for entry in paths.root.iterdir() if entry.name not in kept and entry != mark]
        for entry in entries:
            if not _is_of_a_volume(paths, entry.name):
                raise VolumeError(f"{paths.root}: a volume was begun there and not finished, and {entry.name} is not of"
                                  " it; move that away first")  # fmt: skip
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        mark.unlink()
    finally:
        os.close(descriptor)


def _is_of_a_volume(paths: VolumePaths, name: str) -> bool:
    known = {path.name for path in (*paths.directories, paths.snapshots, paths.key)}
    known |= {f"{paths.store.name}{side}" for side in _SIDES}
    begun = tuple(f".{path.name}." for path in (paths.properties, paths.key))  # of files that are being written
    return name in known or name.startswith(begun)
