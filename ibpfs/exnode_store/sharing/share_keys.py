"""From a link's secret to the key of the sealed part: passphrases mixed in, secrets wrapped for recipients.

Knows bytes and strings; no socket, no terminal.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from ibpfs.errors import UsageError
from ibpfs.exnode_store.keys import ARGON2
from ibpfs.exnode_store.sharing.links import decode, encode

KEY_SIZE: Final = 32
PBKDF2, ARGON2ID = "pbkdf2-sha256", "argon2id"
#: Costs an attacker who has the link something, and a telephone about a second.
PBKDF2_ITERATIONS: Final = 1_000_000
#: What a stranger's record may ask for.
_LIMITS: Final = {PBKDF2: {"iterations": 20_000_000},
                  ARGON2ID: {"iterations": 16, "memory_kib": 1024 * 1024, "lanes": 16}}  # fmt: skip
_LEAST_SALT, _MOST_SALT = 16, 64
#: An ssh key begins so.
_PEM: Final = b"-----BEGIN"


class BadStretching(ValueError):
    """A record asks for a passphrase in a way that makes no sense, or costs too much."""


class NoIdentity(UsageError):
    """The link is for recipients, and none of the identities is one of theirs."""


@dataclass(frozen=True, slots=True)
class Stretching:
    """How a passphrase becomes a key; in the record's public part."""

    name: str
    salt: bytes
    costs: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def make(cls, salt: bytes, *, for_browsers: bool) -> "Stretching":
        return cls(PBKDF2, salt, {"iterations": PBKDF2_ITERATIONS}) if for_browsers else cls(ARGON2ID, salt, ARGON2)

    def as_row(self) -> dict[str, Any]:
        return {"name": self.name, "salt": encode(self.salt), **self.costs}

    @classmethod
    def from_row(cls, row: Any) -> "Stretching":
        """Raises BadStretching."""
        try:
            name, salt = row["name"], decode(row["salt"])
            limits = _LIMITS[name]
            costs = {cost: row[cost] for cost in limits}
        except (KeyError, TypeError, ValueError):
            raise BadStretching("the passphrase's function is not known") from None
        if not _LEAST_SALT <= len(salt) <= _MOST_SALT:
            raise BadStretching("the passphrase's salt is of another length")
        if not all(type(costs[cost]) is int and 0 < costs[cost] <= limits[cost] for cost in limits):
            raise BadStretching("the passphrase's function costs too much")
        if name == ARGON2ID and costs["memory_kib"] < 8 * costs["lanes"]:
            raise BadStretching("the passphrase's function makes no sense")
        return cls(name, salt, costs)

    def stretch(self, passphrase: str) -> bytes:
        """Blocks for about a second. In NFC, as browsers and keyboards differ."""
        data = unicodedata.normalize("NFC", passphrase).encode()
        if self.name == PBKDF2:
            return PBKDF2HMAC(hashes.SHA256(), KEY_SIZE, self.salt, self.costs["iterations"]).derive(data)
        return Argon2id(
            salt=self.salt, length=KEY_SIZE, iterations=self.costs["iterations"], lanes=self.costs["lanes"],
            memory_cost=self.costs["memory_kib"],
        ).derive(data)  # fmt: skip


def record_key(secret: bytes, share: bytes, stretched: bytes = b"") -> bytes:
    """The key of the sealed part; `share` is the share's 10-byte id."""
    return HKDF(hashes.SHA256(), KEY_SIZE, share, b"ibpfs-share/1 record").derive(secret + stretched)


def wrap_secret(secret: bytes, recipients: Sequence[str]) -> bytes:
    """Return an age file. `recipients`: age1..., ssh-ed25519 ..., ssh-rsa .... UsageError names what is none."""
    import pyrage  # here alone: whoever needs no age key does without it

    found = [_recipient(text) for text in recipients]
    wrapped: bytes = pyrage.encrypt(secret, found)
    return wrapped


def _recipient(text: str) -> Any:
    import pyrage

    kind: Any = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(text.strip())
    except pyrage.RecipientError:
        raise UsageError(f"{text[:60]!r} is no recipient: age1... or ssh-ed25519 ...") from None


def unwrap_secret(wrapped: bytes, identities: Sequence[bytes], passphrase: Callable[[int], str]) -> bytes:
    """`identities`: contents of files with AGE-SECRET-KEY-1... lines, or of ssh keys; `passphrase`: of the ssh key with
    that number, asked for when no key without one opens it. NoIdentity."""
    protected = [number for number, data in enumerate(identities) if _is_protected(data)]
    found = [one for data in identities for one in _identities(data)]
    if not found and not protected:
        raise NoIdentity("the link is for certain recipients: give the file with your age or ssh key")

    def tries() -> Iterator[list[Any]]:
        yield found
        for number in protected:
            yield _identities(_without_passphrase(identities[number], passphrase(number)))

    for keys in tries():
        secret = _unwrapped(wrapped, keys)
        if secret is not None:
            return secret
    raise NoIdentity("the link is for other recipients: none of these keys opens it")


def _unwrapped(wrapped: bytes, identities: list[Any]) -> bytes | None:
    import pyrage

    try:
        secret: bytes = pyrage.decrypt(wrapped, identities)
    except pyrage.DecryptError:
        return None
    return secret


def _is_protected(data: bytes) -> bool:
    import pyrage

    if not data.lstrip().startswith(_PEM):
        return False
    try:
        pyrage.ssh.Identity.from_buffer(data)
    except pyrage.IdentityError as error:
        return "decrypted" in str(error)
    return False


def _without_passphrase(data: bytes, passphrase: str) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as ssh

    try:
        key = ssh.load_ssh_private_key(data, passphrase.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise NoIdentity("the passphrase of the ssh key is wrong, or it is none that can be read here") from None
    return key.private_bytes(ssh.Encoding.PEM, ssh.PrivateFormat.OpenSSH, ssh.NoEncryption())


def _identities(data: bytes) -> list[Any]:
    import pyrage

    if data.lstrip().startswith(_PEM):
        try:
            return [pyrage.ssh.Identity.from_buffer(data)]
        except pyrage.IdentityError:
            return []
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    found = []
    for line in lines:
        if line.startswith("AGE-SECRET-KEY-1"):
            try:
                found.append(pyrage.x25519.Identity.from_str(line))
            except pyrage.IdentityError:
                raise UsageError("a line with an age key is damaged") from None
    return found
