"""Where replicas go, and how much fits. Pure: no clock, no database, no dice."""

from collections import Counter
from collections.abc import Iterable, Sequence
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
    domain: frozenset[str] = frozenset()  # its "label=value" of the labels that copies should differ in


def choose_depots(
    candidates: Sequence[Candidate], copies: int, size: int, taken: Iterable[frozenset[str]] = ()
) -> list[int]:
    """Return up to `copies` depots for a new segment of `size` bytes, best first; fewer when fewer can take it.

    Failure domains that hold the fewest copies first, those in `taken` counted (a depot without a label shares it with
    none); of those healthy before stuttering, idle before busy, roomy before full. A failed depot is never chosen.
    """
    usable = [one for one in candidates if one.state != FAILED and one.free_bytes >= size]
    held = Counter(value for domain in taken for value in domain)
    chosen: list[int] = []
    while usable and len(chosen) < copies:
        best = min(usable, key=lambda one: (_shared(one.domain, held), *_worth(one)))
        usable.remove(best)
        chosen.append(best.depot)
        held.update(best.domain)
    return chosen


def _shared(domain: frozenset[str], held: Counter[str]) -> int:
    return sum(held[value] for value in domain)


def _worth(one: Candidate) -> tuple[int, int, int, int]:
    return _RANK[one.state], one.busy, -one.free_bytes, one.depot


def choose_surplus(held: Sequence[tuple[int, bool, frozenset[str]]], copies: int) -> list[int]:
    """Return the replicas, of (id, on a depot that stays and answers, domain), that `copies` can do without.

    Those on depots that are leaving or away go first, then those whose failure domain another one shares. None goes as
    long as fewer than `copies` are on depots that stay.
    """
    kept = list(held)
    dropped: list[int] = []
    if sum(here for _, here, _ in held) < copies:
        return dropped
    while len(kept) > copies:
        values = Counter(value for _, _, domain in kept for value in domain)
        worst = max(kept, key=lambda one: (not one[1], _shared(one[2], values) - len(one[2]), one[0]))
        kept.remove(worst)
        dropped.append(worst[0])
    return dropped


def fullest_domain(domains: Iterable[frozenset[str]]) -> int:
    """How many of these are lost at most with one failure domain; of those without a label, one."""
    return max([1, *Counter(value for domain in domains for value in domain).values()])


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
