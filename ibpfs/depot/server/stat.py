"""A depot in numbers, as its operator asks for them."""

from typing import Any

import trio

from ibpfs import __version__
from ibpfs.depot.server.counters import Counters, Durations
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.resources import Resources
from ibpfs.depot.server.store import AllocationStore


def of_store(store: AllocationStore) -> dict[str, Any]:
    table = store.table
    return {
        "resource": store.rid,
        "directory": str(store.root.parent),
        "capacity_bytes": store.capacity,
        "allocated_bytes": table.allocated,
        "volatile_bytes": table.allocated - table.stable_allocated,
        "stored_bytes": table.stored,
        "free_bytes": store.free(),
        "allocations": len(table),
        "allocated": store.allocated_ever,
        "leases_ended": store.ended,
        "revocations": store.revoked,
    }


def of_leases(rules: LeaseRules) -> dict[str, Any]:
    """Seconds; null = no limit."""
    return {"max_lease": rules.max_lease, "permanent": rules.permanent}


def of_process(counters: Counters, syncs: Durations) -> dict[str, Any]:
    return {
        "connections": counters.connections,
        "accepted": counters.accepted,
        "refused": dict(counters.refused),
        "dismissed": dict(counters.dismissed),
        "failed_sessions": counters.failed_sessions,
        "commands": _nested(counters),
        "received_bytes": counters.traffic.received,
        "sent_bytes": counters.traffic.sent,
        "syncs": syncs.count,
        "sync_seconds": round(syncs.total, 6),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
    }


def _nested(counters: Counters) -> dict[str, dict[str, int]]:
    by_name: dict[str, dict[str, int]] = {}
    for (name, result), count in sorted(counters.commands.items()):
        by_name.setdefault(name, {})[result] = count
    return by_name


def standing(resources: Resources) -> dict[str, Any]:
    """Of a depot that does not run."""
    first = resources.first
    return {
        "version": __version__,
        "running": False,
        **of_leases(first.rules),
        "resources": [of_store(store) for store in resources],
    }


def running(resources: Resources, counters: Counters, syncs: Durations) -> dict[str, Any]:
    return standing(resources) | {"running": True} | of_process(counters, syncs)
