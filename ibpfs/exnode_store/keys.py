"""The volume's keys: slots that open the master key, epochs under it, and what is derived from them.

master key (random) is wrapped in each slot; each epoch's volume key is wrapped by the master key. A secret never
appears in a repr. Knows no file but what it is handed.
"""

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ibpfs.errors import VolumeError, WrongKey

KEY_SIZE = 32
#: Argon2id: 3 passes over 64 MiB, 4 lanes (RFC 9106, second recommended option).
ARGON2 = {"iterations": 3, "memory_kib": 65536, "lanes": 4}
_ARGON2_LIMITS = {"iterations": 64, "memory_kib": 4 * 1024 * 1024, "lanes": 64}

#: What every purpose begins with.
_OURS = b"ibpfs/1 "

Slot = dict[str, Any]


def derive(key: bytes, purpose: bytes, length: int = KEY_SIZE) -> bytes:
    """HKDF-SHA256 with `purpose` as info."""
    if length > KEY_SIZE:
        return HKDF(hashes.SHA256(), length, None, _OURS + purpose).derive(key)
    return _expand(_extract(key), purpose)[:length]


# RFC 5869 with one block, in the two steps that it has: of the first each slice of an epoch needs the same. The second
# takes 1.4 us, both together 4, and 20 with the library's objects.


def _extract(key: bytes) -> hmac.HMAC:
    return hmac.new(hmac.digest(bytes(KEY_SIZE), key, "sha256"), digestmod="sha256")


def _expand(extracted: hmac.HMAC, purpose: bytes) -> bytes:
    block = extracted.copy()
    block.update(_OURS + purpose + b"\x01")
    return block.digest()


@dataclass(frozen=True)
class VolumeKeys:
    """The opened keys of one volume: epoch number -> volume key."""

    epochs: Mapping[int, bytes] = field(repr=False)
    master: bytes = field(repr=False)
    _extracted: dict[int, hmac.HMAC] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def epoch(self) -> int:
        """The epoch under which new slices are sealed."""
        return max(self.epochs)

    def slice_key(self, epoch: int, slice_id: bytes) -> bytes:
        extracted = self._extracted.get(epoch)
        if extracted is None:
            extracted = self._extracted[epoch] = _extract(self._volume_key(epoch))
        return _expand(extracted, b"slice " + slice_id)

    def spool_key(self, epoch: int) -> bytes:
        """Wraps the random keys of spool files."""
        return derive(self._volume_key(epoch), b"spool")

    def shares_key(self, epoch: int) -> bytes:
        """Seals what the owner notes of its shares."""
        return derive(self._volume_key(epoch), b"shares")

    @property
    def sender_seed(self) -> bytes:
        """Of the Ed25519 key by which receivers know this volume's shares."""
        return derive(self.master, b"sender")

    def wrap_import(self, epoch: int, slice_id: bytes, key: bytes) -> bytes:
        """The key of a slice that another volume sealed, as it stands in our store."""
        nonce = os.urandom(12)
        return nonce + AESGCM(derive(self._volume_key(epoch), b"imports")).encrypt(nonce, key, slice_id)

    def unwrap_import(self, epoch: int, slice_id: bytes, wrapped: bytes) -> bytes:
        try:
            return AESGCM(derive(self._volume_key(epoch), b"imports")).decrypt(wrapped[:12], wrapped[12:], slice_id)
        except (InvalidTag, ValueError):
            raise VolumeError("the key of an imported slice is damaged") from None

    def _volume_key(self, epoch: int) -> bytes:
        try:
            return self.epochs[epoch]
        except KeyError:
            raise VolumeError(f"the volume has no key of epoch {epoch}") from None


def make_keys() -> VolumeKeys:
    """Return fresh random keys, one epoch."""
    return VolumeKeys({1: os.urandom(KEY_SIZE)}, os.urandom(KEY_SIZE))


def wrap_epochs(keys: VolumeKeys, uuid: bytes) -> list[dict[str, Any]]:
    """Return the epochs as they stand in volume.toml."""
    return [
        {"epoch": epoch, "wrapped": _wrap(keys.master, key, uuid + b"epoch %d" % epoch)}
        for epoch, key in sorted(keys.epochs.items())
    ]


