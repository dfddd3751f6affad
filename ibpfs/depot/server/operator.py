"""What the operator of a depot may ask and do, in a running depot or in one that stands still.

A running depot listens on a socket in its store, for its own user alone: a line of JSON in, a line of JSON out.
"""

import json
import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from ibpfs.depot.server import stat
from ibpfs.depot.server.allocation import PERMANENT, Allocation
from ibpfs.depot.server.counters import Counters
from ibpfs.depot.server.resources import Resources
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.syncing import SyncThreads, Unsynced
from ibpfs.errors import IbpfsError

log = logging.getLogger(__name__)

SOCKET = "operator.sock"
_SHORTEST_NAME = 8
_MAX_LINE = 64 * 1024
_PATIENCE = 20.0


class NotUndeleted(IbpfsError):
    """No such ended allocation, or more than one."""


def ended(resources: Resources) -> list[dict[str, Any]]:
    """Allocations in their grace time, the latest first."""
    found = [_described(store, one) for store, one in _ended(resources)]
    return sorted(found, key=lambda one: float(one["ended"]), reverse=True)


def _described(store: AllocationStore, allocation: Allocation) -> dict[str, Any]:
    return {
        "name": allocation.manage_digest.hex()[:16],
        "resource": store.rid,
        "size": allocation.size,
        "max_size": allocation.max_size,
        "reliability": allocation.reliability.name.lower(),
        "ended": allocation.lease_end,
        "gone": allocation.lease_end + store.grace,
    }


def _ended(resources: Resources) -> Iterator[tuple[AllocationStore, Allocation]]:
    for store in resources:
        for allocation in store.table:
            if allocation.ended(store.now()) and not allocation.is_alias:
                yield store, allocation


def undelete(resources: Resources, name: str, seconds: float | None, unsynced: Unsynced) -> dict[str, Any]:
    """Leases what is called `name` again, for `seconds` from now, None = without an end."""
    if len(name) < _SHORTEST_NAME:
        raise NotUndeleted(f"{name}: give at least {_SHORTEST_NAME} digits of the name")
    found = [(store, one) for store, one in _ended(resources) if one.manage_digest.hex().startswith(name.lower())]
    if len(found) != 1:
        number = "more than one" if found else "no"
        raise NotUndeleted(f"{name}: {number} ended allocation of that name")
    store, allocation = found[0]
    lease_end = PERMANENT if seconds is None else store.now() + seconds
    store.update(allocation, unsynced, lease_end=lease_end)
    log.info("allocation=%s brought back by the operator", allocation.label)
    return _described(store, allocation)


def answer(resources: Resources, request: dict[str, Any], unsynced: Unsynced) -> dict[str, Any]:
    """`{"do": "stat"}`, `{"do": "ended"}` or `{"do": "undelete", "name": ..., "seconds": ...}`."""
    try:
        if request.get("do") == "stat":
            return {"stat": stat.standing(resources)}
        if request.get("do") == "ended":
            return {"ended": ended(resources)}
        if request.get("do") == "undelete":
            lease = _lease(request.get("seconds"))
            return {"undeleted": undelete(resources, str(request.get("name")), lease, unsynced)}
    except (IbpfsError, ValueError) as error:
        return {"error": str(error)}
    return {"error": "not understood"}


def _lease(seconds: object) -> float | None:
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError("seconds: a number above 0, or null")
    return float(seconds)


async def serve(resources: Resources, syncs: SyncThreads, listener: socket.socket, counters: Counters) -> None:
    """One question a connection, until cancelled."""
    sock = trio.socket.from_stdlib_socket(listener)
    while True:
        accepted, _ = await sock.accept()
        with accepted, trio.move_on_after(_PATIENCE):
            try:
                await _serve_one(resources, syncs, accepted, counters)
            except OSError as error:
                log.warning("an operator's question failed: %s", error)


async def _serve_one(
    resources: Resources, syncs: SyncThreads, sock: trio.socket.SocketType, counters: Counters
) -> None:
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE:
        piece = await sock.recv(_MAX_LINE)
        if not piece:
            return
        line += piece
    unsynced = Unsynced()
    try:
        request = json.loads(line)
        said = answer(resources, request if isinstance(request, dict) else {}, unsynced)
        if "stat" in said:
            said["stat"] = stat.running(resources, counters, syncs.durations)
    except (ValueError, RecursionError):
        said = {"error": "not understood"}
    if unsynced:
        await syncs.settle(unsynced)
    data = memoryview(json.dumps(said).encode() + b"\n")
    while data:
        data = data[await sock.send(data) :]


def ask(store: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Asks the depot that runs on `store`."""
    directory = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(f"/proc/self/fd/{directory}/{SOCKET}")  # however long the path is
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                said: dict[str, Any] = json.loads(lines.readline() or b"{}")
                return said
    finally:
        os.close(directory)
