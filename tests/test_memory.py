import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs import memory
from ibpfs.memory import Sendable, sendable, unfilled


def test_unfilled_memory_is_a_bytearray_of_that_length() -> None:
    for length in (0, 1, 4096, 5 * 1024 * 1024):
        made = unfilled(length)
        assert type(made) is bytearray
        assert len(made) == length
        made[:] = b"x" * length
        assert made == b"x" * length


LARGE = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    while memory._FREE:
        os.close(memory._FREE.pop().descriptor)
    yield
    gc.collect()


def owner(part: memoryview) -> Sendable:
    assert isinstance(part.obj, Sendable)
    return part.obj


@pytest.mark.parametrize("length", [0, 1, 4096, 16 << 20])
def test_what_is_not_worth_it_is_no_file(length: int) -> None:
    made = sendable(length)
    assert (len(made), type(made.obj)) == (length, bytearray)


@pytest.mark.parametrize("length", [LARGE, 4 << 20])
def test_its_bytes_are_those_of_its_descriptor(length: int) -> None:
    made = sendable(length)
    assert (made.format, made.nbytes, made.readonly) == ("B", length, False)
    made[:] = bytes(range(256)) * (length // 256)
    part = made[1000:-7]
    whole = owner(part)
    assert whole is owner(made)
    assert os.pread(whole.descriptor, len(part), whole.offset(part)) == part


def test_it_is_used_again_when_nobody_refers_to_it() -> None:
    first = sendable(LARGE)
    part, descriptor = first[5:10], owner(first).descriptor
    del first
    second = sendable(LARGE)
    assert owner(second).descriptor != descriptor, "a part is still in use"
    del part
    assert owner(sendable(LARGE)).descriptor == descriptor


def test_what_may_not_have_been_read_is_not_used_again() -> None:
    made = sendable(LARGE)
    owner(made).under_way += 1
    descriptor = owner(made).descriptor
    del made
    assert memory._FREE == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_its_pages_are_there_before_they_are_written() -> None:
    for length in (LARGE, LARGE // 2, 3 * LARGE):
        made = sendable(length)
        assert os.fstat(owner(made).descriptor).st_blocks * 512 >= length
        del made


def test_only_some_are_kept() -> None:
    many = [sendable(LARGE) for _ in range(20)]
    descriptors = {owner(one).descriptor for one in many}
    many.clear()
    assert 0 < len(memory._FREE) < 10
    assert sum(Path(f"/proc/self/fd/{one}").exists() for one in descriptors) == len(memory._FREE)


def test_without_room_for_a_file_it_is_as_any_memory() -> None:
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        made = sendable(LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))
    assert (len(made), type(made.obj)) == (LARGE, bytearray)
