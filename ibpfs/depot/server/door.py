"""Who is let in: connections in all and per address, and who goes when the house is full. Knows no socket."""

from collections import Counter, OrderedDict
from typing import Protocol

import trio

from ibpfs.depot.server.access import Ip, household

SHORTEST_IDLE = 1.0  # seconds; who has just said something is not sent away


class Guest(Protocol):
    def dismiss(self) -> None:
        """Its place is needed for somebody else."""

    def __hash__(self) -> int: ...


class Door:
    """`limit` in all, `per_address` None = `DEFAULT_PER_ADDRESS`, but any number for this machine itself.

    An IPv6 address counts for its network of 64 bits. Whoever uses the Unix socket (origin None) is always let in.
    """

    DEFAULT_PER_ADDRESS = 256

    def __init__(self, limit: int, per_address: int | None) -> None:
        self.limit = limit
        self.per_address = per_address
        self._inside: Counter[Ip] = Counter()
        self._connections = 0
        self._idle: OrderedDict[Guest, float] = OrderedDict()

    def refusal(self, origin: Ip | None) -> str | None:
        """Why one more connection from there is too many, or None."""
        if origin is None:
            return None
        limit = self._limit_for(origin)
        if limit is not None and self._inside[household(origin)] >= limit:
            return "address"
        if self._connections >= self.limit and not self._make_room():
            return "all"
        return None

    def _limit_for(self, origin: Ip) -> int | None:
        if self.per_address is not None:
            return self.per_address
        return None if origin.is_loopback else self.DEFAULT_PER_ADDRESS

    def _make_room(self) -> bool:
        """Sends the one away that has been idle longest."""
        if not self._idle:
            return False
        guest, since = next(iter(self._idle.items()))
        if trio.current_time() - since < SHORTEST_IDLE:
            return False
        del self._idle[guest]
        guest.dismiss()
        return True

    def enter(self, origin: Ip | None) -> None:
        if origin is not None:
            self._inside[household(origin)] += 1
            self._connections += 1

    def leave(self, origin: Ip | None) -> None:
        if origin is not None:
            self._connections -= 1
            home = household(origin)
            self._inside[home] -= 1
            if not self._inside[home]:
                del self._inside[home]

    def rests(self, guest: Guest) -> None:
        """It is between two commands: its place may be needed."""
        self._idle[guest] = trio.current_time()

    def rises(self, guest: Guest) -> None:
        self._idle.pop(guest, None)
