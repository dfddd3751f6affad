"""What a person may configure: where a volume is, its volume.toml, its key file; mount options are next door.

Knows the names of files and words; no database, no key, no depot.
"""

import os
import pwd
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import xxhash

from ibpfs.errors import UsageError, VolumeError
from ibpfs.mount_options import MountOptions, parse_mount_options
from ibpfs.paths import VolumePaths
from ibpfs.quantities import format_size, parse_duration, parse_size

__all__ = [
    "MountOptions",
    "NoVolume",
    "Secret",
    "VolumeConfig",
    "VolumePaths",
    "check_access",
    "data_directory",
    "dump_config",
    "find_volume",
    "format_size",
    "load_config",
    "parse_config",
    "parse_duration",
    "parse_mount_options",
    "parse_size",
    "read_key_file",
    "save_config",
    "sync_directory",
    "write_key_file",
    "write_private",
]

FORMAT = 1


def data_directory() -> Path:
    """Return where volumes that were given by name are kept."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "ibpfs"


class NoVolume(VolumeError):
    """There is none where a word leads."""


def find_volume(word: str, create: bool = False) -> VolumePaths:
    """Return the volume that `word` means: a path when it has a slash or holds a volume.toml, else a name."""
    if not word or "\0" in word:
        raise UsageError("a volume needs a name or a path")
    with _permission_explained(Path(word)):
        is_path = "/" in word or word in (".", "..") or _holds_volume(Path(word))
        paths = VolumePaths((Path(word) if is_path else data_directory() / word).resolve())
    if create:
        return paths
    with _permission_explained(paths.root):
        if not paths.properties.exists() and not paths.store.exists():
            raise NoVolume(f"{paths.root}: no volume there; make one with: mkfs.ibpfs {shlex.quote(word)}")
    return paths


def _holds_volume(directory: Path) -> bool:
    try:
        return (directory / "volume.toml").exists()
    except OSError:  # not for this user; or the dead mount of a volume of the same name
        return False


@contextmanager
def _permission_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise VolumeError(_whose(Path(error.filename or path))) from None


def _whose(path: Path) -> str:
    try:
        owner = path.lstat().st_uid
    except OSError:
        return f"{path}: no permission to look there"
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    if owner == os.geteuid():
        return f"{path}: its mode does not let you use it; chmod u+rwX it"
    return f"{path}: belongs to {name} (left by sudo?); run this as {name}, or give it back with chown -R"


def check_access(paths: VolumePaths) -> None:
    """Raise VolumeError when a part of the volume cannot be read and written by this user."""
    with _permission_explained(paths.root):
        for directory in (paths.root, paths.spool, paths.run, paths.log, paths.cache, paths.depot):
            if not directory.is_dir():
                continue
            for entry in (directory, *directory.iterdir()):
                wanted = os.R_OK | os.W_OK | (os.X_OK if entry.is_dir() else 0)
                if not entry.is_symlink() and not os.access(entry, wanted):
                    raise VolumeError(_whose(entry))


# --- volume.toml


@dataclass
class VolumeConfig:
    """What volume.toml says. `slots` and `epochs` as exnode_store.keys makes them."""

    uuid: bytes
    format: int
    plain: bool
    created: str
    slots: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


_DIGEST_LINE = re.compile(r'^digest = "([0-9a-f]*)"\n', re.MULTILINE)
_HEAD = "# Made by mkfs.ibpfs; an edit breaks the digest. The exNode store has a copy: fsck.ibpfs restores it.\n"


def dump_config(config: VolumeConfig) -> str:
    body = tomli_w.dumps(
        {
            "format": config.format,
            "uuid": config.uuid.hex(),
            "plain": config.plain,
            "created": config.created,
            "features": config.features,
            "slots": config.slots,
            "epochs": config.epochs,
        }
    )
    return f'{_HEAD}digest = "{_digest(_HEAD + body)}"\n{body}'


def parse_config(text: str, path: Path) -> VolumeConfig:
    """The reverse of dump_config; VolumeError names `path`."""
    found = _DIGEST_LINE.search(text)
    if found is None or _digest(text[: found.start()] + text[found.end() :]) != found.group(1):
        raise VolumeError(f"{path}: damaged (its digest differs); fsck.ibpfs {path.parent} restores it")
    try:
        table = tomllib.loads(text)
        config = VolumeConfig(
            uuid=bytes.fromhex(table["uuid"]),
            format=int(table["format"]),
            plain=bool(table["plain"]),
            created=str(table["created"]),
            slots=list(table["slots"]),
            epochs=list(table["epochs"]),
            features=[str(feature) for feature in table["features"]],
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise VolumeError(f"{path}: damaged ({error}); fsck.ibpfs {path.parent} restores it") from None
    if config.format != FORMAT:
        raise VolumeError(f"{path}: format {config.format} is not known to this version of ibpfs (it knows {FORMAT})")
    return config


def load_config(paths: VolumePaths) -> VolumeConfig:
    try:
        with _permission_explained(paths.properties):
            text = paths.properties.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VolumeError(f"{paths.properties}: missing; fsck.ibpfs {paths.root} restores it") from None
    except UnicodeDecodeError:
        raise VolumeError(f"{paths.properties}: damaged (not text); fsck.ibpfs {paths.root} restores it") from None
    return parse_config(text, paths.properties)


def save_config(paths: VolumePaths, config: VolumeConfig) -> None:
    """Write volume.toml, atomically, 0600, on stable storage."""
    write_private(paths.properties, dump_config(config).encode())


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 so that a crash leaves the old one or the new one, on stable storage."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


# --- secrets


@dataclass(frozen=True)
class Secret:
    """What opens a key slot of `kind` 'keyfile', 'passphrase' or 'recovery'."""

    kind: str
    value: bytes = field(repr=False)


KEY_MAGIC = b"ibpfs-key/1 "


def read_key_file(path: Path) -> Secret:
    """Return the secret in a key file."""
    with _permission_explained(path):
        data = path.read_bytes()
    try:
        if not data.startswith(KEY_MAGIC):
            raise ValueError
        return Secret("keyfile", bytes.fromhex(data.removeprefix(KEY_MAGIC).decode("ascii")))
    except ValueError:
        raise VolumeError(f"{path}: not a key file of ibpfs") from None


def write_key_file(path: Path, secret: bytes) -> None:
    write_private(path, KEY_MAGIC + secret.hex().encode() + b"\n")
