"""Sending one message, as `ibpfs mail` and `ibpfs-sendmail` do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from ibpfs.errors import IbpfsError, UsageError
from ibpfs.mail.delivery import Envelope, NotDelivered, Program, Smarthost
from ibpfs.mail.handling import Deferred, Handled, handle, take_back
from ibpfs.mail.recipients import recipients_of, without_blind_copies
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
            envelope, wanted = self._envelope(data, next_hop)
            handled = handle(data, self.settings.rules, sharer, defer=self.settings.on_error == "defer")
            try:
                message = _without_blind_copies(handled.message) if wanted else handled.message
                next_hop.deliver(message, envelope)
            except BaseException:
                take_back(handled.shares, sharer)
                raise
            return Handled(b"", handled.shares, handled.said)

    def _envelope(self, data: Buffer, next_hop: Program | Smarthost) -> tuple[Envelope, bool]:
        """And whether blind copies are ours to take out: a sendmail that is told -t does so itself."""
        asked = self.invocation
        recipients = asked.recipients
        taken = isinstance(next_hop, Smarthost) and asked.reads_recipients
        if taken:
            recipients = tuple(dict.fromkeys([*recipients, *recipients_of(data[: scan(data).body])]))
        elif not recipients and not asked.reads_recipients:
            raise UsageError("no recipients: name them, or -t for those in the message")
        return Envelope(asked.sender, recipients, asked.words), taken


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


def _without_blind_copies(message: Buffer) -> bytes:
    body = scan(message).body
    return without_blind_copies(message[:body]) + message[body:]


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
