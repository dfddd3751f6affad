"""How much one address may ask for, and all for one link. Pure; the caller brings the time."""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from ibpfs.depot.server.access import household, plain_ip

_MOST_ADDRESSES = 10_000


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
class _Asker:
    tokens: float
    seen: float
    loads: int = 0


class Gate:
    """Lets requests in, or says in how many seconds to come again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._askers: OrderedDict[str, _Asker] = OrderedDict()
        self._links: Counter[str] = Counter()
        self._loads = 0
        self._bytes = 0

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
        if asker.loads >= self._limits.loads_per_address or self._links[locator] >= self._limits.loads_per_link:
            return False
        if self._loads >= self._limits.loads or self._bytes + size > self._limits.bytes:
            return False
        asker.loads += 1
        self._links[locator] += 1
        self._loads += 1
        self._bytes += size
        return True

    def more(self, size: int) -> bool:
        """Whether so many bytes more may be held for a load that runs; they are part of its size then."""
        if self._bytes + size > self._limits.bytes:
            return False
        self._bytes += size
        return True

    def end_load(self, address: str, locator: str, size: int = 0) -> None:
        self._loads -= 1
        self._bytes -= size
        self._links[locator] -= 1
        if not self._links[locator]:
            del self._links[locator]
        asker = self._askers.get(network_of(address))
        if asker is not None:
            asker.loads -= 1

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
            if asker.loads:
                self._askers[network] = asker


def network_of(address: str) -> str:
    """What an address is counted as; what is none is counted by itself."""
    try:
        return str(household(plain_ip(address)))
    except ValueError:
        return address
