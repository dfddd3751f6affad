"""What each command without data does to the store, and what it is answered. Knows no connection and no disk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ibpfs import __version__
from ibpfs.depot.capability import Capability, CapabilityKind, CapabilitySet
from ibpfs.depot.server import derivations as dv
from ibpfs.depot.server.allocation import Allocation
from ibpfs.depot.server.leases import LeaseRules, seconds_left
from ibpfs.depot.server.resources import Resources
from ibpfs.depot.server.store import AllocationStore, NewKeys
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.errors import ErrorCode, NoRoom, error_for
from ibpfs.depot.wire.protocol import ANY_RESOURCE, AllocationKind

TYPE_KEY = "6714"  # decimal below 2^31 for old clients; ignored when it comes back
_MIB, _DAY = 1 << 20, 86400


@dataclass(slots=True)
class Desk:
    """`place` is the HOST, PORT that new capabilities name; `unsynced` collects what must be durable first."""

    resources: Resources
    place: tuple[str, int]
    unsynced: Unsynced

    def answer(self, request: ev.Request) -> ev.Reply:
        """Raises DepotError for what is refused."""
        return _HANDLERS[type(request)](self, request)

    # --- allocations --------------------------------------------------------------------------------------

    def _allocate(self, request: ev.Allocate) -> ev.Allocated:
        stores = self.resources.named(request.rid)
        for store in stores:
            try:
                return self._allocated(self._allocate_in(store, request))
            except NoRoom:
                if store is stores[-1]:
                    raise
        raise AssertionError("unreachable")

    def _allocate_in(self, store: AllocationStore, request: ev.Allocate) -> NewKeys:
        duration = _granted(store, request.duration, request.version)
        # Version 0 counts writers as the paper does; version 1 leaves them uncounted (0), as its clients expect.
        return store.allocate(
            request.size, duration, request.reliability, self.unsynced,
            counted=request.version == 0, kind=request.kind, checksum=_kept(request),
        )  # fmt: skip

    def _allocated(self, keys: NewKeys) -> ev.Allocated:
        return ev.Allocated(
            CapabilitySet(
                self._capability(keys.read, CapabilityKind.READ),
                self._capability(keys.write, CapabilityKind.WRITE),
                self._capability(keys.manage, CapabilityKind.MANAGE),
            )
        )

    def _capability(self, key: str, kind: CapabilityKind) -> Capability:
        return Capability(*self.place, key, TYPE_KEY, kind)

    def _managed(self, request: ev.Increment | ev.Decrement | ev.Truncate) -> tuple[AllocationStore, Allocation]:
        store = self.resources.of_key(request.key.key)
        return store, dv.managed(store, request.key.key)

    def _probe(self, request: ev.Probe) -> ev.Probed:
        # An ended allocation can be asked about and renewed until its grace time is over.
        store = self.resources.of_key(request.key.key)
        a = store.find(_kind_of(store, request.key.key), request.key.key, even_ended=True)
        if a.is_alias:
            return dv.probe_as_allocation(store, a)
        left = seconds_left(a.lease_end, store.now())
        return ev.Probed(a.read_count, a.write_count, a.size, a.max_size, left, a.reliability, a.kind)

    def _increment(self, request: ev.Increment) -> ev.Done:
        self._count_up(*self._managed(request), request.counted)
        return ev.Done()

    def _count_up(self, store: AllocationStore, allocation: Allocation, counted: CapabilityKind) -> None:
        if counted is CapabilityKind.READ:
            store.update(allocation, self.unsynced, read_count=_within_32_bits(allocation.read_count + 1))
        elif counted is CapabilityKind.WRITE:
            store.update(allocation, self.unsynced, write_count=_within_32_bits(allocation.write_count + 1))

    def _decrement(self, request: ev.Decrement) -> ev.Done:
        self._count_down(*self._managed(request), request.counted)
        return ev.Done()

    def _count_down(self, store: AllocationStore, allocation: Allocation, counted: CapabilityKind) -> None:
        if counted is CapabilityKind.READ:
            if allocation.read_count <= 1:
                store.delete(allocation, self.unsynced)
            else:
                store.update(allocation, self.unsynced, read_count=allocation.read_count - 1)
        elif counted is CapabilityKind.WRITE and allocation.write_count > 0:
            left = allocation.write_count - 1
            read_only = allocation.read_only or left == 0
            store.update(allocation, self.unsynced, write_count=left, read_only=read_only)

    def _change(self, request: ev.Change) -> ev.Done:
        store = self.resources.of_key(request.key.key)
        renews = request.duration != ev.KEEP_LEASE
        allocation = dv.managed(store, request.key.key, even_ended=renews)
        lease_end = _new_end(store, request) if renews else allocation.lease_end
        if request.max_size < allocation.size:
            raise error_for(ErrorCode.WOULD_DAMAGE_DATA)
        store.require_growth(allocation, request.max_size)
        changes: dict[str, Any] = {"lease_end": lease_end, "max_size": request.max_size}
        if request.reliability is not None:
            changes["reliability"] = request.reliability
        store.update(allocation, self.unsynced, **changes)
        return ev.Done()

    def _truncate(self, request: ev.Truncate) -> ev.Done:
        store, allocation = self._managed(request)
        store.resize(allocation, request.size, self.unsynced)
        return ev.Done()

    # --- what is made out of them -------------------------------------------------------------------------

    def _rename(self, request: ev.Rename) -> ev.Allocated:
        store = self.resources.of_key(request.key.key)
        return self._allocated(store.rekey(dv.managed(store, request.key.key), self.unsynced))

    def _split(self, request: ev.Split) -> ev.Allocated:
        store = self.resources.of_key(request.key.key)
        duration = _granted(store, request.duration, request.version)
        _kept(request)
        return self._allocated(dv.split(store, request, duration, self.unsynced))

    def _merge(self, request: ev.Merge) -> ev.Done:
        store = self.resources.of_key(request.key.key)
        dv.merge(store, request, self.unsynced)
        return ev.Done()

    def _make_alias(self, request: ev.AliasAllocate) -> ev.Allocated:
        store = self.resources.of_key(request.key.key)
        return self._allocated(dv.make_alias(store, request, self.unsynced))

    def _probe_alias(self, request: ev.AliasProbe) -> ev.AliasProbed:
        return dv.probe_alias(self.resources.of_key(request.key.key), request)

    def _count_alias(self, request: ev.AliasIncrement | ev.AliasDecrement) -> ev.Done:
        store = self.resources.of_key(request.key.key)
        alias, _ = dv.revocable(store, request)
        count = self._count_up if isinstance(request, ev.AliasIncrement) else self._count_down
        count(store, alias, request.counted)
        return ev.Done()

    def _change_alias(self, request: ev.AliasChange) -> ev.Done:
        dv.change_alias(self.resources.of_key(request.key.key), request, self.unsynced)
        return ev.Done()

    # --- the depot ----------------------------------------------------------------------------------------

    def _inquire(self, request: ev.StatusInquire) -> ev.StatusReport:
        stores = self.resources.named(request.rid)
        return self._report(stores, stores[0].rid if len(stores) == 1 else request.rid)

    def _report(self, stores: list[AllocationStore], rid: str) -> ev.StatusReport:
        return ev.StatusReport(
            total=sum(store.capacity for store in stores),
            used=sum(store.table.allocated for store in stores),
            free=sum(store.free() for store in stores),
            used_stable=sum(store.table.stable_allocated for store in stores),
            max_lease=stores[0].rules.longest,
            rid=rid,
        )

    def change_limits(self, numbers: tuple[int, int, int]) -> ev.StatusReport:
        """MiB of stable and of volatile allocations, of which the larger is our capacity, and days. Until a restart."""
        stable, volatile, days = numbers
        if not (max(stable, volatile) and days) or max(numbers) > 2**40:
            raise error_for(ErrorCode.INVALID_PARAMETER)
        store = self.resources.first
        store.capacity = max(stable, volatile) * _MIB
        for one in self.resources:
            one.rules = LeaseRules(days * _DAY, permanent=False)
        return self._report(list(self.resources), ANY_RESOURCE)

    def _list_resources(self, _: ev.StatusResources) -> ev.Resources:
        return ev.Resources(self.resources.rids)

    def _version(self, _: ev.StatusVersion) -> ev.VersionText:
        return ev.VersionText((f"ibpfs-depot {__version__}", "IBP 1.4"))

    def _refuse_command(self, _: ev.StatusStatistics) -> ev.Failed:
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
    ev.Rename: Desk._rename,
    ev.Split: Desk._split,
    ev.Merge: Desk._merge,
    ev.AliasAllocate: Desk._make_alias,
    ev.AliasProbe: Desk._probe_alias,
    ev.AliasIncrement: Desk._count_alias,
    ev.AliasDecrement: Desk._count_alias,
    ev.AliasChange: Desk._change_alias,
    ev.StatusInquire: Desk._inquire,
    ev.StatusResources: Desk._list_resources,
    ev.StatusVersion: Desk._version,
    ev.StatusStatistics: Desk._refuse_command,
    ev.Unsupported: Desk._refuse_unsupported,
    ev.Malformed: Desk._refuse_malformed,
}


def _kind_of(store: AllocationStore, key: str) -> CapabilityKind:
    """LoRS probes with its read capabilities, as UTK's depot let it: PROBE takes any of the three."""
    kinds = (CapabilityKind.READ, CapabilityKind.WRITE)
    return next((kind for kind in kinds if store.table.find(kind, key)), CapabilityKind.MANAGE)


def _new_end(store: AllocationStore, request: ev.Change) -> float:
    version_0 = request.version == 0
    too_long = ErrorCode.LONG_DURATION if version_0 else ErrorCode.WOULD_EXCEED_POLICY
    return store.now() + store.rules.grant(request.duration, zero_is_permanent=version_0, too_long=too_long)


def _granted(store: AllocationStore, duration: int, version: int) -> float:
    return store.rules.grant(duration, zero_is_permanent=version == 0, too_long=ErrorCode.LONG_DURATION)


def _kept(request: ev.Allocate | ev.Split) -> ev.Checksum | None:
    """Digests are kept of byte arrays alone: those of a queue would be of bytes that are gone."""
    if request.checksum is not None and request.kind is not AllocationKind.BYTE_ARRAY:
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
    return request.checksum


def _within_32_bits(count: int) -> int:
    if count >= 2**32:
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    return count
