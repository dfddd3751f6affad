"""The filter of a mail server between two real SMTP servers: what it says, and when."""

import asyncio
import smtplib
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network

import pytest

from ibpfs.mail.filtering import Filter, Limits, serving
from ibpfs.mail.handling import Handled, handle
from ibpfs.mail.structure import Buffer

from .letters import CORPUS, RULES, link
from .receivers import Links, Mailbox

LETTER = (CORPUS / "related-in-mixed-crlf.eml").read_bytes()
LIMITS = Limits()
TO = ["ben@example.net", "carl@example.net"]


def through(
    client: Callable[[int], object], mailbox: Mailbox | None = None, links: Links | None = None, *,
    limits: Limits = LIMITS, defer: bool = False, rewrite: Callable[[Buffer], Handled] | None = None,
) -> Mailbox:  # fmt: skip
    """Run a client, which blocks, against a filter in front of a mailbox; returns what that has."""
    mailbox, links = mailbox or Mailbox(), links or Links()
    rewriting = rewrite or partial(handle, rules=RULES, sharer=links, defer=defer)

    async def run() -> None:
        async with (
            mailbox.serving() as behind,
            serving(Filter(("127.0.0.1", behind), rewriting, links, limits), "127.0.0.1", 0) as port,
        ):
            await asyncio.to_thread(client, port)

    asyncio.run(run())
    return mailbox


def send(port: int, message: bytes = LETTER, options: tuple[str, ...] = ()) -> dict[str, tuple[int, bytes]]:
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as server:
        return server.sendmail("ada@example.org", TO, message, mail_options=options)


def test_a_message_with_a_file_and_one_without() -> None:
    def client(port: int) -> None:
        send(port)
        send(port, b"Subject: x\r\n\r\n.\r\n..\r\nplain\r\n", ("BODY=8BITMIME",))

    links = Links()
    mailbox = through(client, links=links)
    assert [name for name, _ in links.files] == ["Übersicht.xlsx"]
    (sender, recipients, first), (_, _, second) = mailbox.taken
    assert (sender, recipients) == ("ada@example.org", TO)
    assert link(0).render().encode() in first.replace(b"=\r\n", b"").replace(b"=3D", b"=")
    assert second == b"Subject: x\r\n\r\n.\r\n..\r\nplain\r\n"
    assert mailbox.options[1] == ["BODY=8BITMIME"]


def test_two_connections_at_once_are_two_transactions() -> None:
    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as one, smtplib.SMTP("127.0.0.1", port, timeout=60) as other:
            for server, name in ((one, "one"), (other, "other")):
                server.ehlo()
                assert server.mail(f"{name}@example.org")[0] == 250
            for server, name in ((other, "other"), (one, "one")):
                assert server.rcpt(f"to-{name}@example.net")[0] == 250
            for server, name in ((one, "one"), (other, "other")):
                assert server.data(f"Subject: {name}\r\n\r\n".encode())[0] == 250

    assert through(client).taken == [
        (f"{name}@example.org", [f"to-{name}@example.net"], f"Subject: {name}\r\n\r\n".encode())
        for name in ("one", "other")
    ]


def test_a_size_that_is_told_beforehand() -> None:
    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as server:
            server.ehlo()
            assert server.esmtp_features["size"] == "1000"
            assert server.mail("ada@example.org", ["SIZE=1001"])[0] == 552
            assert server.mail("ada@example.org", ["SIZE=1000"])[0] == 250

    assert not through(client, limits=Limits(message=1000)).taken


def test_several_messages_in_one_connection() -> None:
    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as server:
            for number in range(3):
                server.sendmail("ada@example.org", TO, b"Subject: %d\r\n\r\n" % number)
                server.rset()

    assert [message for _, _, message in through(client).taken] == [b"Subject: %d\r\n\r\n" % n for n in range(3)]


@pytest.mark.parametrize("message", [b"", b".", b"\r\n", b"\r\n.", b"a", b"a\r\n", b"\r\n\r\n", b"..\r\n."])
def test_short_messages(message: bytes) -> None:
    """The end of a message is found wherever it is."""
    mailbox = through(partial(send, message=message))
    whole = message if message.endswith(b"\r\n") else message + b"\r\n"  # smtplib ends it so
    assert mailbox.taken[0][2] == whole


