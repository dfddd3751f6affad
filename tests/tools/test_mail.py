"""ibpfs mail and ibpfs-sendmail where there is no volume: nothing is lost, and callers learn what happened."""

import asyncio
import email
import os
import subprocess
import sys
from email.header import decode_header, make_header
from functools import partial
from pathlib import Path

import pytest

from tests.mail.letters import CORPUS
from tests.mail.receivers import Mailbox, make_sendmail

BIN = Path(sys.executable).parent
LETTER = (CORPUS / "related-in-mixed-crlf.eml").read_bytes()


class Sender:
    """Calls the commands with a mail.toml and a sendmail of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.configure()

    def configure(self, code: int = 0, **settings: str) -> None:
        named = {
            "sendmail": str(make_sendmail(self.directory, code)), "threshold": "2k",
            "volume": str(self.directory / "none"), **settings,
        }  # fmt: skip
        text = "".join(f'{name} = "{value}"\n' for name, value in named.items())
        (self.directory / "mail.toml").write_text(text)

    def call(self, program: str, *words: str, message: bytes = LETTER) -> tuple[int, str, bytes]:
        environment = {**os.environ, "IBPFS_MAIL_CONFIG": str(self.directory / "mail.toml")}
        done = subprocess.run(
            [BIN / program, *words], input=message, capture_output=True, timeout=60, check=False, env=environment
        )
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stderr.decode(), done.stdout

    @property
    def words(self) -> list[str]:
        return (self.directory / "words").read_text().split("\n")[:-1]

    @property
    def message(self) -> bytes | None:
        path = self.directory / "message"
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path)


def test_without_a_volume_the_original_is_sent(sender: Sender) -> None:
    code, said, _ = sender.call("ibpfs-sendmail", "-oi", "-f", "ada@x.example", "--", "ben@y.example")
    assert (code, sender.message) == (0, LETTER)
    assert sender.words == ["-oi", "-f", "ada@x.example", "--", "ben@y.example"]
    assert "sent as it was: " in said
    assert len(said.splitlines()) == 1


def test_or_nothing_is_and_the_caller_is_to_try_again(sender: Sender) -> None:
    sender.configure(on_error="defer")
    code, said, _ = sender.call("ibpfs-sendmail", "-t")
    assert (code, sender.message) == (os.EX_TEMPFAIL, None)
    assert len(said.splitlines()) == 1
    code, _, _ = sender.call("ibpfs", "mail", "-t", "--on-error", "send")
    assert (code, sender.message) == (0, LETTER)
    assert sender.words == ["-i", "-t", "--"]


def test_small_mail_needs_no_volume(sender: Sender) -> None:
    sender.configure(on_error="defer", threshold="1M")
    assert sender.call("ibpfs-sendmail", "-t")[:2] == (0, "")
    assert sender.message == LETTER


@pytest.mark.parametrize("code", [os.EX_NOUSER, os.EX_TEMPFAIL])
def test_the_exit_code_is_sendmails(sender: Sender, code: int) -> None:
    sender.configure(code)
    assert sender.call("ibpfs-sendmail", "-i", "ben@y.example")[0] == code


def test_what_sends_nothing_goes_to_sendmail(sender: Sender) -> None:
    assert sender.call("ibpfs-sendmail", "-bp", "-v", message=b"")[0] == 0
    assert sender.words == ["-bp", "-v"]


@pytest.mark.parametrize(("words", "kept"), [(["-i"], True), ([], False)])
def test_a_lone_dot(sender: Sender, words: list[str], kept: bool) -> None:
    message = b"Subject: x\n\nabove\n..\n.\nbelow\n"
    assert sender.call("ibpfs-sendmail", *words, "ben@y.example", message=message)[0] == 0
    assert sender.message == (message if kept else b"Subject: x\n\nabove\n..\n")


def test_wrong_calls(sender: Sender) -> None:
    assert sender.call("ibpfs-sendmail", "-i")[0] == os.EX_USAGE
    sender.configure(treshold="5M")
    code, said, _ = sender.call("ibpfs-sendmail", "-t")
    assert code == os.EX_USAGE
    assert "knows no 'treshold'" in said
    assert sender.message is None


def test_what_would_become_a_link(sender: Sender) -> None:
    code, _, out = sender.call("ibpfs", "mail", "--dry-run")
    assert (code, out.decode()) == (0, "link: Übersicht.xlsx (4.4 KiB)\n")
    code, _, out = sender.call("ibpfs", "mail", "--dry-run", message=(CORPUS / "signed-pgp.eml").read_bytes())
    assert (code, out.decode()) == (0, "stays: the message is signed\n")
    assert sender.message is None


def test_standard_output(sender: Sender) -> None:
    assert sender.call("ibpfs", "mail", "--stdout")[2] == LETTER


def through_a_server(sender: Sender, *words: str, message: bytes) -> tuple[tuple[int, str, bytes], Mailbox]:
    mailbox = Mailbox()

    async def run() -> tuple[int, str, bytes]:
        async with mailbox.serving() as port:
            sender.configure(smarthost=f"127.0.0.1:{port}", security="none")
            return await asyncio.to_thread(partial(sender.call, "ibpfs-sendmail", *words, message=message))

    return asyncio.run(run()), mailbox


@pytest.mark.parametrize(
    ("words", "envelope"),
    [([], "ada@x.example"), (["-f", "eve@x.example"], "eve@x.example"), (["-f", ""], "<>"), (["-f", "<>"], "<>")],
)
def test_a_server_is_told_whom_the_message_is_from(sender: Sender, words: list[str], envelope: str) -> None:
    letter = b"From: Ada <ada@x.example>\nDate: today\nMessage-ID: <1@x>\nSubject: x\n\nhello\n"
    (code, _, _), mailbox = through_a_server(sender, *words, "ben@y.example", message=letter)
    assert code == 0
    assert [(one, message) for one, _, message in mailbox.taken] == [(envelope, letter.replace(b"\n", b"\r\n"))]


def test_a_server_gets_the_fields_that_a_sendmail_would_add(sender: Sender) -> None:
    for letter in (b"hello\n", b"\nhello\n", b"From ada Thu Nov 26 10:00:00 2026\nSubject: x\n\nhello\n"):
        words = ("-F", "Ada Ü", "-f", "ada@x.example", "ben@y.example")
        (code, _, _), mailbox = through_a_server(sender, *words, message=letter)
        assert code == 0
        found = email.message_from_bytes(mailbox.taken[0][2])
        assert found.get_payload() == "hello\r\n"
        assert email.utils.parseaddr(str(make_header(decode_header(found["From"])))) == ("Ada Ü", "ada@x.example")
        assert email.utils.parsedate_to_datetime(found["Date"])
        assert found["Message-ID"].endswith("@x.example>")


def test_addresses_that_are_not_ascii(sender: Sender) -> None:
    (code, _, _), mailbox = through_a_server(sender, "-f", "jürgen@x.example", "bärbel@y.example", message=LETTER)
    assert code == 0
    assert mailbox.taken[0][:2] == ("jürgen@x.example", ["bärbel@y.example"])
    assert "SMTPUTF8" in mailbox.options[0]


def test_a_sendmail_that_is_ourselves_is_told_and_ends(sender: Sender) -> None:
    for words in (["ben@y.example"], ["-bp"]):
        sender.configure(sendmail=str(BIN / "ibpfs-sendmail"))
        code, said, _ = sender.call("ibpfs-sendmail", *words)
        assert code == os.EX_CONFIG
        assert "is ibpfs-sendmail itself" in said


@pytest.mark.parametrize("named", [[], ["-i", "--", "ben@y.example", "eve@y.example"]])
def test_a_server_instead_gets_the_message_without_blind_copies(sender: Sender, named: list[str]) -> None:
    """Whoever names the recipients: mutt with $write_bcc leaves them in."""
    mailbox = Mailbox()
    letter = b"To: ben@y.example\nBcc: eve@y.example\nSubject: x\n\nhello\n"

    async def run() -> None:
        async with mailbox.serving() as port:
            sender.configure(smarthost=f"127.0.0.1:{port}", security="none")
            words = ("-f", "ada@x.example", *(named or ["-t"]))
            assert (await asyncio.to_thread(sender.call, "ibpfs-sendmail", *words, message=letter))[:2] == (0, "")

    asyncio.run(run())
    ((envelope_sender, recipients, message),) = mailbox.taken
    assert (envelope_sender, recipients) == ("ada@x.example", ["ben@y.example", "eve@y.example"])
    without = letter.replace(b"Bcc: eve@y.example\n", b"").replace(b"\n", b"\r\n")
    assert message.endswith(without)
    assert b"eve" not in message
    found = email.message_from_bytes(message)
    assert sorted(found) == ["Date", "From", "Message-Id", "Subject", "To"]
    assert found["From"] == "ada@x.example"
    assert sender.call("ibpfs-sendmail", "-bp")[0] == os.EX_USAGE
