"""How much one address may ask for, and all for one link. Pure; the caller brings the time."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ibpfs.depot.server.access import household, plain_ip

_MOST_ADDRESSES = 10_000
#: So many times what is free an address, or a link, may have and get more. So the more of them want much, the less each
#: gets, and something is left for who has nothing yet.
_FAIR = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """`rate`: requests per second of one address in the long run, `burst` at once; loads, and the bytes that are held
    for them, are counted until they are with who asked."""

    rate: float = 100.0
    burst: float = 400.0
    loads_per_address: int = 16
    loads_per_link: int = 64  # whatever a crowd, or somebody with many addresses, wants of one, others get theirs
    loads: int = 256
    bytes: int = 512 * 1024 * 1024


@dataclass(slots=True)
class _Running:
    """Loads, and the bytes that are held for them."""

    loads: int = 0
    bytes: int = 0

    def add(self, loads: int, size: int) -> None:
        self.loads += loads
        self.bytes += size


@dataclass(slots=True)
class _Asker:
    tokens: float
    seen: float
    running: _Running = field(default_factory=_Running)


class Gate:
    """Lets requests in, or says in how many seconds to come again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._askers: OrderedDict[str, _Asker] = OrderedDict()
        self._links: dict[str, _Running] = {}
        self._all = _Running()

    def wait(self, address: str, now: float) -> float:
        """Seconds until one more request of `address` is welcome; 0: it is let in and counted."""
        asker = self._asker(network_of(address), now)
        if asker.tokens < 1:
            return (1 - asker.tokens) / self._limits.rate
        asker.tokens -= 1
        return 0.0

    def begin_load(self, address: str, locator: str, now: float, size: int = 0) -> bool:
        """Whether one more, of so many bytes, may run now; then `end_load` has to follow."""
        asker = self._asker(network_of(address), now)
        if self.has_all(address, locator) or self._all.loads >= self._limits.loads:
            return False
        both = asker.running, self._links.get(locator, _Running())
        if max(one.loads for one in both) >= _FAIR * (self._limits.loads - self._all.loads):
            return False
        if not self._has_room(both, size):
            return False
        for one in (asker.running, self._links.setdefault(locator, _Running()), self._all):
            one.add(1, size)
        return True

    def has_all(self, address: str, locator: str) -> bool:
        """Whether the address, or the link, has as much as it may have, however little others want."""
        asker, link = self._askers.get(network_of(address)), self._links.get(locator)
        if asker is not None and asker.running.loads >= self._limits.loads_per_address:
            return True
        return link is not None and link.loads >= self._limits.loads_per_link

    def _has_room(self, both: Sequence[_Running], size: int) -> bool:
        left = self._limits.bytes - self._all.bytes - size
        return left >= 0 and max(one.bytes for one in both) <= _FAIR * left

    def more(self, address: str, locator: str, size: int) -> bool:
        """Whether so many bytes more may be held for a load that runs; they are part of its size then."""
        both = self._askers[network_of(address)].running, self._links[locator]
        if not self._has_room(both, size):
            return False
        for one in (*both, self._all):
            one.add(0, size)
        return True

    def end_load(self, address: str, locator: str, size: int = 0) -> None:
        for one in (self._askers[network_of(address)].running, self._links[locator], self._all):
            one.add(-1, -size)
        if not self._links[locator].loads:
            del self._links[locator]

    def _asker(self, network: str, now: float) -> _Asker:
        asker = self._askers.get(network)
        if asker is None:
            asker = self._askers[network] = _Asker(self._limits.burst, now)
            self._forget_some()
        self._askers.move_to_end(network)
        asker.tokens = min(self._limits.burst, asker.tokens + (now - asker.seen) * self._limits.rate)
        asker.seen = now
        return asker

    def _forget_some(self) -> None:
        """At most two, so that each request costs the same; the few that are loading stay."""
        for _ in range(2):
            if len(self._askers) <= _MOST_ADDRESSES:
                return
            network, asker = self._askers.popitem(last=False)
            if asker.running.loads:
                self._askers[network] = asker


def network_of(address: str) -> str:
    """What an address is counted as; what is none is counted by itself."""
    try:
        return str(household(plain_ip(address)))
    except ValueError:
        return address
