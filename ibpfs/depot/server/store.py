"""Allocations on disk: one file each under `allocations/ab/`, the table of them, their leases and the capacity.

Every call is synchronous and leaves memory and disk in agreement; what must be synced before the client hears of it
is handed to the caller's `Unsynced`. Knows no connection.
"""

import base64
import errno
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server.allocation import (
    HEADER_BYTES,
    PERMANENT,
    Allocation,
    key_digest,
    pack_header,
    pack_slot,
    slot_offset,
)
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.scan import make_directories, scan
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.server.table import AllocationTable
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import AllocationKind, Reliability

log = logging.getLogger(__name__)

RID = "1"
DEFAULT_SHARE = 0.9  # of the disk, when no capacity is given
_KEY_BYTES = 24
_MIN_GRACE_AFTER_START = 600.0  # a wrong clock at boot must not delete everything at once
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The three secrets of a new allocation, told once."""

    read: str = field(repr=False)
    write: str = field(repr=False)
    manage: str = field(repr=False)


def new_key() -> str:
    return f"{RID}#{base64.b64encode(secrets.token_bytes(_KEY_BYTES), b'+-').decode()}"


class AllocationStore:
    """`clock` gives Unix seconds; `capacity` in bytes, None for a share of the disk as it is now."""

    def __init__(
        self, directory: Path, *, rules: LeaseRules, grace: float, clock: Callable[[], float], capacity: int | None
    ) -> None:
        self.rules = rules
        self.now = clock
        self.table = AllocationTable()
        self._root = directory / "allocations"
        self.grace = grace
        self._started = clock()
        make_directories(self._root)
        for allocation in scan(self._root):
            self.table.add(allocation)
        self.capacity = self._default_capacity() if capacity is None else capacity
        log.info("store opened allocations=%d capacity=%d", len(self.table), self.capacity)

    # --- space --------------------------------------------------------------------------------------------

    def free(self) -> int:
        """What can still be promised: within the capacity, and within what the disk can really take."""
        promised = self.table.allocated - self.table.stored
        return max(0, min(self.capacity - self.table.allocated, self._disk_free() - promised))

    def _disk_free(self) -> int:
        disk = os.statvfs(self._root)
        return disk.f_bavail * disk.f_frsize

    def _default_capacity(self) -> int:
        return int(DEFAULT_SHARE * (self._disk_free() + self.table.stored))

    def _require_room(self, size: int) -> None:
        if size > self.free():
            self.delete_ended()
            if size > self.free():
                raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)

    # --- life of an allocation ----------------------------------------------------------------------------

    def allocate(
        self, size: int, duration: float, reliability: Reliability, unsynced: Unsynced, *, counted: bool
    ) -> NewKeys:
        """`duration` as `LeaseRules.grant` returns it; `counted`: the write count starts at 1, not at 0."""
        self._require_room(size)
        keys = NewKeys(new_key(), new_key(), new_key())
        now = self.now()
        allocation = Allocation(
            id=secrets.token_bytes(16),
            read_digest=key_digest(keys.read),
            write_digest=key_digest(keys.write),
            manage_digest=key_digest(keys.manage),
            reliability=reliability,
            kind=AllocationKind.BYTE_ARRAY,
            read_count=1,
            write_count=int(counted),
            max_size=size,
            created=now,
            lease_end=now + duration,
        )
        self._create(allocation, unsynced)
        self.table.add(allocation)
        return keys

    def _create(self, allocation: Allocation, unsynced: Unsynced) -> None:
        path = self._path(allocation)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, pack_header(allocation), 0)
        except OSError as error:
            os.close(fd)
            Path(path).unlink()
            raise _refusal(error) from error
        self.hand_over(allocation, fd, unsynced)
        if allocation.stable:
            unsynced.directories.add(self._directory(allocation))

    def find(self, kind: CapabilityKind, key: str, *, even_ended: bool = False) -> Allocation:
        found = self.table.find(kind, key)
        if found is None:
            rid, hash_sign, _ = key.partition("#")
            unknown_rid = hash_sign and rid.isdigit() and rid != RID
            raise error_for(ErrorCode.INVALID_RID if unknown_rid else ErrorCode.CAP_NOT_FOUND)
        if not even_ended and found.ended(self.now()):
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        return found

    def delete(self, allocation: Allocation, unsynced: Unsynced) -> None:
        """Its bytes may still be read by whoever has the file open."""
        if allocation.gone:
            return
        Path(self._path(allocation)).unlink(missing_ok=True)
        self.table.remove(allocation)
        if allocation.stable:
            unsynced.directories.add(self._directory(allocation))

    def delete_ended(self) -> int:
        """Deletes what ended a grace time ago, unsynced (it would only end again); returns how many."""
        now = self.now()
        if now < self._started + min(self.grace, _MIN_GRACE_AFTER_START):
            return 0
        ended = self.table.ended_before(now - self.grace)
        for allocation in ended:
            self.delete(allocation, Unsynced())
        if ended:
            log.info("ended allocations deleted count=%d", len(ended))
        return len(ended)

    # --- changes ------------------------------------------------------------------------------------------

    def update(self, allocation: Allocation, unsynced: Unsynced, **changes: Any) -> None:
        """Sets attributes in memory and in the header, both or neither."""
        fd = self.open(allocation)
        try:
            self._write_header(allocation, fd, changes)
        except BaseException:
            os.close(fd)
            raise
        self.hand_over(allocation, fd, unsynced)
        if "reliability" in changes and allocation.stable:
            unsynced.directories.add(self._directory(allocation))  # never synced while it was volatile

    def resize(self, allocation: Allocation, max_size: int, unsynced: Unsynced) -> None:
        """Sets the maximum size and cuts the data to it. The header goes first: it is what counts after a crash."""
        self.require_growth(allocation, max_size)
        size = min(allocation.size, max_size)
        cut = size < allocation.size
        fd = self.open(allocation)
        try:
            self._write_header(allocation, fd, {"max_size": max_size, "size": size})
            if cut:
                os.ftruncate(fd, HEADER_BYTES + size)
        except BaseException:
            os.close(fd)
            raise
        self.hand_over(allocation, fd, unsynced)

    def require_growth(self, allocation: Allocation, max_size: int) -> None:
        if max_size > allocation.max_size:
            self._require_room(max_size - allocation.max_size)

    def lease_end(self, duration: float) -> float:
        return PERMANENT if duration == PERMANENT else self.now() + duration

    def _write_header(self, allocation: Allocation, fd: int, changes: dict[str, Any]) -> None:
        measure, lease_end = self.table.measure(allocation), allocation.lease_end
        changes = changes | {"generation": allocation.generation + 1}
        before = {name: getattr(allocation, name) for name in changes}
        _set_attributes(allocation, changes)
        try:
            _write_all(fd, pack_slot(allocation), slot_offset(allocation.generation))
        except OSError as error:
            _set_attributes(allocation, before)
            raise _refusal(error) from error
        self.table.recount(measure, allocation)
        if allocation.lease_end < lease_end:
            self.table.note_lease(allocation)

    # --- bytes --------------------------------------------------------------------------------------------

    def open(self, allocation: Allocation) -> int:
        try:
            return os.open(self._path(allocation), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise error_for(ErrorCode.CAP_NOT_FOUND) from None
        except OSError as error:
            log.warning("cannot open allocation=%s: %s", allocation.label, error)
            raise error_for(ErrorCode.FILE_OPEN) from error

    def read_data(self, fd: int, offset: int, length: int) -> bytes:
        data = os.pread(fd, length, HEADER_BYTES + offset)
        if len(data) != length:
            log.warning("file is shorter than its header says")
            raise error_for(ErrorCode.FILE_READ)
        return data

    def write_data(self, fd: int, data: memoryview, offset: int) -> None:
        try:
            _write_all(fd, data, HEADER_BYTES + offset)
        except OSError as error:
            raise _refusal(error) from error

    def keep_data(self, allocation: Allocation, fd: int, end: int) -> None:
        """Bytes up to `end` have been written to `fd`: makes them part of the allocation."""
        if allocation.gone:
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        if end > allocation.max_size:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        if end > allocation.size:
            self._write_header(allocation, fd, {"size": end})

    def drop_data(self, allocation: Allocation, fd: int) -> None:
        """What was written behind the size is not to be."""
        os.ftruncate(fd, HEADER_BYTES + allocation.size)

    def hand_over(self, allocation: Allocation, fd: int, unsynced: Unsynced) -> None:
        """The descriptor goes to whom syncs it; nobody syncs a volatile allocation."""
        if allocation.stable:
            unsynced.descriptors.append(fd)
        else:
            os.close(fd)

    def _directory(self, allocation: Allocation) -> str:
        return f"{self._root}/{allocation.id[:1].hex()}"

    def _path(self, allocation: Allocation) -> str:
        return f"{self._directory(allocation)}/{allocation.id.hex()}"  # Path objects cost 5 us each here


def _set_attributes(allocation: Allocation, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(allocation, name, value)


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _refusal(error: OSError) -> Exception:
    if error.errno in _NO_ROOM:
        return error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    log.warning("cannot write: %s", error)
    return error_for(ErrorCode.FILE_WRITE)
