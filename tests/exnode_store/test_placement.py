"""Placement decides without looking at the world: each rule by itself, and capacity against a search."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.placement import (
    FAILED,
    OK,
    STUTTERING,
    Candidate,
    choose_depots,
    order_replicas,
    usable_bytes,
)

GIB = 1 << 30


def test_healthy_idle_and_roomy_depots_come_first() -> None:
    depots = [
        Candidate(1, STUTTERING, 9 * GIB, 0),
        Candidate(2, OK, GIB, 1),
        Candidate(3, OK, GIB, 0),
        Candidate(4, OK, 2 * GIB, 0),
    ]
    assert choose_depots(depots, 4, 100) == [4, 3, 2, 1]


def test_failed_and_full_depots_are_never_chosen() -> None:
    assert choose_depots([Candidate(1, FAILED, GIB, 0), Candidate(2, OK, 99, 0)], 2, 100) == []


def test_copies_go_to_distinct_domains_when_there_are_enough() -> None:
    depots = [
        Candidate(1, OK, 3 * GIB, 0, ("knoxville",)),
        Candidate(2, OK, 2 * GIB, 0, ("knoxville",)),
        Candidate(3, OK, GIB, 0, ("prague",)),
    ]
    assert choose_depots(depots, 2, 100) == [1, 3]
    assert choose_depots(depots, 3, 100) == [1, 3, 2]


def test_replicas_are_tried_sound_ones_first_then_by_health_and_speed() -> None:
    replicas = [(1, OK, True, 0.0), (2, STUTTERING, False, 0.0), (3, OK, False, 0.2), (4, OK, False, 0.1)]
    assert order_replicas(replicas) == [4, 3, 2, 1]


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 4))
def test_usable_bytes_is_the_largest_that_fits(free: list[int], copies: int) -> None:
    def fits(x: int) -> bool:
        return sum(min(one, x) for one in free) >= copies * x

    x = usable_bytes(free, copies)
    assert fits(x)
    if len(free) >= copies:
        assert not any(fits(more) for more in range(x + 1, sum(free) + 2))