def make_slot(kind: str, secret: bytes, keys: VolumeKeys, uuid: bytes) -> Slot:
    """Return a slot of `kind` 'keyfile', 'recovery' (random secrets) or 'passphrase' (Argon2id)."""
    salt = os.urandom(16)
    slot: Slot = {"kind": kind, "salt": salt.hex()}
    if kind == "passphrase":
        slot |= ARGON2
    slot["wrapped"] = _wrap(_slot_key(slot, secret), keys.master, uuid + b"slot " + kind.encode())
    return slot


def open_slots(
    slots: Sequence[Slot], epochs: Sequence[Mapping[str, Any]], kind: str, secret: bytes, uuid: bytes
) -> VolumeKeys:
    """Return the keys, opened by the first slot of `kind` that `secret` fits. Raises WrongKey when none does.

    VolumeError when what the slots open is damaged.
    """
    for slot in slots:
        if slot.get("kind") != kind:
            continue
        try:
            master = _unwrap(_slot_key(slot, secret), str(slot["wrapped"]), uuid + b"slot " + kind.encode())
        except InvalidTag:
            continue
        except (KeyError, TypeError, ValueError) as error:
            raise VolumeError("a key slot of this volume is damaged") from error
        return VolumeKeys(dict(_open_epoch(master, entry, uuid) for entry in epochs), master)
    raise WrongKey(f"the {_SPOKEN.get(kind, kind)} does not open this volume")


_SPOKEN = {"keyfile": "key file", "recovery": "recovery string"}


def keep_secret(slot: Slot, secret: bytes, keys: VolumeKeys, uuid: bytes) -> None:
    """Let the slot's secret be told again by who can open the volume."""
    slot["kept"] = _wrap(keys.master, secret, uuid + b"kept secret")


def kept_secret(slots: Sequence[Slot], keys: VolumeKeys, uuid: bytes) -> bytes | None:
    """The secret of the newest recovery slot; None when a release that did not keep it made it."""
    for slot in reversed(slots):
        if slot.get("kind") == "recovery" and "kept" in slot:
            try:
                return _unwrap(keys.master, str(slot["kept"]), uuid + b"kept secret")
            except (InvalidTag, ValueError) as error:
                raise VolumeError("a key slot of this volume is damaged") from error
    return None


def wrap_checkpoint_key(keys: VolumeKeys, key: bytes, uuid: bytes) -> str:
    """The key that seals checkpoints, as it stands in the head of every record log."""
    return _wrap(keys.master, key, uuid + b"checkpoints")


def unwrap_checkpoint_key(keys: VolumeKeys, wrapped: str, uuid: bytes) -> bytes:
    try:
        return _unwrap(keys.master, wrapped, uuid + b"checkpoints")
    except (InvalidTag, ValueError) as error:
        raise VolumeError("the key of the checkpoints is damaged, though the secret fits") from error


def _open_epoch(master: bytes, entry: Mapping[str, Any], uuid: bytes) -> tuple[int, bytes]:
    try:
        epoch = int(entry["epoch"])
        return epoch, _unwrap(master, str(entry["wrapped"]), uuid + b"epoch %d" % epoch)
    except (InvalidTag, KeyError, TypeError, ValueError) as error:
        raise VolumeError("a key of this volume is damaged, though the secret fits") from error


def _slot_key(slot: Slot, secret: bytes) -> bytes:
    salt = bytes.fromhex(str(slot["salt"]))
    if slot["kind"] != "passphrase":
        return derive(secret, b"slot " + salt)
    cost = {name: int(slot[name]) for name in ARGON2}
    if any(not 0 < cost[name] <= limit for name, limit in _ARGON2_LIMITS.items()):
        raise VolumeError("volume.toml asks for an unreasonable Argon2id cost")
    argon2 = Argon2id(
        salt=salt, length=KEY_SIZE, iterations=cost["iterations"], lanes=cost["lanes"], memory_cost=cost["memory_kib"]
    )
    return argon2.derive(secret)


def _wrap(key: bytes, secret: bytes, context: bytes) -> str:
    nonce = os.urandom(12)
    return (nonce + AESGCM(key).encrypt(nonce, secret, context)).hex()


def _unwrap(key: bytes, wrapped: str, context: bytes) -> bytes:
    raw = bytes.fromhex(wrapped)
    return AESGCM(key).decrypt(raw[:12], raw[12:], context)
