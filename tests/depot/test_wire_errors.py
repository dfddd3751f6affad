"""One table from error numbers to exceptions."""

import pytest

from ibpfs.depot.wire import (
    BadRequest,
    CapabilityNotFound,
    DepotError,
    ErrorCode,
    LeaseTooLong,
    NoRoom,
    NotOffered,
    OutOfSockets,
    PermissionDenied,
    error_for,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (-4, CapabilityNotFound),
        (-5, PermissionDenied),
        (-19, NoRoom),
        (-21, BadRequest),
        (-23, NoRoom),
        (-28, LeaseTooLong),
        (-30, BadRequest),
        (-43, NotOffered),
        (-45, LeaseTooLong),
        (-999, DepotError),
    ],
)
def test_codes_have_classes(code: int, kind: type[DepotError]) -> None:
    error = error_for(code)
    assert type(error) is kind
    assert error.code == code
    assert str(code) in str(error)


def test_every_code_makes_an_exception() -> None:
    assert all(error_for(code).code == code for code in ErrorCode)
    assert sorted(-code for code in ErrorCode) == list(range(1, 67))


def test_out_of_sockets_says_how_long() -> None:
    error = error_for(-66, backoff=0.5)
    assert isinstance(error, OutOfSockets)
    assert error.backoff == 0.5
