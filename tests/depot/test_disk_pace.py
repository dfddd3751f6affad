"""When an event loop may wait for a disk itself."""

from ibpfs.depot.disk_pace import QUICK, STALL, DiskPace


def after(*seconds: float) -> bool:
    pace = DiskPace()
    for one in seconds:
        pace.took(one, in_thread=False)
    return pace.is_quick


def test_one_of_the_last_two_was_quick() -> None:
    slow, quick = 2 * QUICK, QUICK / 2
    assert not after()
    assert not after(slow, slow)
    assert after(quick)
    assert after(quick, slow)
    assert not after(quick, slow, slow)
    assert after(quick, slow, slow, quick)


def test_a_disk_that_stood_still_is_left_to_threads_for_a_while() -> None:
    quick = QUICK / 2
    assert not after(quick, STALL)
    assert not after(STALL, *[quick] * 99)
    assert after(STALL, *[quick] * 100)
    assert not after(STALL, *[quick] * 99, STALL, *[quick] * 99)


def test_what_took_long_in_a_thread_prolongs_that_and_no_more() -> None:
    pace = DiskPace()
    pace.took(STALL, in_thread=True)
    pace.took(QUICK / 2, in_thread=True)
    assert pace.is_quick
    pace.took(STALL, in_thread=False)
    pace.took(QUICK / 2, in_thread=True)
    pace.took(STALL, in_thread=True)
    for _ in range(99):
        pace.took(QUICK / 2, in_thread=True)
    assert not pace.is_quick
    pace.took(QUICK / 2, in_thread=True)
    assert pace.is_quick
