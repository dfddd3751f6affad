"""What is slow, and how often a read may be asked for twice: pure functions of records."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.pace import HedgeBudget, Sample, expected, is_slow, recent_pace

MIB = 1024 * 1024


def record(seconds: float, length: int = MIB, count: int = 10, ended: float = 100.0) -> list[Sample]:
    """Commands one after the other, the last of which ended then."""
    return [Sample(ended - seconds * (count - at), seconds, length) for at in range(count)]


def test_a_tenth_of_the_speed_of_the_others_is_slow() -> None:
    fast = recent_pace(record(0.1), 100.0)
    assert is_slow(record(1.0), [], [fast, fast, fast], 100.0)
    assert not is_slow(record(0.2), [], [fast, fast, fast], 100.0)


def test_small_commands_and_large_ones_are_one_record() -> None:
    small, large = recent_pace(record(0.010, 4096), 100.0), recent_pace(record(0.085, MIB), 100.0)
    assert small is not None
    assert large is not None
    assert abs(small / large - 1) < 0.1


def test_what_is_not_answered_yet_counts_as_it_stands() -> None:
    fast = recent_pace(record(0.1), 100.0)
    assert is_slow(record(0.1), [Sample(97.0, 3.0, MIB)], [fast], 100.0)
    assert is_slow([], [Sample(97.0, 3.0, MIB)], [fast], 100.0)
    assert not is_slow([], [Sample(99.1, 0.9, MIB)], [fast], 100.0)


def test_what_is_usual_for_all_is_not_slow_but_what_is_new_for_one_is() -> None:
    slow = recent_pace(record(5.0), 100.0)
    assert not is_slow(record(5.0, count=8), [], [slow, slow], 100.0)
    before = record(0.1, count=20, ended=60.0)
    assert not is_slow([*before, *record(1.5, count=1)], [], [], 100.0)
    assert is_slow([*before, *record(3.0, count=8)], [], [], 100.0)
    assert not is_slow([*before, *record(0.2, count=8)], [], [], 100.0)


def test_a_slow_one_gets_another_chance_and_a_hiccup_is_none() -> None:
    fast = recent_pace(record(0.1, ended=200.0), 200.0)
    assert not is_slow(record(5.0, ended=100.0), [], [fast], 200.0)
    assert not is_slow([Sample(199.2, 0.8, 4096)], [], [0.0001], 200.0)
    assert not is_slow(record(0.01, count=60), [], [0.00001], 100.0)  # 100 MiB/s: never slow


@given(st.lists(st.floats(0, 30), min_size=1, max_size=64), st.lists(st.floats(0, 30), max_size=8))
def test_slow_is_never_faster_than_all_that_it_is_compared_with(mine: list[float], peers: list[float]) -> None:
    samples = [Sample(100.0, seconds, MIB) for seconds in mine]
    if is_slow(samples, [], peers, 100.0):
        paces = [sample.pace for sample in samples]
        assert max(paces) > min([*peers, *paces])


@given(st.lists(st.floats(0.001, 10), min_size=16, max_size=64), st.integers(1, 16 * MIB))
def test_nearly_all_commands_are_answered_in_what_is_expected(seconds: list[float], length: int) -> None:
    samples = [Sample(0.0, one, length) for one in seconds]
    limit = expected(samples, length)
    assert limit is not None
    assert sum(one > limit * 1.000001 for one in seconds) <= 0.05 * len(seconds)
    assert expected(samples[:15], length) is None


@given(st.lists(st.booleans(), max_size=500))
def test_at_most_one_read_in_twenty_is_asked_for_twice(slow: list[bool]) -> None:
    budget = HedgeBudget()
    for one in slow:
        budget.read()
        if one:
            budget.take()
        assert budget.hedged <= 0.05 * budget.reads + 1e-6
    assert budget.reads == len(slow)


def test_what_was_saved_up_is_bounded() -> None:
    budget = HedgeBudget()
    for _ in range(10_000):
        budget.read()
    assert sum(budget.take() for _ in range(100)) == 20
