"""What each command without data does to the store, and what it is answered. Knows no connection and no disk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ibpfs import __version__
from ibpfs.depot.capability import Capability, CapabilityKind, CapabilitySet
from ibpfs.depot.server.allocation import Allocation
from ibpfs.depot.server.leases import seconds_left
from ibpfs.depot.server.store import RID, AllocationStore
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import ANY_RESOURCE, AllocationKind

TYPE_KEY = "6714"  # decimal below 2^31 for old clients; ignored when it comes back


@dataclass(slots=True)
class Desk:
    """`place` is the HOST, PORT that new capabilities name; `unsynced` collects what must be durable first."""

    store: AllocationStore
    place: tuple[str, int]
    unsynced: Unsynced

    def answer(self, request: ev.Request) -> ev.Reply:
        """Raises DepotError for what is refused."""
        return _HANDLERS[type(request)](self, request)

    # --- allocations --------------------------------------------------------------------------------------

    def _allocate(self, request: ev.Allocate) -> ev.Allocated:
        _check_resource(request.rid)
        if request.kind is not AllocationKind.BYTE_ARRAY:
            raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
        version_0 = request.version == 0
        duration = self.store.rules.grant(
            request.duration, zero_is_permanent=version_0, too_long=ErrorCode.LONG_DURATION
        )
        # Version 0 counts writers as the paper does; version 1 leaves them uncounted (0), as its clients expect.
        keys = self.store.allocate(
            request.size, duration, request.reliability, self.unsynced, counted=version_0
        )
        return ev.Allocated(
            CapabilitySet(
                self._capability(keys.read, CapabilityKind.READ),
                self._capability(keys.write, CapabilityKind.WRITE),
                self._capability(keys.manage, CapabilityKind.MANAGE),
            )
        )

    def _capability(self, key: str, kind: CapabilityKind) -> Capability:
        return Capability(*self.place, key, TYPE_KEY, kind)

    def _managed(self, request: ev.Probe | ev.Increment | ev.Decrement | ev.Change | ev.Truncate) -> Allocation:
        # An ended allocation can be asked about and renewed until its grace time is over.
        even_ended = isinstance(request, ev.Probe | ev.Change)
        return self.store.find(CapabilityKind.MANAGE, request.key.key, even_ended=even_ended)

    def _probe(self, request: ev.Probe) -> ev.Probed:
        a = self._managed(request)
        left = seconds_left(a.lease_end, self.store.now())
        return ev.Probed(a.read_count, a.write_count, a.size, a.max_size, left, a.reliability, a.kind)

    def _increment(self, request: ev.Increment) -> ev.Done:
        allocation = self._managed(request)
        if request.counted is CapabilityKind.READ:
            self.store.update(allocation, self.unsynced, read_count=_within_32_bits(allocation.read_count + 1))
        elif request.counted is CapabilityKind.WRITE:
            self.store.update(allocation, self.unsynced, write_count=_within_32_bits(allocation.write_count + 1))
        return ev.Done()

    def _decrement(self, request: ev.Decrement) -> ev.Done:
        allocation = self._managed(request)
        if request.counted is CapabilityKind.READ:
            if allocation.read_count <= 1:
                self.store.delete(allocation, self.unsynced)
            else:
                self.store.update(allocation, self.unsynced, read_count=allocation.read_count - 1)
        elif request.counted is CapabilityKind.WRITE and allocation.write_count > 0:
            left = allocation.write_count - 1
            read_only = allocation.read_only or left == 0
            self.store.update(allocation, self.unsynced, write_count=left, read_only=read_only)
        return ev.Done()

    def _change(self, request: ev.Change) -> ev.Done:
        allocation = self._managed(request)
        version_0 = request.version == 0
        duration = self.store.rules.grant(
            request.duration,
            zero_is_permanent=version_0,
            too_long=ErrorCode.LONG_DURATION if version_0 else ErrorCode.WOULD_EXCEED_POLICY,
        )
        if request.max_size < allocation.size:
            raise error_for(ErrorCode.WOULD_DAMAGE_DATA)
        self.store.require_growth(allocation, request.max_size)
        changes: dict[str, Any] = {"lease_end": self.store.now() + duration, "max_size": request.max_size}
        if request.reliability is not None:
            changes["reliability"] = request.reliability
        self.store.update(allocation, self.unsynced, **changes)
        return ev.Done()

    def _truncate(self, request: ev.Truncate) -> ev.Done:
        self.store.resize(self._managed(request), request.size, self.unsynced)
        return ev.Done()

    # --- the depot ----------------------------------------------------------------------------------------

    def _inquire(self, request: ev.StatusInquire) -> ev.StatusReport:
        _check_resource(request.rid)
        table = self.store.table
        return ev.StatusReport(
            total=self.store.capacity,
            used=table.allocated,
            free=self.store.free(),
            used_stable=table.stable_allocated,
            max_lease=self.store.rules.longest,
        )

    def _resources(self, _: ev.StatusResources) -> ev.Resources:
        return ev.Resources((RID,))

    def _version(self, _: ev.StatusVersion) -> ev.VersionText:
        return ev.VersionText((f"ibpfs-depot {__version__}", "IBP 1.4"))

    def _refuse_command(self, _: ev.StatusChange | ev.StatusStatistics) -> ev.Failed:
        return ev.Failed(ErrorCode.INVALID_CMD)

    def _refuse_unsupported(self, _: ev.Unsupported) -> ev.Failed:
        return ev.Failed(ErrorCode.UNKNOWN_FUNCTION)

    def _refuse_malformed(self, request: ev.Malformed) -> ev.Failed:
        return ev.Failed(request.code)


_HANDLERS: dict[type[Any], Callable[[Desk, Any], ev.Reply]] = {
    ev.Allocate: Desk._allocate,
    ev.Probe: Desk._probe,
    ev.Increment: Desk._increment,
    ev.Decrement: Desk._decrement,
    ev.Change: Desk._change,
    ev.Truncate: Desk._truncate,
    ev.StatusInquire: Desk._inquire,
    ev.StatusResources: Desk._resources,
    ev.StatusVersion: Desk._version,
    ev.StatusChange: Desk._refuse_command,
    ev.StatusStatistics: Desk._refuse_command,
    ev.Unsupported: Desk._refuse_unsupported,
    ev.Malformed: Desk._refuse_malformed,
}


def _check_resource(rid: str) -> None:
    if rid not in (ANY_RESOURCE, RID):
        raise error_for(ErrorCode.INVALID_RID)


def _within_32_bits(count: int) -> int:
    if count >= 2**32:
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    return count
