"""Finding links in what a mail program pipes: a whole message, encoded as it travelled, or only its text."""

import email
import html
import re
from collections.abc import Iterator
from email.errors import MessageError
from typing import TYPE_CHECKING

from ibpfs.exnode_store.sharing.links import find_links

if TYPE_CHECKING:
    from email.message import Message

#: A `.ibpfs` file among the attachments; a mailer that does not know its type calls it the other.
_LINK_FILES = ("application/vnd.ibpfs.link+json", "application/octet-stream")
_LONGEST_FILE = 1024 * 1024
_TAG = re.compile(r"<(?!ibpfs:|https?:)[^<>]*>")
_TROUBLE = (MessageError, LookupError, ValueError, TypeError, AttributeError, RecursionError)


def links_in(data: bytes) -> list[str]:
    """Return all links in a message or a text, each once, those for programs first; whole ones or not."""
    return list(find_links("\n".join(_texts(data)))) or list(find_links(data.decode("utf-8", "replace")))


def _texts(data: bytes) -> list[str]:
    try:
        parts = list(email.message_from_bytes(data).walk())
        return [text for look in (_external, _written) for part in parts for text in look(part)]
    except _TROUBLE:  # of the parser, about which nobody can do anything
        return []


def _external(part: "Message[str, str]") -> Iterator[str]:
    url = part.get_param("url") if part.get_content_type() == "message/external-body" else None
    if isinstance(url, str):
        yield f"<{''.join(url.split())}>"


def _written(part: "Message[str, str]") -> Iterator[str]:
    is_text = part.get_content_maintype() == "text"
    if not is_text and part.get_content_type() not in _LINK_FILES:
        return
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes) or (not is_text and len(payload) > _LONGEST_FILE):
        return
    text = _decoded(payload, str(part.get_content_charset("utf-8")))
    if part.get_content_subtype() == "html":
        yield html.unescape(text)  # links are in attributes
        text = html.unescape(_TAG.sub(" ", text))
    yield text


def _decoded(payload: bytes, charset: str) -> str:
    try:
        return payload.decode(charset, "replace")
    except (LookupError, ValueError):
        return payload.decode("utf-8", "replace")
