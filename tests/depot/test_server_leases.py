"""Which durations a depot grants, by version of the protocol and will of the operator."""

import pytest

from ibpfs.depot.server.allocation import PERMANENT
from ibpfs.depot.server.leases import LeaseRules, seconds_left
from ibpfs.depot.wire.errors import DepotError, ErrorCode
from ibpfs.depot.wire.protocol import PERMANENT_SECONDS

LIMITED = LeaseRules(3600, permanent=False)
FOR_EVER = LeaseRules(None, permanent=True)


@pytest.mark.parametrize(
    ("rules", "duration", "version", "granted"),
    [
        (LIMITED, 1, 1, 1),
        (LIMITED, 3600, 0, 3600),
        (LIMITED, -1, 1, 3600),
        (LIMITED, -1, 0, 3600),
        (FOR_EVER, -1, 1, PERMANENT),
        (FOR_EVER, 0, 0, PERMANENT),
        (FOR_EVER, 10**8, 1, 10**8),
        (LeaseRules(None, permanent=False), -1, 1, PERMANENT_SECONDS),
    ],
)
def test_granted(rules: LeaseRules, duration: int, version: int, granted: float) -> None:
    assert rules.grant(duration, zero_is_permanent=version == 0, too_long=ErrorCode.LONG_DURATION) == granted


@pytest.mark.parametrize(
    ("rules", "duration", "version", "code"),
    [
        (LIMITED, 3601, 1, -28),
        (LIMITED, 0, 0, -28),
        (LIMITED, 0, 1, -30),
        (FOR_EVER, 0, 1, -30),
        (FOR_EVER, -2, 1, -30),
        (FOR_EVER, PERMANENT_SECONDS + 1, 1, -28),
    ],
)
def test_refused(rules: LeaseRules, duration: int, version: int, code: int) -> None:
    with pytest.raises(DepotError) as refusal:
        rules.grant(duration, zero_is_permanent=version == 0, too_long=ErrorCode.LONG_DURATION)
    assert refusal.value.code == code


def test_longest() -> None:
    assert (LIMITED.longest, FOR_EVER.longest) == (3600, -1)


def test_seconds_left() -> None:
    assert seconds_left(PERMANENT, 5.0) == PERMANENT_SECONDS
    assert seconds_left(7.9, 5.0) == 2
    assert seconds_left(4.0, 5.0) == 0
