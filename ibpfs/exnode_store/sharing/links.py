"""Links: where a share's record lies, and the secret that opens it. Pure.

`ibpfs:LOCATOR#FRAGMENT`, or `https://GATEWAY/s/LOCATOR#FRAGMENT`. Both halves carry a checksum, so that a link that was
cut off or mangled on the way is told from one whose record does not open.
"""

import base64
import binascii
import hashlib
import hmac
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from ibpfs.depot.address import Address
from ibpfs.depot.capability import BadCapability, Key, parse_place, render_place
from ibpfs.errors import UsageError
from ibpfs.exnode_store.ledger_rows import pack_key, unpack_key

SECRET_SIZE: Final = 32
ID_SIZE: Final = 10
MAX_PLACES: Final = 8
#: Of a whole link; one to 60 recipients is about 10,000.
MAX_LINK: Final = 32 * 1024

_FORMAT: Final = 1
#: format, id, when it expires, number of places
_HEAD: Final = struct.Struct(">B10sQB")
#: flags, port, length of the host, length of the key
_PLACE: Final = struct.Struct(">BHBH")
_SECURE: Final = 1
_LAST_TIME: Final = 1 << 40
_CHECK: Final = 4
_PASSPHRASE, _RECIPIENTS = 1, 2
#: age's header and the secret itself, for up to about a hundred recipients
_MAX_WRAPPED: Final = 20 * 1024

_TEXT: Final = r"[A-Za-z0-9_-]"
_LINK: Final = re.compile(rf"(ibpfs:|https?://[^\s<>\"'#?]{{1,300}}/s/)({_TEXT}+)(?:/[^\s<>\"'#]{{0,1000}})?#({_TEXT}+)")
_WHOLE: Final = re.compile(rf"(?:ibpfs:|https?://[^\s<>\"'#?]{{1,300}}/s/)({_TEXT}*)(?:/[^\s#]*)?(?:#(.*))?")
#: Mail programs break what is long; between angle brackets the blanks are none of the link's.
_BRACKETED: Final = re.compile(r"<((?:ibpfs:|https?://)[^<>]{1,40000})>")
_REWRITTEN: Final = re.compile(r"(?:ibpfs(?::|%3A)|%2Fs%2F)[A-Za-z0-9_%-]+%23", re.IGNORECASE)


class BadLink(UsageError):
    """A text is no link, or not a whole one. The message never repeats it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A depot, and the read capability of a copy of the record on it."""

    address: Address
    read: Key


@dataclass(frozen=True, slots=True)
class Locator:
    """What stands before '#': no secret of the content. `expires`: Unix seconds, as first agreed; later extensions
    are in the record."""

    share: bytes
    expires: int
    places: tuple[Place, ...]

    @property
    def id(self) -> str:
        return share_name(self.share)

    def render(self) -> str:
        body = _HEAD.pack(_FORMAT, self.share, self.expires, len(self.places))
        for place in self.places:
            host, key = place.address.host.encode("ascii"), pack_key(place.read).encode("ascii")
            flags = _SECURE if place.address.secure else 0
            body += _PLACE.pack(flags, place.address.port, len(host), len(key)) + host + key
        return encode(body + _checksum(b"locator", body))

    @classmethod
    def parse(cls, text: str) -> "Locator":
        body = _checked(b"locator", _decode(text), b"")
        try:
            version, share, expires, count = _HEAD.unpack_from(body)
            if version != _FORMAT:
                raise BadLink("the link is of a newer ibpfs")
            places, rest = [], body[_HEAD.size :]
            if not 1 <= count <= MAX_PLACES or expires >= _LAST_TIME:
                raise ValueError
            for _ in range(count):
                place, rest = _take_place(rest)
                places.append(place)
            if rest:
                raise ValueError
        except (struct.error, ValueError, BadCapability):
            raise BadLink("the link names no share") from None
        return cls(share, expires, tuple(places))


def _take_place(body: bytes) -> tuple[Place, bytes]:
    flags, port, host_length, key_length = _PLACE.unpack_from(body)
    at = _PLACE.size
    end = at + host_length + key_length
    if end > len(body) or flags & ~_SECURE:
        raise ValueError
    host, port = parse_place(render_place(body[at : at + host_length].decode("ascii"), port))
    read = unpack_key(body[at + host_length : end].decode("ascii"))
    return Place(Address(host, port, secure=flags == _SECURE), read), body[end:]


