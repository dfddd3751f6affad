"""Who a message is for."""

import pytest

from ibpfs.errors import UsageError
from ibpfs.mail.recipients import recipients_of, without_blind_copies

HEADER = b"""From: ada@example.org
To: Ben <ben@example.net>, "Carl, Jr." <carl@example.net>,
\tfriends: dora@example.net, ben@example.net;
Cc: =?utf-8?q?=C3=89mile?= <emile@example.net>
BCC: eve@example.org,
  frank@example.org
Subject: Bcc: nobody@example.org

"""


def test_all_addresses_once() -> None:
    assert recipients_of(HEADER) == [
        "ben@example.net", "carl@example.net", "dora@example.net", "emile@example.net", "eve@example.org",
        "frank@example.org",
    ]  # fmt: skip


def test_a_message_that_is_sent_again_goes_to_those_it_is_sent_to_again() -> None:
    assert recipients_of(b"To: a@b\nResent-To: c@d\nResent-Bcc: e@f\n") == ["c@d", "e@f"]


@pytest.mark.parametrize("header", [b"", b"Subject: x\n\n", b"To: undisclosed-recipients:;\n\n", b"To: \n\n"])
def test_none(header: bytes) -> None:
    with pytest.raises(UsageError):
        recipients_of(header)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blind_copies_are_taken_out(end: bytes) -> None:
    before = HEADER.replace(b"\n", end)
    after = without_blind_copies(before)
    assert b"eve@" not in after
    assert b"frank@" not in after
    assert b"Subject: Bcc: nobody@example.org" in after
    assert before.replace(b"BCC: eve@example.org,NL  frank@example.orgNL".replace(b"NL", end), b"") == after
