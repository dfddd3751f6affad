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


class NotDelivered(IbpfsError):
    """Nobody has the message; `exit` is a number of sysexits.h."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit = code


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
        try:
            process = subprocess.Popen([self.path, *envelope.words], stdin=subprocess.PIPE)
        except OSError as error:
            raise NotDelivered(f"{self.path}: {error.strerror}", os.EX_TEMPFAIL) from None
        with process:
            broken = _fill(process, message)
        if process.returncode or broken:
            code = process.returncode if process.returncode > 0 else os.EX_TEMPFAIL
            raise NotDelivered(f"{self.path}: ended with {process.returncode}", code)


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
            require(server.mail(envelope.sender or default_sender(), _options(server, message)), "the sender")
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


def _options(server: smtplib.SMTP, message: Buffer) -> list[str]:
    options = [f"SIZE={len(message)}"] if server.has_extn("size") else []
    return [*options, "BODY=8BITMIME"] if server.has_extn("8bitmime") else options


def send_data(server: smtplib.SMTP, parts: Iterable[bytes]) -> tuple[int, bytes]:
    """Return the server's last word on a message; it never holds all of it in memory."""
    code, text = server.docmd("DATA")
    if code != 354:
        return code, text
    for piece in stuffed(parts):
        server.send(piece)
    return server.getreply()


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
        raise NotDelivered(f"{place}: {error}", error.exit) from None
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