@dataclass(frozen=True, slots=True)
class Fragment:
    """What stands behind '#'. One of `secret` and `wrapped` (age: the secret for its recipients) is there."""

    secret: bytes | None = field(default=None, repr=False)
    wrapped: bytes | None = field(default=None, repr=False)
    passphrase: bool = False

    def render(self, locator: Locator) -> str:
        flags = (_PASSPHRASE if self.passphrase else 0) | (0 if self.wrapped is None else _RECIPIENTS)
        payload = self.secret if self.wrapped is None else self.wrapped
        assert payload is not None
        body = bytes([flags]) + payload
        return encode(body + _checksum(b"fragment", locator.render().encode(), body))

    @classmethod
    def parse(cls, text: str, locator: Locator) -> "Fragment":
        body = _checked(b"fragment", _decode(text), locator.render().encode())
        flags, payload = body[0] if body else 0xFF, body[1:]
        if flags & ~(_PASSPHRASE | _RECIPIENTS):
            raise BadLink("the link is of a newer ibpfs")
        if flags & _RECIPIENTS:
            if not 0 < len(payload) <= _MAX_WRAPPED:
                raise BadLink("the link's secret is of no use")
            return cls(wrapped=payload, passphrase=bool(flags & _PASSPHRASE))
        if len(payload) != SECRET_SIZE:
            raise BadLink("the link's secret is of no use")
        return cls(secret=payload, passphrase=bool(flags & _PASSPHRASE))


@dataclass(frozen=True, slots=True, repr=False)
class Link:
    """All of it is a secret."""

    locator: Locator
    fragment: Fragment

    def render(self, gateway: str | None = None) -> str:
        """As `ibpfs:...`, or through the gateway with this URL."""
        lead = "ibpfs:" if gateway is None else f"{gateway.rstrip('/')}/s/"
        return f"{lead}{self.locator.render()}#{self.fragment.render(self.locator)}"

    @classmethod
    def parse(cls, text: str) -> "Link":
        """BadLink says what is wrong with it."""
        text = "".join(text.split()).strip("<>")
        if len(text) > MAX_LINK:
            raise BadLink("not a link: too long")
        found = _WHOLE.fullmatch(text)
        if found is None:
            raise BadLink("not a link: those begin with ibpfs: or https://GATEWAY/s/")
        locator, fragment = found.groups()
        if not fragment:
            raise BadLink("the link was cut off: what follows its '#' is missing")
        parsed = Locator.parse(locator)
        return cls(parsed, Fragment.parse(fragment, parsed))

    def __repr__(self) -> str:
        return f"<link {self.locator.id}>"


def find_links(text: str) -> Iterator[str]:
    """Yield what looks like links in any text, each once, whole ones or not."""
    seen: set[str] = set()
    for found in _candidates(text):
        link = "".join(found.split())
        key = link.rpartition("#")[2] + link.partition("#")[0].rpartition("/")[2].removeprefix("ibpfs:")
        if key not in seen:
            seen.add(key)
            yield link


def _candidates(text: str) -> Iterator[str]:
    for found in _BRACKETED.finditer(text):
        inner = _LINK.fullmatch("".join(found.group(1).split()))
        if inner is not None:
            yield inner.group()
    text = _BRACKETED.sub(" ", text)
    if _REWRITTEN.search(text):  # by a mail server that checks links
        text += "\n" + unquote(text)
    for found in _LINK.finditer(text):
        yield found.group()


def share_name(share: bytes) -> str:
    """How a person calls a share: 16 letters and digits."""
    return base64.b32encode(share).decode("ascii").lower()


def encode(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def decode(text: str) -> bytes:
    """The reverse; ValueError where `encode` would not have written that."""
    if re.fullmatch(f"{_TEXT}*", text) is None or len(text) % 4 == 1:
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(data) != text:
        raise ValueError("not base64url")
    return data


def _decode(text: str) -> bytes:
    try:
        return decode(text)
    except (ValueError, binascii.Error):
        raise BadLink("the link was cut off or mangled on the way") from None


def _checksum(purpose: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(b"ibpfs-share/1 " + purpose + b"\0" + b"\0".join(parts)).digest()[:_CHECK]


def _checked(purpose: bytes, data: bytes, context: bytes) -> bytes:
    body, check = data[:-_CHECK], data[-_CHECK:]
    parts = (context, body) if context else (body,)
    if not body or not hmac.compare_digest(check, _checksum(purpose, *parts)):
        raise BadLink("the link was cut off or mangled on the way")
    return body
