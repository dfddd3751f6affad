"""Calls of sendmail as programs make them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.mail.sendmail_words import parse_words


@pytest.mark.parametrize(
    ("line", "recipients", "sender", "reads", "dots", "other"),
    [
        ("-oem -oi -f ada@x -- ben@y carl@y", "ben@y carl@y", "ada@x", False, True, False),  # mutt
        ("-i ben@y carl@y", "ben@y carl@y", None, False, True, False),  # git send-email
        ("-i -f ada@x ben@y", "ben@y", "ada@x", False, True, False),
        ("-t -oi -oem", "", None, True, True, False),  # cron, PHP
        ("-ti", "", None, True, True, False),
        ("-B8BITMIME -oi -N failure,delay -R full -- ben@y", "ben@y", None, False, True, False),
        ("-FAda -fada@x ben@y", "ben@y", "ada@x", False, False, False),
        ("-F Ada -r ada@x ben@y", "ben@y", "ada@x", False, False, False),
        ("-bm -v -Z -U ben@y", "ben@y", None, False, False, False),
        ("-O DeliveryMode=b -o7 -d ben@y", "ben@y", None, False, False, False),
        ("-bs", "", None, False, False, True),
        ("-bp", "", None, False, False, True),
        ("-q30m", "", None, False, False, True),
        ("-bi", "", None, False, False, True),
        ("-I", "", None, False, False, True),
        ("-f", "", "", False, False, False),
        ("-", "-", None, False, False, False),
        ("", "", None, False, False, False),
    ],
)  # fmt: skip
def test_calls(line: str, recipients: str, sender: str | None, reads: bool, dots: bool, other: bool) -> None:
    words = line.split()
    found = parse_words(words)
    assert found.words == tuple(words)
    assert found.recipients == tuple(recipients.split())
    assert (found.sender, found.reads_recipients, found.ignores_dots, found.other_mode) == (sender, reads, dots, other)


@given(st.lists(st.text(max_size=5)))
def test_no_call_is_refused(words: list[str]) -> None:
    found = parse_words(words)
    assert all(one in words for one in found.recipients)
