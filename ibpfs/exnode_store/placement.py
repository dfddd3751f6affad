"""Where replicas go, and how much fits. Pure: no clock, no database, no dice."""

from collections.abc import Sequence
from dataclasses import dataclass

OK, STUTTERING, FAILED = "ok", "stuttering", "failed"
_RANK = {OK: 0, STUTTERING: 1, FAILED: 2}


@dataclass(frozen=True)
class Candidate:
    """A depot as placement sees it; `busy` counts the segments that are open on it."""

    depot: int
    state: str
    free_bytes: int
    busy: int
    domain: tuple[str, ...] = ()  # its values of the labels that copies should differ in


def choose_depots(candidates: Sequence[Candidate], copies: int, size: int) -> list[int]:
    """Return up to `copies` depots for a new segment of `size` bytes, best first; fewer when fewer can take it.

    Healthy before stuttering, idle before busy, roomy before full; distinct failure domains first. A failed depot is
    never chosen.
    """
    usable = [one for one in candidates if one.state != FAILED and one.free_bytes >= size]
    usable.sort(key=lambda one: (_RANK[one.state], one.busy, -one.free_bytes, one.depot))
    spread: list[Candidate] = []
    again: list[Candidate] = []
    for one in usable:
        taken = one.domain and any(one.domain == other.domain for other in spread)
        (again if taken else spread).append(one)
    return [one.depot for one in (spread + again)[:copies]]


def order_replicas(replicas: Sequence[tuple[int, str, bool, float]]) -> list[int]:
    """Return replica ids in the order to try, of (id, depot state, suspect, latency in seconds)."""
    ranked = sorted(replicas, key=lambda one: (one[2], _RANK[one[1]], one[3], one[0]))
    return [replica for replica, _, _, _ in ranked]


def usable_bytes(free: Sequence[int], copies: int) -> int:
    """The largest x with sum over depots of min(free, x) >= copies * x: what can be stored `copies` times."""
    if len(free) < copies:
        return 0
    rooms = sorted((max(0, one) for one in free), reverse=True)
    # The k roomiest depots hold x each, the others give all they have: x = rest / (copies - k).
    for whole in range(copies):
        x = sum(rooms[whole:]) // (copies - whole)
        if rooms[whole] <= x:
            return x
    return rooms[copies - 1]
