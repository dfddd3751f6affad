"""Handing a message on: to a program, to a server; and when they do not take it."""

import asyncio
import os
from pathlib import Path

import pytest

from ibpfs.mail.delivery import Envelope, NotDelivered, Program, Smarthost

from .receivers import Mailbox, make_sendmail

MESSAGE = b"Subject: x\n\n.dot\nGr\xc3\xbc\xc3\x9fe\n..\n" + b"line\n" * 300_000
ENVELOPE = Envelope("ada@x.example", ("ben@y.example", "carl@y.example"), ("-i", "--", "ben@y.example"))


def test_a_program_gets_the_words_and_the_message(tmp_path: Path) -> None:
    Program(str(make_sendmail(tmp_path))).deliver(MESSAGE, ENVELOPE)
    assert (tmp_path / "words").read_text().split() == list(ENVELOPE.words)
    assert (tmp_path / "message").read_bytes() == MESSAGE


@pytest.mark.parametrize("code", [os.EX_TEMPFAIL, os.EX_NOUSER])
def test_a_program_that_refuses(tmp_path: Path, code: int) -> None:
    with pytest.raises(NotDelivered) as caught:
        Program(str(make_sendmail(tmp_path, code))).deliver(MESSAGE, ENVELOPE)
    assert caught.value.exit == code


def test_a_program_that_stops_reading_or_is_not_there(tmp_path: Path) -> None:
    quits = tmp_path / "quits"
    quits.write_text("#!/bin/sh\nexec true\n")
    quits.chmod(0o755)
    for path in (quits, tmp_path / "none"):
        with pytest.raises(NotDelivered) as caught:
            Program(str(path)).deliver(MESSAGE, ENVELOPE)
        assert caught.value.exit == os.EX_TEMPFAIL


def deliver(mailbox: Mailbox) -> None:
    async def run() -> None:
        async with mailbox.serving() as port:
            await asyncio.to_thread(Smarthost("127.0.0.1", port, "none").deliver, MESSAGE, ENVELOPE)

    asyncio.run(run())


def test_a_server_gets_it() -> None:
    mailbox = Mailbox()
    deliver(mailbox)
    assert mailbox.taken == [("ada@x.example", list(ENVELOPE.recipients), MESSAGE.replace(b"\n", b"\r\n"))]


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"ben@y.example": "550 no such user"}, os.EX_UNAVAILABLE),
        ({"carl@y.example": "450 busy"}, os.EX_TEMPFAIL),
        ({"DATA": "554 no"}, os.EX_UNAVAILABLE),
        ({"DATA": "451 later"}, os.EX_TEMPFAIL),
    ],
)
def test_all_get_it_or_nobody(answers: dict[str, str], code: int) -> None:
    mailbox = Mailbox(answers)
    with pytest.raises(NotDelivered, match=next(iter(answers.values()))[4:]) as caught:
        deliver(mailbox)
    assert caught.value.exit == code
    assert not mailbox.taken


def test_a_server_that_does_not_say_whether_it_took_it() -> None:
    with pytest.raises(NotDelivered, match="did not say") as caught:
        deliver(Mailbox(is_silent=True))
    assert (caught.value.exit, caught.value.unsure) == (os.EX_TEMPFAIL, True)


def test_no_server() -> None:
    with pytest.raises(NotDelivered, match=r"127\.0\.0\.1:1: ") as caught:
        Smarthost("127.0.0.1", 1).deliver(MESSAGE, ENVELOPE)
    assert caught.value.exit == os.EX_TEMPFAIL


def test_a_server_without_tls_gets_neither_password_nor_message() -> None:
    mailbox = Mailbox()

    async def run() -> None:
        async with mailbox.serving() as port:
            host = Smarthost("127.0.0.1", port, "starttls", "ada", "secret")
            await asyncio.to_thread(host.deliver, MESSAGE, ENVELOPE)

    with pytest.raises(NotDelivered, match="STARTTLS"):
        asyncio.run(run())
    assert not mailbox.taken
