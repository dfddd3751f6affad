"""Waits awake, where they pay."""

from ibpfs.alertness import SPARED, Alertness


def waits_asleep(alertness: Alertness) -> int:
    """Until the next one awake."""
    count = 0
    while not alertness.is_worth_it():
        count += 1
    return count


def test_waits_in_vain_are_tried_ever_more_seldom() -> None:
    alertness, asleep = Alertness(), []
    for _ in range(10):
        asleep.append(waits_asleep(alertness))
        alertness.was_in_vain()
    assert asleep == [0, 1, 2, 4, 8, 16, 32, 64, SPARED, SPARED]


def test_waits_that_pay_bring_it_back() -> None:
    alertness = Alertness()
    for _ in range(20):
        alertness.was_in_vain()
    assert waits_asleep(alertness) == SPARED
    for _ in range(10):
        alertness.paid()
        assert alertness.is_worth_it()
    alertness.was_in_vain()
    assert waits_asleep(alertness) == 1


def test_one_pause_in_a_row_of_requests_changes_little() -> None:
    alertness, awake = Alertness(), 0
    for number in range(600):
        if alertness.is_worth_it():
            awake += 1
            if number % 6:
                alertness.paid()
            else:
                alertness.was_in_vain()
    assert awake > 450
