"""What all sessions of a depot have in common, and the turns they take at one allocation."""

from dataclasses import InitVar, dataclass, field, replace
from weakref import WeakValueDictionary

import trio

from ibpfs.depot.server.access import Access
from ibpfs.depot.server.allocation import Allocation
from ibpfs.depot.server.counters import Counters
from ibpfs.depot.server.courier import Courier
from ibpfs.depot.server.door import Door
from ibpfs.depot.server.pace import InFlight
from ibpfs.depot.server.peer import Manners
from ibpfs.depot.server.resources import Resources
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.server.syncing import SyncThreads

#: Of a stream from the own mount, CPU time of the depot per MB: 1,800 us with 256 KiB, 1,540 with this or 1 MiB.
RECEIVE_BUFFER = 512 * 1024


class Gate:
    """Those who wait at one allocation. One writer at a time appends, one reader at a time takes from a queue."""

    def __init__(self) -> None:
        self.writing = trio.Lock()
        self.reading = trio.Lock()
        self._moved: trio.Event | None = None  # while somebody waits

    def tell(self) -> None:
        """Something came or went."""
        if self._moved is not None:
            self._moved.set()
            self._moved = None

    async def wait(self) -> None:
        if self._moved is None:
            self._moved = trio.Event()
        await self._moved.wait()


@dataclass(slots=True)
class Shared:
    """What follows from the settings changes with them, see `adopt`. `places`: HOST, PORT pairs under which this depot
    is reached. `buffer`: for bytes on their way from a socket to a file, never held while anything is waited for."""

    resources: Resources
    syncs: SyncThreads
    settings: InitVar[Settings]
    courier: Courier = field(default_factory=Courier)
    places: frozenset[tuple[str, int]] = frozenset()
    counters: Counters = field(default_factory=Counters)
    gates: "WeakValueDictionary[bytes, Gate]" = field(default_factory=WeakValueDictionary)
    latest: Gate | None = None  # kept for who appends again: 8 us of each STORE
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(RECEIVE_BUFFER)))
    door: Door = field(init=False)
    manners: Manners = field(init=False)
    progress_limit: float = field(init=False)
    longest_timeout: float = field(init=False)
    max_line: int = field(init=False)
    access: Access = field(init=False)
    password: str | None = field(init=False, repr=False)

    def __post_init__(self, settings: Settings) -> None:
        self.door = Door(settings.max_connections, settings.max_connections_per_address)
        self.manners = Manners(0, InFlight(settings.max_in_flight), self.counters.traffic)
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Connections that are open keep their least speed and longest line."""
        self.progress_limit = settings.idle_timeout
        self.longest_timeout = settings.longest_timeout
        self.max_line = settings.max_line
        self.access = settings.access
        self.password = settings.password
        self.door.limit, self.door.per_address = settings.max_connections, settings.max_connections_per_address
        self.manners.in_flight.limit = settings.max_in_flight
        self.manners = self.courier.manners = replace(self.manners, least=settings.min_rate)

    def gate(self, allocation: Allocation) -> Gate:
        self.latest = self.gates.get(allocation.id) or self.gates.setdefault(allocation.id, Gate())
        return self.latest

    def tell_deleted(self, allocation: Allocation) -> None:
        if (gate := self.gates.get(allocation.id)) is not None:
            gate.tell()
