"""A message on its way: what it becomes, and what is done when that goes wrong. Nothing of it is ever lost: the
original is sent, or nothing is and the sender is told to try again.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ibpfs.errors import IbpfsError
from ibpfs.mail.blocks import Shared
from ibpfs.mail.checking import check
from ibpfs.mail.planning import Attachment, Plan, Rules, make_plan
from ibpfs.mail.rewriting import rewrite
from ibpfs.mail.structure import Buffer, scan

_log = logging.getLogger(__name__)


class Sharer(Protocol):
    """Who makes links."""

    def share(self, name: str, size: int, pieces: Iterator[bytes]) -> Shared:
        """Store a file and return its link. IbpfsError or OSError when that cannot be done."""

    def revoke(self, ids: Sequence[str]) -> None:
        """Take links back that nobody was given."""


class Deferred(IbpfsError):
    """The message could not be rewritten, and is not to go as it is; nothing was sent."""


@dataclass(frozen=True)
class Handled:
    """What is to be sent, the links in it, and lines for a person."""

    message: Buffer
    shares: tuple[Shared, ...] = ()
    said: tuple[str, ...] = ()
    trouble: str = ""  # why it is the original


def handle(data: Buffer, rules: Rules, sharer: Sharer, *, defer: bool) -> Handled:
    """Return the message with links for files; on any trouble the original, or Deferred where `defer` says so."""
    shares: list[Shared] = []
    plan: Plan | None = None
    try:
        plan = make_plan(data, scan(data), rules)
        if not plan.attachments:
            return Handled(data, said=_kept(plan))
        for one in plan.attachments:
            shares += [_share(data, one, sharer)]
        result = rewrite(data, plan, shares)
        check(data, plan, result)
    except Exception as error:
        if not isinstance(error, IbpfsError | OSError):
            _log.exception("a message could not be rewritten")
        take_back(shares, sharer)
        reason = _reason(error, plan)
        if defer:
            raise Deferred(f"not sent: {reason}") from error
        return Handled(data, said=(f"sent as it was: {reason}",), trouble=reason)
    said = tuple(f"{one.name} ({one.size} bytes) goes as link {one.id}" for one in shares)
    return Handled(result, tuple(shares), (*said, *_kept(plan)))


def _reason(error: Exception, plan: Plan | None) -> str:
    """In a line, without the name of a file on its way: it is read in the logs of mail servers."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    for one in plan.attachments if plan is not None else ():
        text = text.replace(f"/{one.name}", "/...")
    return " ".join(text.split())


def _share(data: Buffer, attachment: Attachment, sharer: Sharer) -> Shared:
    return sharer.share(attachment.name, attachment.size, attachment.read(data))


def _kept(plan: Plan) -> tuple[str, ...]:
    return tuple(f"left as it was: {line}" for line in plan.kept)


def take_back(shares: Sequence[Shared], sharer: Sharer) -> None:
    """Revoke links of a message that was not sent."""
    try:
        if shares:
            sharer.revoke([one.id for one in shares])
    except (IbpfsError, OSError) as error:
        _log.warning("links of a message that was not sent could not be revoked: %s", error)
