"""The algebra of the erasure code: any K of K+M shards are enough, and what a range of a segment is made of."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.errors import UsageError
from ibpfs.exnode_store.erasure import Code, Coded

codes = st.builds(Code, st.integers(2, 7), st.integers(1, 5))


@given(codes, st.binary(min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_any_k_shards_give_all_others(code: Code, data: bytes, chance: object) -> None:
    shards = code.encode(data)
    assert len(shards) == code.shards
    assert {len(one) for one in shards} == {code.shard_length(len(data))}
    assert b"".join(shards[: code.k])[: len(data)] == data
    some = {number: shards[number] for number in chance.sample(range(code.shards), code.k)}  # type: ignore[attr-defined]
    assert code.decode(some) == shards[: code.k]
    assert [code.rebuild(some, number) for number in range(code.shards)] == shards


@given(codes, st.binary(min_size=1, max_size=300), st.data())
def test_a_range_comes_from_the_same_columns_of_other_shards(code: Code, data: bytes, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(data) - 1))
    stop = draw.draw(st.integers(start + 1, len(data)))
    shards, coded = code.encode(data), Coded(code, code.shard_length(len(data)))
    plain, rebuilt = b"", b""
    for shard, begin, end in coded.spans(start, stop):
        assert 0 <= begin < end <= coded.shard_length
        plain += shards[shard][begin:end]
        others = {number: one[begin:end] for number, one in enumerate(shards) if number != shard}
        rebuilt += code.rebuild(others, shard)
    assert plain == data[start:stop]
    assert rebuilt == data[start:stop]


def test_too_few_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="4 shards are needed, and here are 3"):
        Code(4, 2).decode(dict(enumerate(Code(4, 2).encode(b"hello")[:3])))


@given(codes, st.binary(min_size=1, max_size=40), st.integers(0, 11))
def test_the_code_is_the_one_that_its_description_says(code: Code, data: bytes, number: int) -> None:
    """By interpolation in bare Python: the format outlives the library."""
    number %= code.shards
    shards = code.encode(data)
    for column in range(len(shards[0])):
        value = 0
        for one in range(code.k):
            others = [other for other in range(code.k) if other != one]
            above = reduce(_times, [_point(number) ^ _point(other) for other in others], 1)
            below = reduce(_times, [_point(one) ^ _point(other) for other in others], 1)
            value ^= _times(shards[one][column], _times(above, _inverse(below)))
        assert value == shards[number][column]


def _point(number: int) -> int:
    return reduce(_times, [2] * (number - 1), 1) if number else 0


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def _inverse(a: int) -> int:
    return reduce(_times, [a] * 254, 1)


@pytest.mark.parametrize("text", ["4", "4+", "+2", "1+2", "4+0", "65+2", "4+65", "4+2+1", "a+b", "-4+2", "4 + 2"])
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="code="):
        Code.parse(text)


def test_a_code_is_read_as_it_is_written() -> None:
    assert Code.parse("4+2") == Code(4, 2)
    assert str(Code(10, 4)) == "10+4"
