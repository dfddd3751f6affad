"""Which volatile allocations must go when a stable one needs their room. A pure plan; knows no clock and no disk."""

from collections.abc import Iterable

from ibpfs.depot.server.allocation import Allocation


def plan_revocation(volatile: Iterable[Allocation], needed: int, now: float) -> list[Allocation] | None:
    """Largest product of age and size first, until `needed` bytes are free; None when all of them do not suffice."""
    chosen: list[Allocation] = []
    for allocation in sorted(volatile, key=lambda one: _weight(one, now), reverse=True):
        if needed <= 0:
            break
        chosen.append(allocation)
        needed -= allocation.charge
    return chosen if needed <= 0 else None


def _weight(allocation: Allocation, now: float) -> tuple[float, int]:
    # Of those born this instant, the largest goes.
    return max(0.0, now - allocation.created) * allocation.charge, allocation.charge
