"""Where a message goes next: the system's sendmail, or an SMTP server.

Either the next one took the message for all recipients, or this raises and nobody has it.
"""

import getpass
import os
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ibpfs.errors import IbpfsError
from ibpfs.mail.dots import stuffed
from ibpfs.mail.spooled import pieces
from ibpfs.mail.structure import Buffer

_SECONDS = 300.0
#: In the environment of a sendmail that we have called.
_MARK = "IBPFS_SENDMAIL_CALLED"


class NotDelivered(IbpfsError):
    """Nobody has the message, or, if `unsure`, perhaps the next one; `exit` is a number of sysexits.h."""

    def __init__(self, message: str, code: int, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.exit = code
        self.unsure = unsure


class NoAnswer(smtplib.SMTPServerDisconnected):
    """All of a message went out, and the server never said whether it has it."""


@dataclass(frozen=True)
class Envelope:
    """Who it is from, for whom, and the words sendmail was called with."""

    sender: str | None
    recipients: tuple[str, ...]
    words: tuple[str, ...]


# --- a program


@dataclass(frozen=True)
class Program:
    """A sendmail: gets the words as they were, and the message."""

    path: str

    def deliver(self, message: Buffer, envelope: Envelope) -> None:
        environment = self.environment()
        try:
            process = subprocess.Popen([self.path, *envelope.words], stdin=subprocess.PIPE, env=environment)
        except OSError as error:
            raise NotDelivered(f"{self.path}: {error.strerror}", os.EX_TEMPFAIL) from None
        with process:
            broken = _fill(process, message)
        if process.returncode < 0:
            raise NotDelivered(f"{self.path}: was killed by signal {-process.returncode}", os.EX_TEMPFAIL, unsure=True)
        if process.returncode or broken:
            raise NotDelivered(f"{self.path}: ended with {process.returncode}", process.returncode or os.EX_TEMPFAIL)

    def environment(self) -> dict[str, str]:
        """Ours, with a mark by which a sendmail that is ourselves is told. NotDelivered: we are that one."""
        if _MARK in os.environ:
            raise NotDelivered(f"{self.path}: is ibpfs-sendmail itself; set sendmail in mail.toml", os.EX_CONFIG)
        return {**os.environ, _MARK: "1"}


def _fill(process: subprocess.Popen[bytes], message: Buffer) -> bool:
    """Return whether the program stopped reading too early."""
    assert process.stdin is not None
    try:
        for piece in pieces(message):
            process.stdin.write(piece)
        process.stdin.close()
    except BrokenPipeError:
        return True
    return False


# --- SMTP


@dataclass(frozen=True)
class Smarthost:
    """An SMTP server that relays. `security`: tls, starttls or none."""

    host: str
    port: int
    security: str = "starttls"
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str | None = None

    def deliver(self, message: Buffer, envelope: Envelope) -> None:
        with naming(f"{self.host}:{self.port}"), self._connected() as server:
            sender = default_sender() if envelope.sender is None else envelope.sender
            options = _options(server, message, (sender, *envelope.recipients))
            require(server.mail(sender, options), "the sender")
            for recipient in envelope.recipients:
                require(server.rcpt(recipient), recipient)
            require(send_data(server, pieces(message)), "the message")

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=_SECONDS, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=_SECONDS)
        with server:
            if self.security == "starttls":
                server.starttls(context=context)
            server.ehlo_or_helo_if_needed()
            if self.user:
                server.login(self.user, self.password)
            yield server


def _options(server: smtplib.SMTP, message: Buffer, addresses: Iterable[str]) -> list[str]:
    options = [f"SIZE={len(message)}"] if server.has_extn("size") else []
    if server.has_extn("8bitmime"):
        options.append("BODY=8BITMIME")
    for address in addresses:
        if not address.isascii():
            if not server.has_extn("smtputf8"):
                raise NotDelivered(f"{address}: takes no addresses that are not ASCII", os.EX_UNAVAILABLE)
            return [*options, "SMTPUTF8"]
    return options


def send_data(server: smtplib.SMTP, parts: Iterable[bytes]) -> tuple[int, bytes]:
    """Return the server's last word on a message; it never holds all of it in memory."""
    code, text = server.docmd("DATA")
    if code != 354:
        return code, text
    for piece in stuffed(parts):
        server.send(piece)
    try:
        return server.getreply()
    except OSError as error:
        raise NoAnswer(str(error)) from error


def require(reply: tuple[int, bytes], what: str) -> None:
    """NotDelivered unless it was accepted."""
    code, text = reply
    if code // 100 != 2:
        said = text.decode("utf-8", "replace")
        raise NotDelivered(f"{what} was refused: {code} {said}", exit_of(code))


def exit_of(code: int) -> int:
    """Return the number of sysexits.h for an SMTP reply that is a refusal."""
    return os.EX_UNAVAILABLE if code // 100 == 5 else os.EX_TEMPFAIL


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Turn what smtplib raises into NotDelivered."""
    try:
        yield
    except NotDelivered as error:
        raise NotDelivered(f"{place}: {error}", error.exit, unsure=error.unsure) from None
    except NoAnswer:
        text = "did not say whether it has the message"
        raise NotDelivered(f"{place}: {text}", os.EX_TEMPFAIL, unsure=True) from None
    except smtplib.SMTPAuthenticationError as error:
        raise NotDelivered(f"{place}: refuses user or password ({error.smtp_code})", os.EX_NOPERM) from None
    except smtplib.SMTPResponseException as error:
        raise NotDelivered(f"{place}: {error.smtp_code} {error.smtp_error!r}", exit_of(error.smtp_code)) from None
    except smtplib.SMTPException as error:
        raise NotDelivered(f"{place}: {error}", os.EX_TEMPFAIL) from None
    except OSError as error:
        raise NotDelivered(f"{place}: {error.strerror or error}", os.EX_TEMPFAIL) from None


def default_sender() -> str:
    return f"{getpass.getuser()}@{socket.getfqdn()}"
