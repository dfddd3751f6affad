from ibpfs.cache.clean import BLOCK
from ibpfs.cache.first_looks import SMALL, FirstLooks, following


def test_the_first_look_is_enough_and_the_second_wants_the_block() -> None:
    looks = FirstLooks()
    assert looks.is_enough((1, 5), 4096, BLOCK)
    assert not looks.is_enough((1, 5), 4096, BLOCK)
    assert looks.is_enough((2, 5), 4096, BLOCK), "another segment's"


def test_large_reads_and_small_blocks_are_fetched_whole() -> None:
    assert not FirstLooks().is_enough((1, 0), SMALL + 1, BLOCK)
    assert not FirstLooks().is_enough((1, 0), 10, SMALL)


def test_what_was_looked_into_is_given_out_once_the_latest_first() -> None:
    looks = FirstLooks()
    for number in range(5):
        looks.is_enough((1, number), 10, BLOCK)
    looks.is_enough((1, 4), 10, BLOCK)
    assert looks.take(3) == [(1, 3), (1, 2), (1, 1)]
    assert looks.take(3) == [(1, 0)]
    assert looks.take(3) == []


def test_not_more_is_remembered_than_is_good() -> None:
    looks = FirstLooks()
    for number in range(5000):
        looks.is_enough((1, number), 10, BLOCK)
    assert len(looks.take(5000)) == 4096


def test_what_follows_a_block_begins_behind_it() -> None:
    begin, end = following(3)
    assert (begin, end % BLOCK, end > begin) == (4 * BLOCK, 0, True)
