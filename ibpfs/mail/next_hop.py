"""The server that a filter gives a message back to: told of each sender and recipient at once, so that its answers
reach who asked, and of the message when it is rewritten.
"""

import smtplib
from collections.abc import Callable
from dataclasses import dataclass, field

from ibpfs.mail.delivery import NoAnswer, send_data
from ibpfs.mail.spooled import pieces
from ibpfs.mail.structure import Buffer

Reply = tuple[int, bytes]
#: Whatever goes wrong on the way: the one before us keeps the message and tries again.
AGAIN: Reply = (451, b"4.4.1 the next mail server does not answer; try again later")
#: It may have it: what the message links to has to stay.
UNSURE: Reply = (451, b"4.4.2 the next mail server did not say whether it has the message; try again later")
_SECONDS = 120.0


@dataclass
class NextHop:
    """One transaction. Blocks; call it in a thread. A connection that was lost while a message came is made anew."""

    host: str
    port: int
    _server: smtplib.SMTP | None = None
    _sender: tuple[str, tuple[str, ...]] = ("", ())
    _recipients: list[str] = field(default_factory=list)

    def mail(self, sender: str, options: tuple[str, ...]) -> Reply:
        self._recipients = []
        self._sender = sender, options
        return self._ask(lambda server: server.mail(sender, self._known(server)))

    def rcpt(self, recipient: str) -> Reply:
        reply = self._ask(lambda server: server.rcpt(recipient))
        if reply[0] // 100 == 2:
            self._recipients.append(recipient)
        return reply

    def data(self, message: Buffer) -> Reply:
        """Return what it says after the last dot, or why it did not come to that."""
        if not self._is_there():
            self.close()
            if not self._again():
                return AGAIN
        reply = self._ask(lambda server: send_data(server, pieces(message)))
        self.close()
        return reply

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _known(self, server: smtplib.SMTP) -> list[str]:
        return [word for word in self._sender[1] if server.has_extn(word.partition("=")[0].replace("BODY", "8bitmime"))]

    def _is_there(self) -> bool:
        return self._server is not None and self._ask(lambda server: server.noop())[0] == 250

    def _again(self) -> bool:
        sender, options = self._sender
        recipients = list(self._recipients)
        replies = [self.mail(sender, options), *map(self.rcpt, recipients)]
        return all(code // 100 == 2 for code, _ in replies)

    def _ask(self, question: Callable[[smtplib.SMTP], Reply]) -> Reply:
        try:
            if self._server is None:
                self._server = smtplib.SMTP(self.host, self.port, timeout=_SECONDS)
                self._server.ehlo_or_helo_if_needed()
            return question(self._server)
        except UnicodeEncodeError:
            return 553, b"5.6.7 an address that is not ASCII, without SMTPUTF8"
        except NoAnswer:
            self.close()
            return UNSURE
        except (smtplib.SMTPException, OSError):
            self.close()
            return AGAIN
