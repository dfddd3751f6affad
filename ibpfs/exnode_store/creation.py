"""Making a volume: its directories, keys, volume.toml and an exNode store with a root directory.

Knows no terminal and contacts no depot. What it made is removed again when it cannot finish.
"""

import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from ibpfs.config import (
    VolumeConfig,
    VolumePaths,
    dump_config,
    sync_directory,
    write_key_file,
    write_private,
)
from ibpfs.depot.address import Address
from ibpfs.errors import UsageError, VolumeError
from ibpfs.exnode_store import schema, sealing
from ibpfs.exnode_store.database import Database, create_database
from ibpfs.exnode_store.erasure import Code
from ibpfs.exnode_store.inodes import create_root
from ibpfs.exnode_store.keys import (
    VolumeKeys,
    keep_secret,
    make_keys,
    make_slot,
    wrap_checkpoint_key,
    wrap_epochs,
)
from ibpfs.exnode_store.policies import Policy, check_code
from ibpfs.exnode_store.unfinished import marked, take_away

#: The address of an embedded depot that has not told its port yet.
EMBEDDED_ADDRESS = "ibp://127.0.0.1:0"

#: Of the secret in a recovery string.
RECOVERY_BYTES = 24


@dataclass(frozen=True)
class CreatedVolume:
    """What mkfs has to tell. `recovery` opens the volume when key file or passphrase are lost."""

    recovery: bytes = field(repr=False)
    function: str
    copies: int
    min_copies: int
    code: str | None = None


def create_volume(
    paths: VolumePaths,
    *,
    depots: Sequence[str] = (),
    fingerprints: Mapping[str, bytes] = MappingProxyType({}),
    labels: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    copies: int | None = None,
    min_copies: int | None = None,
    code: str | None = None,
    plain: bool = False,
    passphrase: bytes | None = None,
    owner: tuple[int, int] | None = None,
) -> CreatedVolume:
    """Make a volume at `paths`, on an embedded depot when `depots` is empty; `fingerprints` of those with TLS, and
    `labels`, by the depot's address as it was given.

    `copies` defaults to two where there are two depots, `min_copies` to copies - 1 (at least 1), `owner` (of the root
    directory) to the caller. `code`, 'K+M', is what large segments are stored in. Raises VolumeError when something is
    in the way, UsageError.
    """
    addresses = {str(Address.parse(text)): fingerprints.get(text) for text in depots}
    copies, min_copies = _check_copies(depots, copies, min_copies)
    wanted = None if code in (None, "none") else Code.parse(str(code))
    if wanted is not None:
        check_code(wanted, min_copies, max(len(depots), 1))
    policy = Policy(1, copies, min_copies, code=None if wanted is None else str(wanted))
    keys, uuid, function = make_keys(), os.urandom(16), choose_function(plain)
    recovery = new_recovery_secret()
    with _made_or_removed(paths):
        config = VolumeConfig(uuid, schema.FORMAT, plain, _timestamp())
        config.epochs = wrap_epochs(keys, uuid)
        config.slots = [first_slot(paths, keys, uuid, passphrase), recovery_slot(recovery, keys, uuid)]
        text = dump_config(config)
        create_database(paths.store, _facts(config, function, text, owner or (os.getuid(), os.getgid()))
                        | checkpoint_facts(keys, uuid))  # fmt: skip
        with Database(paths.store) as database:
            _fill(database, addresses, policy, owner or (os.getuid(), os.getgid()))
            _label(database, {str(Address.parse(text)): named for text, named in labels.items()})
        sync_file(paths.store)
        write_private(paths.properties, text.encode())  # last: without it there is no volume
    return CreatedVolume(recovery, function, copies, min_copies, policy.code)