def test_what_comes_right_behind_a_message_is_the_next_command() -> None:
    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as door, door.makefile("rb") as replies:
            door.sendall(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
            while not replies.readline().startswith(b"354"):
                pass
            door.sendall(b"Subject: x\r\n\r\nhello\r\n.\r\nQUIT\r\n")
            assert replies.readline().startswith(b"250")
            assert replies.readline().startswith(b"221")

    assert through(client).taken[0][2] == b"Subject: x\r\n\r\nhello\r\n"


def test_answers_are_those_of_the_next_server() -> None:
    def client(port: int) -> None:
        assert send(port) == {TO[0]: (550, b"5.1.1 no such user")}

    mailbox = through(client, Mailbox({TO[0]: "550 5.1.1 no such user"}))
    assert mailbox.taken[0][1] == TO[1:]


@pytest.mark.parametrize("answer", ["451 4.3.0 later", "554 5.7.1 spam"])
def test_a_message_that_is_not_taken_is_not_ours(answer: str) -> None:
    def client(port: int) -> None:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            send(port)
        assert f"{caught.value.smtp_code} {caught.value.smtp_error.decode()}" == answer  # type: ignore[union-attr]

    links = Links()
    assert not through(client, Mailbox({"DATA": answer}), links).taken
    assert links.revoked == [link(0).locator.id]


def test_a_message_that_was_perhaps_taken_keeps_its_links() -> None:
    """The next server has it, and never said so: what it will deliver must not point to nothing."""

    def client(port: int) -> None:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            send(port)
        assert caught.value.smtp_code == 451

    links = Links()
    assert len(through(client, Mailbox(is_silent=True), links).taken) == 1
    assert len(links.files) == 1
    assert not links.revoked


def test_no_next_server() -> None:
    async def run() -> None:
        one = Filter(("127.0.0.1", 1), lambda data: Handled(data), Links())
        async with serving(one, "127.0.0.1", 0) as port:
            with pytest.raises(smtplib.SMTPSenderRefused) as caught:
                await asyncio.to_thread(send, port)
            assert caught.value.smtp_code == 451

    asyncio.run(run())


def test_a_next_server_that_hung_up_while_the_file_was_stored() -> None:
    mailbox = Mailbox()

    def slow(data: Buffer) -> Handled:
        loop.call_soon_threadsafe(mailbox.hang_up)
        return handle(data, RULES, Links(), defer=False)

    async def run() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        async with (
            mailbox.serving() as behind,
            serving(Filter(("127.0.0.1", behind), slow, Links()), "127.0.0.1", 0) as port,
        ):
            await asyncio.to_thread(send, port)

    loop: asyncio.AbstractEventLoop
    asyncio.run(run())
    assert [recipients for _, recipients, _ in mailbox.taken] == [TO]


def test_no_volume() -> None:
    """The original goes, or the one before keeps it."""
    assert through(send, links=Links(fails_at=0)).taken[0][2] == LETTER

    def client(port: int) -> None:
        with pytest.raises(smtplib.SMTPDataError, match="no volume is mounted"):
            send(port)

    assert not through(client, links=Links(fails_at=0), defer=True).taken


def test_a_bug_is_no_loss() -> None:
    def broken(data: Buffer) -> Handled:
        raise ZeroDivisionError

    def client(port: int) -> None:
        with pytest.raises(smtplib.SMTPDataError) as caught:
            send(port)
        assert caught.value.smtp_code == 451

    assert not through(client, rewrite=broken).taken


def test_too_large() -> None:
    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as server:
            server.helo()  # does not tell the size beforehand
            with pytest.raises(smtplib.SMTPDataError) as caught:
                server.sendmail("ada@example.org", TO, LETTER)
            assert caught.value.smtp_code == 552
            server.sendmail("ada@example.org", TO, b"Subject: small\r\n\r\n")

    assert len(through(client, limits=Limits(message=1000)).taken) == 1


def test_bare_line_ends_are_refused() -> None:
    """Servers disagree about "\\n.\\r\\n": what one takes for text is the end of a message to another."""

    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as server:
            server.ehlo()
            server.mail("a@b.example")
            server.rcpt("c@d.example")
            server.docmd("DATA")
            server.send(b"Subject: x\r\n\r\nend?\n.\r\nMAIL FROM:<evil@b.example>\r\n\r\n.\r\n")
            assert server.getreply()[0] == 550

    assert not through(client).taken


def test_who_may_come() -> None:
    def stranger(port: int) -> None:
        with pytest.raises(smtplib.SMTPConnectError) as caught:
            send(port)
        assert caught.value.smtp_code == 554

    through(stranger, limits=Limits(allowed=(ip_network("192.0.2.0/24"),)))

    def crowd(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60), pytest.raises(smtplib.SMTPConnectError) as caught:
            smtplib.SMTP("127.0.0.1", port, timeout=60)
        assert caught.value.smtp_code == 421
        while True:  # the first one's place is free again
            try:
                send(port)
                return
            except smtplib.SMTPConnectError:
                continue

    assert len(through(crowd, limits=Limits(connections=1)).taken) == 1


def test_who_goes_away_in_the_middle_of_a_message_sent_none() -> None:
    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as door, door.makefile("rb") as replies:
            door.sendall(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
            while not replies.readline().startswith(b"354"):
                pass
            door.sendall(b"Subject: x\r\n\r\nhello\r\n")
        send(port, b"Subject: another\r\n\r\n")

    assert [message for _, _, message in through(client).taken] == [b"Subject: another\r\n\r\n"]


def test_addresses_that_are_not_ascii() -> None:
    """With SMTPUTF8 they are passed on; without, refused for good."""

    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as server:
            server.ehlo()
            assert server.docmd("MAIL", "FROM:<ada@example.org>")[0] == 250
            server.command_encoding = "utf-8"
            assert server.docmd("RCPT", "TO:<jürgen@example.net>")[0] == 553
            server.rset()
            server.sendmail("ada@example.org", "jürgen@example.net", b"Subject: x\r\n\r\n", ["SMTPUTF8"])

    assert through(client).taken[0][1] == ["jürgen@example.net"]


def test_who_says_nothing_for_long() -> None:
    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as door, door.makefile("rb") as replies:
            door.sendall(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n")
            assert replies.read().splitlines()[-1].startswith(b"421")

    assert not through(client, limits=Limits(idle=0.1)).taken
