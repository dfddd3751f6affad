"""Placement decides without looking at the world: each rule by itself, and capacity against a search."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.placement import (
    FAILED,
    OK,
    STUTTERING,
    Candidate,
    choose_depots,
    choose_surplus,
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
        Candidate(1, OK, 3 * GIB, 0, frozenset({"site=knoxville"})),
        Candidate(2, OK, 2 * GIB, 0, frozenset({"site=knoxville"})),
        Candidate(3, OK, GIB, 0, frozenset({"site=prague"})),
    ]
    assert choose_depots(depots, 2, 100) == [1, 3]
    assert choose_depots(depots, 3, 100) == [1, 3, 2]
    assert choose_depots(depots, 1, 100, [frozenset({"site=knoxville"})]) == [3]


candidates = st.lists(
    st.builds(
        Candidate,
        st.just(0),
        st.sampled_from([OK, STUTTERING, FAILED]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from([frozenset(), *(frozenset({f"site={name}"}) for name in "abc")]),
    ),
    max_size=8,
).map(lambda found: [Candidate(at, one.state, one.free_bytes, one.busy, one.domain) for at, one in enumerate(found)])


@given(candidates, st.integers(1, 5), st.lists(st.sampled_from("abc"), max_size=3))
def test_no_domain_has_a_further_copy_while_another_has_fewer(
    depots: list[Candidate], copies: int, held: list[str]
) -> None:
    taken = [frozenset({f"site={name}"}) for name in held]
    usable = [one for one in depots if one.state != FAILED and one.free_bytes >= 1]
    chosen = choose_depots(depots, copies, 1, taken)
    assert len(chosen) == len(set(chosen)) == min(copies, len(usable))
    assert set(chosen) <= {one.depot for one in usable}
    by_depot = {one.depot: one for one in depots}
    counted = Counter(value for domain in taken for value in domain)
    counted.update(value for number in chosen for value in by_depot[number].domain)
    before = Counter(value for domain in taken for value in domain)
    for one in usable:
        if one.depot in chosen:
            continue
        mine = sum(counted[value] for value in one.domain)  # had it been taken, there would be one more
        for number in chosen:
            others = by_depot[number].domain
            added = any(counted[value] > before[value] for value in others)
            assert not added or mine + 1 >= max(counted[value] for value in others)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=7),
    st.integers(1, 4),
)
def test_copies_that_are_too_many_go_and_domains_stay(found: list[tuple[bool, str]], copies: int) -> None:
    held = [(at, here, frozenset({f"site={name}"})) for at, (here, name) in enumerate(found)]
    kept = [one for one in held if one[0] not in choose_surplus(held, copies)]
    staying = [one for one in held if one[1]]
    if len(staying) < copies:
        assert kept == held
        return
    assert len(kept) == copies
    assert all(here for _, here, _ in kept)
    domains = {domain for _, _, domain in staying}
    assert len({domain for _, _, domain in kept}) == min(copies, len(domains))


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
