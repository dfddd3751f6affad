"""A share's record as bytes in a record log: numbered entries, each with a public and a sealed part, signed. Pure.

The last whole entry counts. Every entry is signed by the share's own key, whose hash is the share's id: so a depot can
withhold a record, but not make one up.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ibpfs.depot.address import Address
from ibpfs.errors import DataError, UsageError, WrongKey
from ibpfs.exnode_store.sharing.contents import LAST_TIME
from ibpfs.exnode_store.sharing.links import ID_SIZE, decode, encode, share_name
from ibpfs.exnode_store.sharing.share_keys import BadStretching, Stretching

FORMAT_NAME: Final = "ibpfs-share/1"
MAGIC: Final = b"IBPr"
RECORD, REVOKED = 1, 2
#: magic, format, kind, reserved, number, length of the public part, length of the sealed part
HEADER: Final = struct.Struct(">4sBBHIII")
SIGNATURE_SIZE: Final = 64
MAX_PUBLIC: Final = 64 * 1024
MAX_SEALED: Final = 64 * 1024 * 1024
MAX_DEPOTS: Final = 256
_FORMAT: Final = 1
#: Of any entry.
BEGINNING: Final = MAGIC + bytes([_FORMAT])
_NONCE: Final = 12
_PIN: Final = 32


class BadRecord(DataError):
    """What lies where a share's record should be is none, or somebody else's."""


@dataclass(frozen=True, slots=True)
class Public:
    """What depots and gateways may know. `key`: the share's Ed25519 public key; `depots`: all that the record and the
    shared bytes lie on; `pins`: SHA-256 of the certificates of those that are known by one; times in Unix seconds."""

    key: bytes
    created: int
    expires: int
    depots: tuple[Address, ...]
    stretching: Stretching | None = None
    pins: Mapping[Address, bytes] = field(default_factory=dict)

    @property
    def share(self) -> bytes:
        return share_id(self.key)

    def to_json(self) -> bytes:
        row = {
            "format": FORMAT_NAME, "id": share_name(self.share), "key": encode(self.key), "created": self.created,
            "expires": self.expires, "depots": [str(one) for one in self.depots],
            "passphrase": None if self.stretching is None else self.stretching.as_row(),
        }  # fmt: skip
        if self.pins:
            known = [self.pins.get(one) for one in self.depots]
            row["pins"] = [None if pin is None else encode(pin) for pin in known]
        return json.dumps(row, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> "Public":
        """Raises BadRecord."""
        try:
            row: Any = json.loads(data)
            if row["format"] != FORMAT_NAME:
                raise BadRecord("the share's record is of a newer ibpfs")
            key, depots = decode(row["key"]), row["depots"]
            times = row["created"], row["expires"]
            if len(key) != 32 or not isinstance(depots, list) or not 1 <= len(depots) <= MAX_DEPOTS:
                raise ValueError
            if not all(type(one) is int and 0 <= one < LAST_TIME for one in times):
                raise ValueError
            stretching = None if row["passphrase"] is None else Stretching.from_row(row["passphrase"])
            addresses = tuple(remote(str(one)) for one in depots)
            pins = _pins(addresses, row.get("pins"))
        except BadStretching as error:
            raise BadRecord(f"the share's record makes no sense: {error}") from None
        except (KeyError, TypeError, ValueError, RecursionError, UsageError):
            raise BadRecord("the share's record makes no sense") from None
        return cls(key, *times, addresses, stretching, pins)


def _pins(depots: tuple[Address, ...], row: Any) -> dict[Address, bytes]:
    """Raises ValueError, TypeError."""
    if row is None:
        return {}
    pins = {one: decode(text) for one, text in zip(depots, row, strict=True) if text is not None}
    if not all(one.secure and len(pin) == _PIN for one, pin in pins.items()):
        raise ValueError
    return pins


@dataclass(frozen=True, slots=True)
class Lengths:
    """What an entry's header says."""

    kind: int
    number: int
    public: int
    sealed: int

    @property
    def body(self) -> int:
        """Bytes that follow the header."""
        return self.public + self.sealed + SIGNATURE_SIZE


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry whose signature is right. `raw`: all of its bytes, as they lie on the depot."""

    kind: int
    number: int
    public: Public
    sealed: bytes
    raw: bytes

    def open(self, key: bytes) -> bytes:
        """Return the sealed part in clear. WrongKey when the key is another one."""
        nonce, data = self.sealed[:_NONCE], self.sealed[_NONCE:]
        public = self.raw[HEADER.size : len(self.raw) - SIGNATURE_SIZE - len(self.sealed)]
        try:
            return AESGCM(key).decrypt(nonce, data, _context(self.number, public))
        except (InvalidTag, ValueError):
            raise WrongKey("the key does not open the share's record") from None


def share_id(public_key: bytes) -> bytes:
    return hashlib.sha256(b"ibpfs-share/1 id\0" + public_key).digest()[:ID_SIZE]


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def remote(text: str) -> Address:
    """A depot that others can go to. UsageError: no socket of one machine."""
    address = Address.parse(text)
    if address.path is not None:
        raise UsageError("a socket of one machine is no depot for others")
    return address


def make_entry(
    signer: Ed25519PrivateKey, number: int, public: Public, clear: bytes, key: bytes, nonce: bytes
) -> bytes:
    """Return an entry; `nonce` must never be used twice with `key`."""
    text = public.to_json()
    sealed = nonce + AESGCM(key).encrypt(nonce, clear, _context(number, text))
    if len(text) > MAX_PUBLIC or len(sealed) > MAX_SEALED:
        raise UsageError("too much for one link: share a smaller directory")
    return _signed(signer, RECORD, number, text, sealed)


def make_revocation(signer: Ed25519PrivateKey, number: int, public: Public) -> bytes:
    """What stands in place of the record when the share was revoked."""
    return _signed(signer, REVOKED, number, public.to_json(), b"")


def _signed(signer: Ed25519PrivateKey, kind: int, number: int, public: bytes, sealed: bytes) -> bytes:
    head = HEADER.pack(MAGIC, _FORMAT, kind, 0, number, len(public), len(sealed))
    body = head + public + sealed
    return body + signer.sign(_SIGNED + body)


def parse_header(data: bytes) -> Lengths:
    """Raises BadRecord."""
    try:
        magic, version, kind, _, number, public, sealed = HEADER.unpack(data)
    except struct.error:
        raise BadRecord("the share's record is cut short") from None
    if magic != MAGIC:
        raise BadRecord("there is no share's record where the link points")
    if version != _FORMAT or kind not in (RECORD, REVOKED):
        raise BadRecord("the share's record is of a newer ibpfs")
    if public > MAX_PUBLIC or sealed > MAX_SEALED:
        raise BadRecord("the share's record is larger than any may be")
    return Lengths(kind, number, public, sealed)


def parse_entry(data: bytes, share: bytes) -> LogEntry:
    """The entry that `data` begins with, if it is one of this share. Raises BadRecord."""
    lengths = parse_header(data[: HEADER.size])
    end = HEADER.size + lengths.body
    if len(data) < end:
        raise BadRecord("the share's record is cut short")
    raw, signed = data[:end], end - SIGNATURE_SIZE
    public = Public.from_json(raw[HEADER.size : HEADER.size + lengths.public])
    if public.share != share:
        raise BadRecord("the record is that of another share")
    try:
        Ed25519PublicKey.from_public_bytes(public.key).verify(raw[signed:], _SIGNED + raw[:signed])
    except (InvalidSignature, ValueError):
        raise BadRecord("the share's record was changed by somebody else") from None
    return LogEntry(lengths.kind, lengths.number, public, raw[HEADER.size + lengths.public : signed], raw)


#: Stands before what is signed: the key signs other things, too.
_SIGNED: Final = b"ibpfs-share/1 entry\0"


def _context(number: int, public: bytes) -> bytes:
    return b"ibpfs-share/1 record\0" + number.to_bytes(4, "big") + public
