"""What is made out of an allocation: new keys, parts, aliases. Knows no connection and no disk."""

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server.allocation import PERMANENT, Allocation
from ibpfs.depot.server.leases import seconds_left
from ibpfs.depot.server.store import AllocationStore, NewKeys
from ibpfs.depot.server.syncing import Unsynced
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.errors import CapabilityNotFound, ErrorCode, error_for
from ibpfs.depot.wire.protocol import AllocationKind


def managed(store: AllocationStore, key: str, *, even_ended: bool = False) -> Allocation:
    """No alias."""
    found = store.find(CapabilityKind.MANAGE, key, even_ended=even_ended)
    if found.is_alias:
        raise error_for(ErrorCode.INVALID_CMD)
    return found


def split(store: AllocationStore, request: ev.Split, duration: float, unsynced: Unsynced) -> NewKeys:
    """The new one first: a crash in between leaves one that ends by itself, and no data are cut for nothing."""
    master = managed(store, request.key.key)
    if master.kind is not AllocationKind.BYTE_ARRAY:
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
    if request.size >= master.max_size:
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    keys = store.new_keys()
    child = store.born(keys, request.reliability, duration, counted=request.version == 0)
    child.kind, child.max_size, child.checksum = request.kind, request.size, request.checksum
    left = master.charge_for(master.max_size - request.size)
    if (more := left + child.charge - master.charge) > 0:
        store.require_room(more, stable=child.stable)
    store.add(child, unsynced)
    store.resize(master, master.max_size - request.size, unsynced)
    return keys


def merge(store: AllocationStore, request: ev.Merge, unsynced: Unsynced) -> None:
    master, child = managed(store, request.key.key), managed(store, request.child.key)
    if child is master:
        raise error_for(ErrorCode.INVALID_PARAMETER)
    if master.kind.is_queue or child.kind.is_queue:
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
    if child.read_count != 1 or child.write_count > 1:  # somebody else counts on it
        raise error_for(ErrorCode.WOULD_DAMAGE_DATA)
    store.update(master, unsynced, max_size=master.max_size + child.max_size)
    store.delete(child, unsynced)


def make_alias(store: AllocationStore, request: ev.AliasAllocate, unsynced: Unsynced) -> NewKeys:
    parent = managed(store, request.key.key)
    _require_window(parent, request.offset, request.length)
    keys = store.new_keys()
    duration = request.duration if request.duration > 0 else PERMANENT
    alias = store.born(keys, parent.reliability, duration, counted=request.version == 0)
    alias.parent, alias.window = parent.id, (request.offset, request.length)
    store.require_room(alias.charge, stable=alias.stable)
    if parent.gone:  # volatile, and its room was needed
        raise error_for(ErrorCode.CAP_NOT_FOUND)
    store.add(alias, unsynced)
    return keys


def find_alias(store: AllocationStore, key: str) -> tuple[Allocation, Allocation]:
    """It and its parent."""
    alias = store.find(CapabilityKind.MANAGE, key)
    parent = store.table.by_id(alias.parent) if alias.is_alias else None
    if parent is None:
        raise error_for(ErrorCode.INVALID_CMD)
    return alias, parent


def revocable(
    store: AllocationStore, request: ev.AliasIncrement | ev.AliasDecrement | ev.AliasChange
) -> tuple[Allocation, Allocation]:
    """An alias and its parent, if the request names the parent's manage key."""
    alias, parent = find_alias(store, request.key.key)
    try:
        named = store.find(CapabilityKind.MANAGE, request.parent.key)
    except CapabilityNotFound:
        named = alias
    if named is not parent:
        raise error_for(ErrorCode.INVALID_MANAGE_CAP)
    return alias, parent


def change_alias(store: AllocationStore, request: ev.AliasChange, unsynced: Unsynced) -> None:
    alias, parent = revocable(store, request)
    _require_window(parent, request.offset, request.length)
    lease_end = store.lease_end(request.duration if request.duration > 0 else PERMANENT)
    store.update(alias, unsynced, window=(request.offset, request.length), lease_end=lease_end)


def probe_alias(store: AllocationStore, request: ev.AliasProbe) -> ev.AliasProbed:
    alias, parent = find_alias(store, request.key.key)
    return ev.AliasProbed(
        alias.read_count, alias.write_count, *alias.window, alias_seconds_left(store, alias, parent)
    )


def alias_seconds_left(store: AllocationStore, alias: Allocation, parent: Allocation) -> int:
    return seconds_left(min(alias.lease_end, parent.lease_end), store.now())


def probe_as_allocation(store: AllocationStore, alias: Allocation) -> ev.Probed:
    """Ordinary PROBE of an alias: its window."""
    parent = store.table.by_id(alias.parent)
    assert parent is not None
    length = alias.window[1]
    size, max_size = (length, length) if length else (parent.size, parent.max_size)
    left = alias_seconds_left(store, alias, parent)
    return ev.Probed(alias.read_count, alias.write_count, size, max_size, left, parent.reliability, parent.kind)


def _require_window(parent: Allocation, offset: int, length: int) -> None:
    if offset + length > parent.max_size:
        raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    if parent.kind.is_queue and (offset or length):
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
