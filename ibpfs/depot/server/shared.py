"""What all sessions of a depot have in common, and the turns they take at one allocation."""

from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import trio

from ibpfs.depot.server.access import Access
from ibpfs.depot.server.allocation import Allocation
from ibpfs.depot.server.courier import Courier
from ibpfs.depot.server.resources import Resources
from ibpfs.depot.server.syncing import SyncThreads


class Gate:
    """Those who wait at one allocation. One writer at a time appends, one reader at a time takes from a queue."""

    def __init__(self) -> None:
        self.writing = trio.Lock()
        self.reading = trio.Lock()
        self._moved = trio.Event()

    def tell(self) -> None:
        """Something came or went."""
        self._moved.set()
        self._moved = trio.Event()

    async def wait(self) -> None:
        await self._moved.wait()


@dataclass(slots=True)
class Shared:
    """`progress_limit`: seconds, where a command names none. `password`: of STATUS CHANGE, None refuses it.
    `places`: HOST, PORT pairs under which this depot is reached."""

    resources: Resources
    syncs: SyncThreads
    progress_limit: float
    access: Access = field(default_factory=Access)
    courier: Courier = field(default_factory=Courier)
    password: str | None = None
    places: frozenset[tuple[str, int]] = frozenset()
    gates: "WeakValueDictionary[bytes, Gate]" = field(default_factory=WeakValueDictionary)

    def gate(self, allocation: Allocation) -> Gate:
        return self.gates.setdefault(allocation.id, Gate())

    def tell_deleted(self, allocation: Allocation) -> None:
        if (gate := self.gates.get(allocation.id)) is not None:
            gate.tell()
