"""Start-up: read every allocation's header back, and clear away what a crash left behind."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ibpfs.depot.server.allocation import HEADER_BYTES, Allocation, unpack_header
from ibpfs.depot.server.digests import SUFFIX, open_digests, refresh
from ibpfs.depot.server.syncing import sync_directory
from ibpfs.ext4 import spread_directories

log = logging.getLogger(__name__)

BUCKETS = [f"{n:02x}" for n in range(256)]
DAMAGED = "damaged"
NEW = ".new"  # behind the name of a file that is to replace another


def make_directories(root: Path) -> None:
    if (root / BUCKETS[-1]).is_dir():
        return
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    spread_directories(root)
    for bucket in BUCKETS:
        (root / bucket).mkdir(mode=0o700, exist_ok=True)
    sync_directory(root)
    sync_directory(root.parent)


def scan(root: Path) -> Iterator[Allocation]:
    for bucket in BUCKETS:
        with os.scandir(root / bucket) as entries:
            found = {entry.name: entry.path for entry in entries}
        for name, path in found.items():
            if name.endswith(NEW):  # of a BUFFER whose store was cut off
                Path(path).unlink()
            elif name.endswith(SUFFIX):
                if name.removesuffix(SUFFIX) not in found:
                    Path(path).unlink()
            elif (allocation := _read(path, name)) is not None:
                yield allocation


def _read(path: str, name: str) -> Allocation | None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        length = os.fstat(fd).st_size
        allocation = unpack_header(os.pread(fd, HEADER_BYTES, 0))
        if allocation is not None and allocation.id.hex() == name:
            _restore(fd, path, length, allocation)
            return allocation
    finally:
        os.close(fd)
    _put_away(Path(path), length)
    return None


def _restore(fd: int, path: str, length: int, allocation: Allocation) -> None:
    if allocation.is_alias or allocation.kind.is_queue:
        return
    _cut(fd, length, allocation)
    if allocation.checksum is None:
        return
    digests = open_digests(path)
    try:
        refresh(fd, digests, allocation.checksum, allocation.stale, allocation.size)
    except OSError as error:
        log.warning("digests of allocation=%s cannot be made anew: %s", allocation.label, error)
    finally:
        os.close(digests)


def _cut(fd: int, length: int, allocation: Allocation) -> None:
    end = HEADER_BYTES + allocation.size
    if length > end:  # a STORE was cut off by the crash
        os.ftruncate(fd, end)
    elif length < end:
        log.warning("allocation=%s misses %d bytes on disk", allocation.label, end - length)


def _put_away(path: Path, length: int) -> None:
    if length <= HEADER_BYTES:  # an ALLOCATE that was never answered
        path.unlink()
        return
    damaged = path.parents[1] / DAMAGED
    damaged.mkdir(mode=0o700, exist_ok=True)
    path.rename(damaged / path.name)
    log.warning("header of %s is damaged, moved to %s", path.name, damaged)
