"""The recovery string: the secret of a key slot, and where the root of the checkpoints is.

Bytes: version (1), secret (24), number of places (1), then for each: flags (1: embedded 1, TLS 2), and, each after its
length (1 byte), address (HOST:PORT), key and type key; at last the first 4 bytes of the SHA-256 of all before. Written
in base32, in groups of four. The first release's had the secret and a check of 8 bits alone; it opens a key slot, too.
A share of one: 2 (1), which set (4, random), how many are needed (1), its point (1), the share of all of these bytes,
and a check as above.
"""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ibpfs.depot.address import Address
from ibpfs.errors import IbpfsError, UsageError
from ibpfs.exnode_store.checkpoints.commits import Place
from ibpfs.exnode_store.checkpoints.sharing_secret import MOST_SHARES, join, split
from ibpfs.exnode_store.creation import RECOVERY_BYTES, is_short_recovery

_VERSION, _SHARE = 1, 2
_SHARE_HEAD = 7
_CHECK = 4
_EMBEDDED, _SECURE = 1, 2
_GROUP = 4
_MOST = 8192

_NOT_ONE = "this is not a recovery string of ibpfs: check what was typed"


@dataclass(frozen=True)
class Recovery:
    """What a string says. `places`: copies of the root, on which depots; empty in a string of the first release."""

    secret: bytes = field(repr=False)
    places: Sequence[Place] = ()


def dump_recovery(recovery: Recovery) -> bytes:
    text = bytearray([_VERSION]) + recovery.secret + bytes([len(recovery.places)])
    for place in recovery.places:
        key, _, type_key = place.read_key.rpartition("/")
        secure = bool(place.pin) or place.address.startswith("ibps://")
        text.append(_EMBEDDED * place.embedded | _SECURE * secure)
        for word in ("" if place.embedded else place.address.partition("://")[2], key, type_key):
            raw = word.encode()
            text += bytes([len(raw)]) + raw
    return _checked(bytes(text))


def _checked(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()[:_CHECK]


def load_recovery(data: bytes) -> Recovery:
    """The reverse of dump_recovery. UsageError."""
    body = data[:-_CHECK]
    if len(body) < RECOVERY_BYTES + 2 or _checked(body) != data:
        raise UsageError(_NOT_ONE)
    if body[0] == _SHARE:
        raise UsageError(f"this is a share of a recovery string; {body[5]} of them are needed, each on its own line")
    if body[0] != _VERSION:
        raise UsageError("this recovery string is of a later release of ibpfs")
    at = 1 + RECOVERY_BYTES
    places = []
    try:
        for _ in range(body[at]):
            flags, at = body[at + 1], at + 2
            words = []
            for _ in range(3):
                words.append(body[at + 1 : at + 1 + body[at]].decode())
                at += 1 + body[at]
            at -= 1
            places.append(_place(flags, *words))
    except (IndexError, UnicodeDecodeError, IbpfsError):
        raise UsageError(_NOT_ONE) from None
    return Recovery(body[1 : 1 + RECOVERY_BYTES], places)


def _place(flags: int, address: str, key: str, type_key: str) -> Place:
    embedded = bool(flags & _EMBEDDED)
    text = "" if embedded else f"{'ibps' if flags & _SECURE else 'ibp'}://{address}"
    if text:
        Address.parse(text)
    return Place(text, embedded, f"{key}/{type_key}")


def format_text(data: bytes) -> str:
    """Bytes as a person keeps them: base32 in groups of four."""
    text = base64.b32encode(data).decode().rstrip("=")
    return "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def parse_text(text: str) -> bytes:
    """The reverse of format_text; case, blanks, line ends and dashes do not matter. UsageError."""
    plain = re.sub(r"[\s-]", "", text[:_MOST]).upper().replace("0", "O").replace("1", "I").replace("8", "B")
    try:
        return base64.b32decode(plain + "=" * (-len(plain) % 8))
    except ValueError:
        raise UsageError(_NOT_ONE) from None


def dump_shares(data: bytes, needed: int, count: int) -> list[bytes]:
    """The bytes of a string in shares. UsageError."""
    if not 2 <= needed <= count <= MOST_SHARES:
        raise UsageError(f"shares are K/N: K of N are needed, from 2 to {MOST_SHARES}")
    which = os.urandom(4)
    return [_checked(bytes([_SHARE]) + which + bytes([needed, point]) + share)
            for point, share in split(data, needed, count).items()]  # fmt: skip


def join_shares(shares: Sequence[bytes]) -> bytes:
    """The bytes of the string. UsageError when they are too few, damaged, or of different strings."""
    found: dict[int, bytes] = {}
    sets = set()
    for share in shares:
        body = share[:-_CHECK]
        if len(body) <= _SHARE_HEAD or _checked(body) != share or body[0] != _SHARE or not body[6]:
            raise UsageError("one of these is not a share of a recovery string: check what was typed")
        sets.add(body[1:6])
        found[body[6]] = body[_SHARE_HEAD:]
    if len(sets) != 1 or len({len(one) for one in found.values()}) != 1:
        raise UsageError("these are shares of different recovery strings")
    needed = sets.pop()[4]
    if len(found) < needed:
        raise UsageError(f"{needed} shares are needed, and here are {len(found)}")
    return join(dict(list(found.items())[:needed]))


def parse_recovery(text: str) -> Recovery:
    """What a string of any release says, or enough shares of one, each on its own line. UsageError."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and parse_text(lines[0])[:1] == bytes([_SHARE]) and len(parse_text(lines[0])) > _SHARE_HEAD:
        return load_recovery(join_shares([parse_text(line) for line in lines]))
    data = parse_text(text)
    if is_short_recovery(data):
        return Recovery(data[:RECOVERY_BYTES])
    return load_recovery(data)
