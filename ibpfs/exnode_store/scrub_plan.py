"""Which replica is verified next in the background, and when. Pure: no clock, no database, no dice."""

from collections.abc import Sequence
from dataclasses import dataclass

DAY = 86400.0
#: Seconds within which every replica is verified once, unless the volume says otherwise.
DEFAULT_PERIOD = 30 * DAY
#: What one depot's link is used for this at most, in bytes per second.
FASTEST = 4 * 1024 * 1024
#: What is overdue is made up within this part of the period.
_MAKE_UP = 0.1
#: A replica is looked at again no earlier than after this part of the period; after a smaller one where few others are.
_REST, _REST_ENDANGERED = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Unverified:
    """A replica, when it was verified last or made, and how many sound ones its segment lacks."""

    replica: int
    length: int
    since: float
    missing: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Stored bytes of all replicas, and of those whose time is over."""

    total: int
    overdue: int


def in_order(found: Sequence[Unverified], now: float, period: float) -> list[Unverified]:
    """What is worth a look, in the order of looks: the most endangered first, then the longest unverified."""
    due = [one for one in found if now - one.since >= period * (_REST_ENDANGERED if one.missing > 0 else _REST)]
    return sorted(due, key=lambda one: (-one.missing, one.since, one.replica))


def pace(extent: Extent, period: float) -> float:
    """Bytes per second: all once in a period, and what is overdue much sooner, but never more than FASTEST."""
    return min(FASTEST, max(1.0, extent.total / period, extent.overdue / (period * _MAKE_UP)))


def start_of(one: Unverified, last: float, rate: float) -> float:
    """When to look at it, if the look before was (or would have been) at `last`."""
    return last + one.length / rate