def choose_function(plain: bool, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the mapping function for new slices: AES where the CPU does it, ChaCha20 elsewhere."""
    if plain:
        return sealing.FUNCTIONS[sealing.PLAIN_XXH3]
    try:
        flags = re.findall(r"(?im)^(?:flags|features)\s*:(.*)$", cpuinfo.read_text())
    except OSError:
        flags = []
    has_aes = any("aes" in line.split() for line in flags)
    return sealing.FUNCTIONS[sealing.AES_256_GCM if has_aes else sealing.CHACHA20_POLY1305]


def new_recovery_secret() -> bytes:
    return os.urandom(RECOVERY_BYTES)


def is_short_recovery(data: bytes) -> bool:
    """Whether these are the bytes of a recovery string that holds a secret and its check, and nothing else."""
    secret = data[:RECOVERY_BYTES]
    return len(data) == RECOVERY_BYTES + 1 and zlib.crc32(secret) >> 24 == data[-1]


def dump_short_recovery(secret: bytes) -> bytes:
    """A secret with a check of 8 bits."""
    return secret + zlib.crc32(secret).to_bytes(4, "big")[:1]


def _check_copies(depots: Sequence[str], copies: int | None, min_copies: int | None) -> tuple[int, int]:
    places = [Address.parse(text).place for text in depots]
    if len(set(places)) != len(places):
        raise UsageError("a depot is named twice")
    there = max(len(places), 1)
    copies = min(there, 2) if copies is None else copies
    if copies < 1:
        raise UsageError("copies must be at least 1")
    if copies > there:
        raise UsageError(f"{copies} copies need {copies} depots; there {'is' if there == 1 else 'are'} {there}")
    min_copies = max(copies - 1, 1) if min_copies is None else min_copies
    if not 1 <= min_copies <= copies:
        raise UsageError(f"min copies must be from 1 to {copies} (the number of copies)")
    return copies, min_copies


@contextmanager
def _made_or_removed(paths: VolumePaths) -> Iterator[None]:
    """The volume's directories; whatever has been made is gone again after a failure, or before the next try."""
    made = _first_missing(paths.root)
    with ExitStack() as stack:
        try:
            take_away(paths)
            _make_root(paths.root)
            stack.enter_context(marked(paths.root))
        except OSError as error:
            raise VolumeError(f"{paths.root}: cannot make a volume there ({error.strerror})") from None
        yield from _filled(paths, made)


def _filled(paths: VolumePaths, made: Path | None) -> Iterator[None]:
    try:
        for directory in paths.directories:
            directory.mkdir(mode=0o700)
        yield
        sync_directory(paths.root)
        sync_directory(paths.root.parent)
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        else:
            _empty(paths.root)
        raise


def _first_missing(path: Path) -> Path | None:
    missing = None
    while not path.exists():
        missing, path = path, path.parent
    return missing


def _make_root(root: Path) -> None:
    if root.is_dir():
        if (root / "volume.toml").exists():
            raise VolumeError(f"{root}: is a volume already")
        if any(root.iterdir()):
            raise VolumeError(f"{root}: is not empty")
        root.chmod(0o700)
        return
    if root.exists():
        raise VolumeError(f"{root}: is not a directory")
    root.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(mode=0o700)


def _empty(root: Path) -> None:
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def first_slot(paths: VolumePaths, keys: VolumeKeys, uuid: bytes, passphrase: bytes | None) -> dict[str, object]:
    if passphrase is not None:
        return make_slot("passphrase", passphrase, keys, uuid)
    secret = os.urandom(32)
    write_key_file(paths.key, secret)
    return make_slot("keyfile", secret, keys, uuid)


def recovery_slot(secret: bytes, keys: VolumeKeys, uuid: bytes) -> dict[str, object]:
    """One whose secret can be told again."""
    slot = make_slot("recovery", secret, keys, uuid)
    keep_secret(slot, secret, keys, uuid)
    return slot


def checkpoint_facts(keys: VolumeKeys, uuid: bytes) -> dict[str, str]:
    """What checkpoints need: their key, in clear for who owns the store and wrapped for who recovers it."""
    key = os.urandom(32)
    return {
        "checkpoint_key": key.hex(),
        "checkpoint_key_wrapped": wrap_checkpoint_key(keys, key, uuid),
        "checkpoint_writer": os.urandom(8).hex(),
    }


def _facts(config: VolumeConfig, function: str, text: str, owner: tuple[int, int]) -> dict[str, str]:
    return {
        "uuid": config.uuid.hex(),
        "format": str(config.format),
        "features": " ".join(config.features),
        "policy_epoch": "1",
        "digest_seed": os.urandom(8).hex(),
        "function": function,
        "frame_size": str(sealing.FRAME_SIZE),
        "volume_toml": text,
        "created_at": config.created,
        "root_owner": f"{owner[0]}:{owner[1]}",
    }


def _fill(
    database: Database, addresses: Mapping[str, bytes | None], policy: Policy, owner: tuple[int, int]
) -> None:
    with database.transaction():
        database.execute(
            "INSERT INTO policies (id, copies, min_copies, code, labels, seq) VALUES (1, ?, ?, ?, '[]', ?)",
            (policy.copies, policy.min_copies, policy.code, database.seq),
        )
        create_root(database, time.time_ns, *owner)
        database.executemany(
            "INSERT INTO depots (address, embedded, fingerprint, labels, role, seq)"
            " VALUES (?, ?, ?, '{}', 'active', ?)",
            [(address, 0, pin, database.seq) for address, pin in addresses.items()]
            or [(EMBEDDED_ADDRESS, 1, None, database.seq)],
        )


def _label(database: Database, labels: Mapping[str, Mapping[str, str]]) -> None:
    with database.transaction():
        for address, named in labels.items():
            database.execute("UPDATE depots SET labels = ? WHERE address = ?", (json.dumps(dict(named)), address))


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
