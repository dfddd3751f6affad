from ibpfs.memory import unfilled


def test_unfilled_memory_is_a_bytearray_of_that_length() -> None:
    for length in (0, 1, 4096, 5 * 1024 * 1024):
        made = unfilled(length)
        assert type(made) is bytearray
        assert len(made) == length
        made[:] = b"x" * length
        assert made == b"x" * length
