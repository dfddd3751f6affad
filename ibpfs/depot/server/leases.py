"""How long a depot leases, and which numbers it answers to durations it does not grant. Knows no clock."""

from dataclasses import dataclass

from ibpfs.depot.server.allocation import PERMANENT
from ibpfs.depot.wire.errors import ErrorCode, error_for
from ibpfs.depot.wire.protocol import PERMANENT_SECONDS

AS_LONG_AS_POSSIBLE = -1


@dataclass(frozen=True, slots=True)
class LeaseRules:
    """`max_lease` in seconds, None for no limit; `permanent`: may a lease have no end at all."""

    max_lease: int | None
    permanent: bool

    @property
    def longest(self) -> int:
        """As STATUS reports it: -1 when leases may be permanent."""
        return -1 if self.permanent else self._limit

    @property
    def _limit(self) -> int:
        return PERMANENT_SECONDS if self.max_lease is None else min(self.max_lease, PERMANENT_SECONDS)

    def grant(self, duration: int, *, zero_is_permanent: bool, too_long: ErrorCode) -> float:
        """Seconds from now, or `PERMANENT`. Version 0 of the protocol asks for permanence with 0, version 1 with -1."""
        if duration == 0 and zero_is_permanent:
            if not self.permanent:
                raise error_for(ErrorCode.LONG_DURATION)
            return PERMANENT
        if duration == AS_LONG_AS_POSSIBLE:
            return PERMANENT if self.permanent else self._limit
        if duration <= 0:
            raise error_for(ErrorCode.INVALID_PARAMETER)
        if duration > self._limit:
            raise error_for(too_long)
        return duration


def seconds_left(lease_end: float, now: float) -> int:
    """As PROBE reports it."""
    return PERMANENT_SECONDS if lease_end == PERMANENT else max(0, int(lease_end - now))
