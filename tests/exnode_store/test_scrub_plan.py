"""Which replica is verified next, and how fast."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.scrub_plan import DAY, FASTEST, Extent, Unverified, in_order, pace, start_of

PERIOD = 30 * DAY
FOUND = st.builds(
    Unverified, st.integers(1, 99), st.integers(1, 1 << 24), st.floats(0, 60 * DAY), st.integers(-1, 3)
)  # fmt: skip


def test_the_most_endangered_first_then_the_longest_unverified() -> None:
    found = [Unverified(1, 1, 5.0, 0), Unverified(2, 1, 3.0, 0), Unverified(3, 1, 9.0, 2), Unverified(4, 1, 1.0, 1)]
    assert [one.replica for one in in_order(found, 100 * DAY, PERIOD)] == [3, 4, 2, 1]


@given(st.lists(FOUND), st.floats(0, 90 * DAY))
def test_nothing_is_looked_at_again_soon_and_nothing_overdue_is_left_out(found: list[Unverified], now: float) -> None:
    order = in_order(found, now, PERIOD)
    assert all(now - one.since >= PERIOD / 20 for one in order)
    assert all(one in order for one in found if now - one.since >= PERIOD)
    endangered = [one.missing > 0 for one in order]
    assert endangered == sorted(endangered, reverse=True)


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50), st.floats(1, 365 * DAY))
def test_all_of_it_within_the_period_unless_that_would_be_too_fast(total: int, overdue: int, period: float) -> None:
    rate = pace(Extent(total + overdue, overdue), period)
    assert 1 <= rate <= FASTEST
    assert rate == FASTEST or rate * period >= (total + overdue) * 0.999
    assert rate == FASTEST or rate * period / 10 >= overdue * 0.999


@given(st.lists(st.integers(1, 1 << 24), min_size=1, max_size=50))
def test_looks_at_everything_take_a_period(lengths: list[int]) -> None:
    rate, at = pace(Extent(sum(lengths), 0), PERIOD), 0.0
    for length in lengths:
        at = start_of(Unverified(1, length, 0.0, 0), at, rate)
    assert at <= PERIOD * 1.001
