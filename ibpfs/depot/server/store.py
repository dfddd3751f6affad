"""Allocations on disk: one file each under `allocations/ab/`, the table of them, their leases and the capacity.

Every call is synchronous and leaves memory and disk in agreement; what must be synced before the client hears of it
is handed to the caller's `Unsynced`. Knows no connection.
"""

import base64
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
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
from ibpfs.depot.server.digests import SUFFIX, last_block, open_digests, widened
from ibpfs.depot.server.files import refusal, write_all
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.revocation import plan_revocation
from ibpfs.depot.server.scan import make_directories, scan
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.server.table import AllocationTable
from ibpfs.depot.server.target import Target
from ibpfs.depot.wire.digests import Checksum
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import AllocationKind, Reliability

log = logging.getLogger(__name__)

RID = "1"
DEFAULT_SHARE = 0.9  # of the disk, when no capacity is given
BORN_TOGETHER = 64  # new ones in one directory (the first byte of an id): a batch of them has one or two to sync
_KEY_BYTES = 24
#: Bytes from which on the blocks of an allocation are freed in a thread (4 ms for 16 MiB), while so many are free on
#: the disk and promised to nobody; and of how many until the next sync, each of which takes a descriptor.
_LONG, _PLENTY, MOST_HELD = 1 << 20, 1 << 30, 32
_MIN_GRACE_AFTER_START = 600.0  # a wrong clock at boot must not delete everything at once


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The three secrets of a new allocation, told once."""

    read: str = field(repr=False)
    write: str = field(repr=False)
    manage: str = field(repr=False)


def new_key(rid: str = RID) -> str:
    return f"{rid}#{base64.b64encode(secrets.token_bytes(_KEY_BYTES), b'+-').decode()}"


class AllocationStore:
    """`clock` gives Unix seconds; `capacity` in bytes, None for a share of the disk as it is now."""

    def __init__(
        self,
        directory: Path,
        *,
        rules: LeaseRules,
        grace: float,
        clock: Callable[[], float],
        capacity: int | None,
        rid: str = RID,
    ) -> None:
        self.rid = rid
        self.deleted: Callable[[Allocation], None] = lambda _: None  # told of each allocation that goes
        self.allocated_ever = self.ended = self.revoked = 0  # since the start
        self.rules = rules
        self.now = clock
        self.table = AllocationTable()
        self.root = directory / "allocations"
        self.grace = grace
        self._started = clock()
        self._births = secrets.randbelow(256 * BORN_TOGETHER)
        make_directories(self.root)
        for allocation in scan(self.root):
            self.table.add(allocation)
        self._delete_orphans()
        self.set_capacity(capacity)
        log.info("store opened allocations=%d capacity=%d", len(self.table), self.capacity)

    # --- space --------------------------------------------------------------------------------------------

    def free(self) -> int:
        """What can still be promised: within the capacity, and within what the disk can really take."""
        return max(0, min(self.capacity - self.table.allocated, self._unpromised()))

    def _unpromised(self) -> int:
        """What the disk has beyond what allocations may still take of it."""
        return self._disk_free() - (self.table.allocated - self.table.stored)

    def _disk_free(self) -> int:
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def set_capacity(self, capacity: int | None) -> None:
        self.capacity = int(DEFAULT_SHARE * (self._disk_free() + self.table.stored)) if capacity is None else capacity

    def require_room(self, size: int, *, stable: bool) -> None:
        """A stable allocation may take the room of volatile ones."""
        if size <= self.free():
            return
        self.delete_ended()
        missing = size - self.free()
        if missing <= 0:
            return
        plan = plan_revocation(self.table.volatile, missing, self.now()) if stable else None
        if plan is None:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        for allocation in plan:
            self.delete(allocation, Unsynced())  # they are volatile
        self.revoked += len(plan)
        log.info("volatile allocations revoked count=%d for_bytes=%d", len(plan), size)
        if size > self.free():  # what they promised was never on the disk
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)

    # --- life of an allocation ----------------------------------------------------------------------------

    def allocate(
        self,
        size: int,
        duration: float,
        reliability: Reliability,
        unsynced: Unsynced,
        *,
        counted: bool,
        kind: AllocationKind = AllocationKind.BYTE_ARRAY,
        checksum: Checksum | None = None,
    ) -> NewKeys:
        """`duration` as `LeaseRules.grant` returns it; `counted`: the write count starts at 1, not at 0."""
        keys = self.new_keys()
        allocation = self.born(keys, reliability, duration, counted=counted)
        allocation.kind, allocation.max_size, allocation.checksum = kind, size, checksum
        self.require_room(allocation.charge, stable=allocation.stable)
        self.add(allocation, unsynced)
        return keys

    def new_keys(self) -> NewKeys:
        return NewKeys(new_key(self.rid), new_key(self.rid), new_key(self.rid))

    def born(self, keys: NewKeys, reliability: Reliability, duration: float, *, counted: bool) -> Allocation:
        """A new allocation, of no size yet and not in the store."""
        now = self.now()
        return Allocation(
            id=self._new_id(),
            read_digest=key_digest(keys.read),
            write_digest=key_digest(keys.write),
            manage_digest=key_digest(keys.manage),
            reliability=reliability,
            kind=AllocationKind.BYTE_ARRAY,
            read_count=1,
            write_count=int(counted),
            max_size=0,
            created=now,
            lease_end=now + duration,
        )

    def _new_id(self) -> bytes:
        self._births += 1
        return bytes([self._births // BORN_TOGETHER % 256]) + secrets.token_bytes(15)

    def add(self, allocation: Allocation, unsynced: Unsynced) -> None:
        self._create(allocation, unsynced)
        self.table.add(allocation)
        self.allocated_ever += 1

    def _create(self, allocation: Allocation, unsynced: Unsynced) -> None:
        path = self.path(allocation)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, pack_header(allocation), 0)
        except OSError as error:
            os.close(fd)
            Path(path).unlink()
            raise refusal(error) from error
        self.hand_over(allocation, fd, unsynced)
        if allocation.stable:
            unsynced.directories.add(self.directory(allocation))

    def find(self, kind: CapabilityKind, key: str, *, even_ended: bool = False) -> Allocation:
        """May be an alias; `target` looks through it."""
        found = self.table.find(kind, key)
        if found is None:
            rid, hash_sign, _ = key.partition("#")
            unknown_rid = hash_sign and rid.isdigit() and rid != self.rid
            raise error_for(ErrorCode.INVALID_RID if unknown_rid else ErrorCode.CAP_NOT_FOUND)
        if found.is_alias:
            parent = self.table.by_id(found.parent)
            gone = parent is None or parent.ended(self.now()) or found.ended(self.now())
            even_ended = even_ended and not gone  # an alias ends without grace
            if gone:
                raise error_for(ErrorCode.CAP_NOT_FOUND)
        if not even_ended and found.ended(self.now()):
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        return found

    def target(self, kind: CapabilityKind, key: str) -> Target:
        found = self.find(kind, key)
        if not found.is_alias:
            return Target(found, None)
        parent = self.table.by_id(found.parent)
        assert parent is not None
        return Target(parent, found)

    def delete(self, allocation: Allocation, unsynced: Unsynced) -> None:
        """Its bytes may still be read by whoever has the file open. Its aliases go first."""
        if allocation.gone:
            return
        for alias in self.table.aliases_of(allocation):
            self.delete(alias, unsynced)
        held = self._held(allocation) if len(unsynced.deleted) < MOST_HELD else None
        try:
            Path(self.path(allocation)).unlink(missing_ok=True)
        except BaseException:
            if held is not None:
                os.close(held)
            raise
        if held is not None:
            unsynced.deleted.append(held)
        if allocation.checksum is not None:
            Path(self.path(allocation) + SUFFIX).unlink(missing_ok=True)
        self.table.remove(allocation)
        if allocation.stable:
            unsynced.directories.add(self.directory(allocation))
        self.deleted(allocation)

    def _held(self, allocation: Allocation) -> int | None:
        """A descriptor of a long file that is about to be deleted: its blocks are freed by whoever closes that, in a
        thread. None where the disk is nearly full: who asks for room next is to find it."""
        if allocation.stable and allocation.size >= _LONG and self._unpromised() >= _PLENTY:
            with suppress(OSError):  # then it takes longer
                return os.open(self.path(allocation), os.O_RDONLY | os.O_CLOEXEC)
        return None

    def _delete_orphans(self) -> None:
        """Aliases whose parent went when a crash came between."""
        for one in [one for one in self.table if one.is_alias and self.table.by_id(one.parent) is None]:
            self.delete(one, Unsynced())

    def delete_ended(self, unsynced: Unsynced | None = None) -> int:
        """Deletes what ended a grace time ago; returns how many. It need not be synced: it would only end again."""
        now = self.now()
        if now < self._started + min(self.grace, _MIN_GRACE_AFTER_START):
            return 0
        ended = [one for one in self.table.ended_before(now - self.grace) if not one.gone]
        mine = Unsynced() if unsynced is None else unsynced
        try:
            for allocation in ended:
                self.delete(allocation, mine)  # one that went with its parent is gone already
        finally:
            for allocation in ended:
                if not allocation.gone:  # the disk refuses: they are looked at again
                    self.table.note_lease(allocation)
            if unsynced is None:
                mine.close()
        self.ended += len(ended)
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
            unsynced.directories.add(self.directory(allocation))  # never synced while it was volatile

    def resize(self, allocation: Allocation, max_size: int, unsynced: Unsynced) -> None:
        """Sets the maximum size and cuts the data to it. The header goes first: it is what counts after a crash."""
        if allocation.kind.is_queue:
            raise error_for(ErrorCode.WOULD_DAMAGE_DATA)
        self.require_growth(allocation, max_size)
        size, cut = min(allocation.size, max_size), max_size < allocation.size
        fd = self.open(allocation)
        try:
            changes: dict[str, Any] = {"max_size": max_size, "size": size}
            if allocation.checksum is not None and cut:
                changes["stale"] = widened(allocation.stale, last_block(allocation.checksum, size))
            self._write_header(allocation, fd, changes)
            if cut:
                self.drop_data(allocation, fd)
                self._cut_digests(allocation)
            elif allocation.laid > max_size:  # not to the size: behind it lies what a STORE under way has written
                os.ftruncate(fd, HEADER_BYTES + max_size)
                allocation.laid = max_size
        except BaseException:
            os.close(fd)
            raise
        self.hand_over(allocation, fd, unsynced)

    def _cut_digests(self, allocation: Allocation) -> None:
        if allocation.checksum is not None:
            digests = open_digests(self.path(allocation))
            try:
                os.ftruncate(digests, allocation.checksum.blocks(allocation.size) * allocation.checksum.digest_size)
            finally:
                os.close(digests)

    def require_growth(self, allocation: Allocation, max_size: int) -> None:
        if max_size == allocation.max_size:
            return
        if allocation.kind.is_queue:
            raise error_for(ErrorCode.WOULD_DAMAGE_DATA)
        if max_size > allocation.max_size:
            growth = allocation.charge_for(max_size) - allocation.charge
            self.require_room(growth, stable=allocation.stable)
            if allocation.gone:  # volatile itself
                raise error_for(ErrorCode.CAP_NOT_FOUND)

    def lease_end(self, duration: float) -> float:
        return PERMANENT if duration == PERMANENT else self.now() + duration

    def rekey(self, allocation: Allocation, unsynced: Unsynced) -> NewKeys:
        """The old keys end."""
        keys = self.new_keys()
        digests = {
            "read_digest": key_digest(keys.read),
            "write_digest": key_digest(keys.write),
            "manage_digest": key_digest(keys.manage),
        }
        self.table.forget_keys(allocation)
        try:
            self.update(allocation, unsynced, **digests)
        finally:
            self.table.index_keys(allocation)
        return keys

    def rewrite(self, allocation: Allocation, fd: int, **changes: Any) -> None:
        """As `update`, through a descriptor that the caller keeps."""
        self._write_header(allocation, fd, changes)

    def _write_header(self, allocation: Allocation, fd: int, changes: dict[str, Any]) -> None:
        measure, lease_end = self.table.measure(allocation), allocation.lease_end
        changes = changes | {"generation": allocation.generation + 1}
        before = {name: getattr(allocation, name) for name in changes}
        _set_attributes(allocation, changes)
        try:
            write_all(fd, pack_slot(allocation), slot_offset(allocation.generation))
        except OSError as error:
            _set_attributes(allocation, before)
            raise refusal(error) from error
        self.table.recount(measure, allocation)
        if allocation.lease_end < lease_end:
            self.table.note_lease(allocation)

    # --- bytes --------------------------------------------------------------------------------------------

    def open(self, allocation: Allocation, access: int = os.O_RDWR) -> int:
        try:
            return os.open(self.path(allocation), access | os.O_CLOEXEC)
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
            write_all(fd, data, HEADER_BYTES + offset)
        except OSError as error:
            raise refusal(error) from error

    def keep_data(self, allocation: Allocation, fd: int, end: int) -> None:
        """Bytes up to `end` have been written to `fd`: makes them part of the allocation."""
        if allocation.gone:
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        if end > allocation.max_size:
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        if end > allocation.size:
            self._write_header(allocation, fd, {"size": end})

    def replace_file(self, allocation: Allocation, fd: int, path: str, size: int, unsynced: Unsynced) -> None:
        """The file `fd` at `path`, with `size` bytes behind the room for its header, becomes the allocation's."""
        measure = self.table.measure(allocation)
        before = {"size": allocation.size, "generation": allocation.generation}
        _set_attributes(allocation, {"size": size, "generation": allocation.generation + 1})
        try:
            write_all(fd, pack_header(allocation), 0)
            Path(path).replace(self.path(allocation))
        except OSError as error:
            _set_attributes(allocation, before)
            raise refusal(error) from error
        self.table.recount(measure, allocation)
        if allocation.stable:
            unsynced.directories.add(self.directory(allocation))

    def drop_data(self, allocation: Allocation, fd: int) -> None:
        """What was written behind the size is not to be."""
        os.ftruncate(fd, HEADER_BYTES + allocation.size)
        allocation.laid = 0

    def hand_over(self, allocation: Allocation, fd: int, unsynced: Unsynced) -> None:
        """The descriptor goes to whom syncs it; nobody syncs a volatile allocation."""
        if allocation.stable:
            unsynced.take(fd)
        else:
            os.close(fd)

    def directory(self, allocation: Allocation) -> str:
        return f"{self.root}/{allocation.id[:1].hex()}"

    def path(self, allocation: Allocation) -> str:
        return f"{self.directory(allocation)}/{allocation.id.hex()}"  # Path objects cost 5 us each here


def _set_attributes(allocation: Allocation, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(allocation, name, value)
