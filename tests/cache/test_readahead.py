from hypothesis import given
from hypothesis import strategies as st

from ibpfs.cache.readahead import FIRST_WINDOW, MAX_WINDOW, STEP, Readahead

MIB = 1024 * 1024


def test_one_read_asks_for_nothing() -> None:
    assert Readahead().note(0, 4096) == []
    assert Readahead().note(5 * MIB, MIB) == []


def test_second_read_in_sequence_opens_a_window_behind_it() -> None:
    policy = Readahead()
    policy.note(0, 4096)
    assert policy.note(4096, 4096) == [(8192, 8192 + FIRST_WINDOW)]


def test_window_doubles_up_to_its_bound() -> None:
    policy = Readahead()
    most = 0
    asked = 0
    for offset in range(0, 64 * MIB, 128 * 1024):
        stop = offset + 128 * 1024
        for begin, end in policy.note(offset, 128 * 1024):
            assert begin >= stop
            asked = max(asked, end)
        most = max(most, asked - stop)
        assert asked - stop <= MAX_WINDOW
        if offset > 24 * MIB:
            assert asked - stop >= MAX_WINDOW // 2 - 128 * 1024
    assert most == MAX_WINDOW


def test_large_windows_end_where_slices_do() -> None:
    policy = Readahead()
    ranges: list[tuple[int, int]] = []
    for offset in range(0, 64 * MIB, MIB):
        ranges += policy.note(offset, MIB)
    assert [begin for begin, _ in ranges[1:]] == [end for _, end in ranges[:-1]], "nothing twice, nothing left out"
    assert {(begin % STEP, end - begin) for begin, end in ranges[-4:]} == {(0, STEP)}


def test_random_reads_ask_for_nothing() -> None:
    policy = Readahead()
    for offset in (90, 10, 50, 30, 70, 5):
        assert policy.note(offset * MIB, 4096) == []


def test_jump_closes_the_window() -> None:
    policy = Readahead()
    for offset in range(0, 16 * MIB, MIB):
        policy.note(offset, MIB)
    assert policy.note(100 * MIB, MIB) == []
    assert policy.note(101 * MIB, MIB) == [(102 * MIB, 102 * MIB + FIRST_WINDOW)]


def test_pieces_out_of_order_are_a_sequence() -> None:
    policy = Readahead()
    step = 128 * 1024
    ranges: list[tuple[int, int]] = []
    for pair in range(0, 40, 2):
        ranges += policy.note((pair + 1) * step, step)
        ranges += policy.note(pair * step, step)
    assert ranges
    assert ranges[-1][1] > 40 * step


@given(st.lists(st.integers(1, 2 * MIB), min_size=2, max_size=60))
def test_no_byte_is_asked_for_twice_and_none_is_left_out(sizes: list[int]) -> None:
    policy = Readahead()
    offset, asked = 0, None
    for size in sizes:
        for begin, end in policy.note(offset, size):
            assert begin < end <= offset + size + MAX_WINDOW
            assert asked is None or begin == max(asked, offset + size)
            asked = end
        offset += size
