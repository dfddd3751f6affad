"""Who a message is for, when the message itself is to say (`-t`), and the fields that no receiver may see."""

import email
import re
from email.utils import getaddresses

from ibpfs.errors import UsageError

#: Bcc and Resent-Bcc with their continuations, as bytes of a header.
BLIND_COPIES = re.compile(rb"^(?:resent-)?bcc[ \t]*:[^\n]*\n?(?:[ \t][^\n]*\n?)*", re.IGNORECASE | re.MULTILINE)
_LONGEST = 1024 * 1024
_FIELDS = ("to", "cc", "bcc")


def recipients_of(header: bytes) -> list[str]:
    """Return the addresses in To, Cc and Bcc, each once; in those of Resent- where there are any. UsageError: none."""
    if len(header) > _LONGEST:
        raise UsageError("the message's header is too long to look for recipients")
    message = email.message_from_bytes(header.rstrip(b"\r\n") + b"\n\n")
    resent = any(f"resent-{name}" in message for name in _FIELDS)
    values = [
        str(value) for name in _FIELDS for value in message.get_all(f"resent-{name}" if resent else name, [])
    ]  # fmt: skip
    found = [address for _, address in getaddresses([value.replace("\n", " ") for value in values])]
    usable = [address for address in found if address and not re.search(r"[\s\0]", address)]
    if not usable:
        raise UsageError("the message names no recipients")
    return list(dict.fromkeys(usable))


def sender_of(header: bytes) -> str | None:
    """Return whom the message is from, as far as one address tells; None otherwise."""
    message = email.message_from_bytes(header[:_LONGEST].rstrip(b"\r\n") + b"\n\n")
    for name in ("resent-sender", "resent-from", "sender", "from"):
        found = [address for _, address in getaddresses([str(message.get(name, ""))]) if "@" in address]
        if len(found) == 1 and not re.search(r"[\s\0]", found[0]):
            return found[0]
    return None


def without_blind_copies(header: bytes) -> bytes:
    return BLIND_COPIES.sub(b"", header)
