"""Shares of a secret: enough of them give it back, whichever; fewer could be of any secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.errors import UsageError
from ibpfs.exnode_store.checkpoints.recovery_string import (
    Recovery,
    dump_recovery,
    dump_shares,
    format_text,
    join_shares,
    parse_recovery,
)
from ibpfs.exnode_store.checkpoints.sharing_secret import join, split
from ibpfs_tools import ibpfs_restore

splits = st.integers(2, 9).flatmap(lambda count: st.tuples(st.integers(2, count), st.just(count)))


@given(st.binary(min_size=1, max_size=100), splits, st.randoms(use_true_random=False))
def test_enough_shares(secret: bytes, how: tuple[int, int], dice: object) -> None:
    shares = split(secret, *how)
    points = list(shares)
    dice.shuffle(points)  # type: ignore[attr-defined]
    assert join({point: shares[point] for point in points[: how[0]]}) == secret
    assert join(shares) == secret  # more than enough


@given(st.binary(min_size=1, max_size=8), st.integers(0, 255))
def test_too_few_shares_fit_any_secret(secret: bytes, byte: int) -> None:
    """With one share of two, for every first byte there is another share that gives it."""
    one = split(secret, 2, 2)[1]
    seconds = {join({1: one, 2: bytes([other]) + one[1:]})[0] for other in range(256)}
    assert byte in seconds


def test_what_cannot_be_split() -> None:
    for needed, count in ((0, 1), (3, 2), (2, 256)):
        with pytest.raises(ValueError, match="cannot be split"):
            split(b"x", needed, count)
    for needed, count in ((1, 1), (3, 2), (2, 256)):
        with pytest.raises(UsageError, match="K of N are needed"):
            dump_shares(b"x", needed, count)


@given(st.binary(min_size=24, max_size=24), splits, st.randoms(use_true_random=False))
def test_shares_of_a_string(secret: bytes, how: tuple[int, int], dice: object) -> None:
    data = dump_recovery(Recovery(secret))
    shares = dump_shares(data, *how)
    dice.shuffle(shares)  # type: ignore[attr-defined]
    lines = [format_text(share) for share in shares[: how[0]]]
    assert parse_recovery("\n\n".join(lines).lower()) == Recovery(secret, [])
    assert ibpfs_restore.join([ibpfs_restore.decode(line) for line in lines]) == data
    with pytest.raises(UsageError, match=r"shares are needed|are needed, each on its own line"):
        parse_recovery("\n".join(lines[1:]))


def test_shares_that_do_not_belong_together() -> None:
    one, other = (dump_shares(dump_recovery(Recovery(secret * 24)), 2, 2) for secret in (b"a", b"b"))
    with pytest.raises(UsageError, match="of different recovery strings"):
        join_shares([one[0], other[1]])
    with pytest.raises(UsageError, match="2 shares are needed, and here are 1"):
        join_shares([one[0], one[0]])
    with pytest.raises(UsageError, match="not a share"):
        join_shares([one[0], one[1][:-1] + b"x"])
