"""The index of all allocations in memory: by key, by lease end, and the sums that capacity is about.

It holds nothing that the files' headers do not; the store rebuilds it at every start.
"""

import heapq
import hmac
from collections.abc import Iterable, Iterator

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server.allocation import PERMANENT, Allocation, key_digest

_SLACK = 1000


class AllocationTable:
    """`allocated` and `stable_allocated` sum what may be stored, `stored` what is, in bytes."""

    def __init__(self) -> None:
        self._by_digest: dict[CapabilityKind, dict[bytes, Allocation]] = {kind: {} for kind in CapabilityKind}
        self._by_end: list[tuple[float, bytes, Allocation]] = []
        self._by_id: dict[bytes, Allocation] = {}
        self._aliases: dict[bytes, set[Allocation]] = {}
        self._volatile: set[Allocation] = set()
        self.allocated = 0
        self.stable_allocated = 0
        self.stored = 0

    def __len__(self) -> int:
        return len(self._by_digest[CapabilityKind.MANAGE])

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._by_digest[CapabilityKind.MANAGE].values())

    def find(self, kind: CapabilityKind, key: str) -> Allocation | None:
        """Looked up by digest and compared in constant time: timing tells nothing about other keys."""
        digest = key_digest(key)
        found = self._by_digest[kind].get(digest)
        if found is None or not hmac.compare_digest(_digest_of(found, kind), digest):
            return None
        return found

    def by_id(self, id_: bytes) -> Allocation | None:
        return self._by_id.get(id_)

    def aliases_of(self, allocation: Allocation) -> list[Allocation]:
        return list(self._aliases.get(allocation.id, ()))

    @property
    def volatile(self) -> Iterable[Allocation]:
        """Those that take room and may be revoked."""
        return self._volatile

    def add(self, allocation: Allocation) -> None:
        self.index_keys(allocation)
        self._by_id[allocation.id] = allocation
        if allocation.is_alias:
            self._aliases.setdefault(allocation.parent, set()).add(allocation)
        self._count(allocation, 1)
        self.note_lease(allocation)

    def index_keys(self, allocation: Allocation) -> None:
        for kind, index in self._by_digest.items():
            index[_digest_of(allocation, kind)] = allocation

    def forget_keys(self, allocation: Allocation) -> None:
        for kind, index in self._by_digest.items():
            del index[_digest_of(allocation, kind)]

    def remove(self, allocation: Allocation) -> None:
        self.forget_keys(allocation)
        del self._by_id[allocation.id]
        if allocation.is_alias and (siblings := self._aliases.get(allocation.parent)):
            siblings.discard(allocation)
            if not siblings:
                del self._aliases[allocation.parent]
        self._count(allocation, -1)
        allocation.gone = True
        self._volatile.discard(allocation)

    def recount(self, before: tuple[int, int, bool], allocation: Allocation) -> None:
        """After a change of size, maximum size or reliability; `before` is `measure()` from before it."""
        self._add_up(*before, -1)
        self._count(allocation, 1)

    @staticmethod
    def measure(allocation: Allocation) -> tuple[int, int, bool]:
        return allocation.size, allocation.charge, allocation.stable

    def note_lease(self, allocation: Allocation) -> None:
        """A lease began or became shorter. (A longer one needs no note: its old entry is found outdated.)"""
        if allocation.lease_end != PERMANENT:
            heapq.heappush(self._by_end, (allocation.lease_end, allocation.id, allocation))
        if len(self._by_end) > 2 * len(self) + _SLACK:  # outdated entries of leases that were shortened often
            self._by_end = [(a.lease_end, a.id, a) for a in self if a.lease_end != PERMANENT]
            heapq.heapify(self._by_end)

    def ended_before(self, time: float) -> list[Allocation]:
        """Allocations whose lease ended before `time`, each once; forgets them here."""
        ended: dict[bytes, Allocation] = {}
        while self._by_end and self._by_end[0][0] <= time:
            end, _, allocation = heapq.heappop(self._by_end)
            if allocation.gone:
                continue
            if allocation.lease_end <= time:
                ended[allocation.id] = allocation
            elif allocation.lease_end != end:
                self.note_lease(allocation)
        return list(ended.values())

    def _count(self, allocation: Allocation, sign: int) -> None:
        self._add_up(*self.measure(allocation), sign)
        if allocation.stable or allocation.is_alias:
            self._volatile.discard(allocation)
        else:
            self._volatile.add(allocation)

    def _add_up(self, size: int, charge: int, stable: bool, sign: int) -> None:
        self.stored += sign * size
        self.allocated += sign * charge
        if stable:
            self.stable_allocated += sign * charge


def _digest_of(allocation: Allocation, kind: CapabilityKind) -> bytes:
    if kind is CapabilityKind.READ:
        return allocation.read_digest
    return allocation.write_digest if kind is CapabilityKind.WRITE else allocation.manage_digest
