"""Sending one message, as `ibpfs mail` and `ibpfs-sendmail` do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from ibpfs.errors import IbpfsError, UsageError
from ibpfs.mail.completing import completed
from ibpfs.mail.delivery import Envelope, NotDelivered, Program, Smarthost, default_sender
from ibpfs.mail.handling import Deferred, Handled, handle, take_back
from ibpfs.mail.recipients import recipients_of, sender_of, without_blind_copies
from ibpfs.mail.rewriting import line_end
from ibpfs.mail.sendmail_words import Invocation
from ibpfs.mail.settings import Settings
from ibpfs.mail.spooled import cut_at_dot, mapped, open_spool
from ibpfs.mail.structure import Buffer, scan
from ibpfs_tools.exits import ExitWith
from ibpfs_tools.mail_sharing import MountSharer


@dataclass(frozen=True)
class Sending:
    """What was said on the command line and in mail.toml."""

    settings: Settings
    invocation: Invocation

    def send(self, source: IO[bytes]) -> Handled:
        """Read a message, rewrite it, hand it on. ExitWith with a number of sysexits.h: then nobody has it."""
        with sysexits(), received(source, self.invocation) as data:
            sharer = MountSharer(self.settings)
            next_hop = self.settings.next_hop
            envelope = self._envelope(data, next_hop)
            handled = handle(data, self.settings.rules, sharer, defer=self.settings.on_error == "defer")
            try:
                next_hop.deliver(self._ready(handled.message, envelope, next_hop), envelope)
            except BaseException as error:
                if not (isinstance(error, NotDelivered) and error.unsure):
                    take_back(handled.shares, sharer)
                raise
            return Handled(b"", handled.shares, handled.said)

    def _envelope(self, data: Buffer, next_hop: Program | Smarthost) -> Envelope:
        asked = self.invocation
        sender, recipients = asked.sender, asked.recipients
        if not recipients and not asked.reads_recipients:
            raise UsageError("no recipients: name them, or -t for those in the message")
        if isinstance(next_hop, Smarthost):
            header = data[: scan(data).body]
            if asked.reads_recipients:
                recipients = tuple(dict.fromkeys([*recipients, *recipients_of(header)]))
            sender = sender_of(header) if sender is None else sender
        return Envelope(sender, recipients, asked.words)

    def _ready(self, message: Buffer, envelope: Envelope, next_hop: Program | Smarthost) -> Buffer:
        """As an SMTP server wants it, and a sendmail makes it: no blind copies, and all fields that must be there."""
        if isinstance(next_hop, Program):
            return message
        body = scan(message).body
        header = without_blind_copies(message[:body])
        sender = (envelope.sender or "").strip("<>") or default_sender()
        return completed(header, sender, self.invocation.name, line_end(message)) + message[body:]


@contextmanager
def received(source: IO[bytes], asked: Invocation) -> Iterator[Buffer]:
    """Give the message that `source` has."""
    with open_spool() as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        if not asked.ignores_dots:
            cut_at_dot(file)
        with mapped(file) as data:
            yield data


@contextmanager
def sysexits() -> Iterator[None]:
    """Have errors end the process with the numbers that mail programs understand."""
    try:
        yield
    except NotDelivered as error:
        raise ExitWith(str(error), error.exit) from None
    except Deferred as error:
        raise ExitWith(str(error), os.EX_TEMPFAIL) from None
    except UsageError as error:
        raise ExitWith(str(error), os.EX_USAGE) from None
    except ExitWith:
        raise
    except IbpfsError as error:
        raise ExitWith(str(error), os.EX_TEMPFAIL) from None
    except OSError as error:
        raise ExitWith(f"{error.strerror or error}", os.EX_TEMPFAIL) from None
