"""Mount options: the words of mount(8), systemd.mount(5) and FUSE, and our own settings.

Pure text to values; what is done with them is the business of mount.py and the kernel's door.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from ibpfs.errors import UsageError
from ibpfs.quantities import parse_duration, parse_fraction, parse_size

MIB = 1024 * 1024

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME = 128, 256, 1024, 2048
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 1 << 21, 1 << 24, 1 << 25

#: word of mount(8) -> bits of mount(2) that it sets and clears
KERNEL_WORDS: dict[str, tuple[int, int]] = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "dirsync": (MS_DIRSYNC, 0),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "symfollow": (0, MS_NOSYMFOLLOW),
    "noatime": (MS_NOATIME, MS_RELATIME | MS_STRICTATIME),
    "atime": (0, MS_NOATIME),
    "relatime": (MS_RELATIME, MS_NOATIME | MS_STRICTATIME),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, MS_NOATIME | MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "defaults": (0, 0),
}
#: Generic words that need nothing done here: mount(8), systemd or the kernel have dealt with them, or will.
_ACCEPTED = frozenset(
    [
        "auto", "noauto", "user", "nouser", "users", "owner", "group", "nogroup", "noowner", "nousers", "nofail",
        "fail", "_netdev", "silent", "loud", "mand", "nomand", "iversion", "noiversion", "default_permissions",
        "rw-only", "seclabel", "async", "nosync", "remount", "allow_other", "noallow_other", "writeback", "nowriteback",
        "sync",
    ]
)
#: Our own, with a value.
_SETTINGS = ("sync", "cache_dir", "passphrase_file", "cache_size", "dirty", "min_free", "deadline")
_ACCEPTED_WITH_VALUE = frozenset(
    [
        "user", "uhelper", "helper", "comment", "context", "fscontext", "defcontext", "rootcontext", "user_id",
        "group_id", "rootmode", "fd", "max_read", "blksize", "subtype", "fsname", "ro", "rw", "pass", "freq",
        "nfs_export",
    ]
)


@dataclass(frozen=True)
class MountOptions:
    """What `-o` said, defaults filled in."""

    read_only: bool = False
    remount: bool = False
    allow_other: bool = False
    sync: Literal["", "close", "write"] = ""
    cache_dir: Path | None = None  # None: VOLUME/cache
    cache_size: int | None = None  # bytes; None: by the rule of docs/operating.md
    min_free: float = 0.05  # share of the cache's disk that stays free
    dirty: int = 256 * MIB  # bytes of dirty data in memory
    deadline: float | None = None  # seconds for everything; None: each its own
    writeback: bool = False
    passphrase_file: Path | None = None
    #: MS_* bits for mount(2), those of `read_only` and the atime word included
    kernel_flags: int = MS_NOSUID | MS_NODEV
    #: generic words that were given, in order: what a remount changes and what is left alone
    kernel_words: tuple[str, ...] = ()

    @property
    def noatime(self) -> bool:
        """Else relatime: reads from the kernel's page cache never reach us, so that there is no strictatime."""
        return bool(self.kernel_flags & MS_NOATIME)


def parse_mount_options(words: Iterable[str], *, sloppy: bool = False) -> MountOptions:
    """Return the options of all `-o` arguments (each may hold several, by comma); the last of two wins.

    UsageError names an unknown one, unless `sloppy`. As root, other users are let in and device nodes and set-id
    bits work, as on any disk; for an ordinary user they do not (fusermount3 insists).
    """
    root = os.geteuid() == 0
    options = MountOptions(allow_other=root, kernel_flags=0 if root else MS_NOSUID | MS_NODEV)
    for word in (part for argument in words for part in argument.split(",") if part):
        changed = _apply(options, word)
        if changed is None and not sloppy:
            raise UsageError(f"unknown mount option {word!r}{_meant(word)}")
        options = changed or options
    return options


def _apply(options: MountOptions, word: str) -> MountOptions | None:
    name, equals, value = word.partition("=")
    if word in KERNEL_WORDS:
        return _apply_kernel_word(options, word)
    if equals:
        try:
            return _apply_setting(options, name, value)
        except UsageError as error:
            raise UsageError(f"mount option {word}: {error}") from None
    if word in ("allow_other", "noallow_other"):
        return replace(options, allow_other=word == "allow_other")
    if word in ("writeback", "nowriteback"):
        return replace(options, writeback=word == "writeback")
    if word in ("sync", "async", "nosync"):
        return replace(options, sync="write" if word == "sync" else "")
    if word == "remount":
        return replace(options, remount=True)
    return options if word in _ACCEPTED or word.startswith(("x-", "X-")) else None


def _meant(word: str) -> str:
    """A hint, where it is a known one misspelt."""
    close = get_close_matches(word.partition("=")[0], [*KERNEL_WORDS, *_SETTINGS, *_ACCEPTED], 1)
    return f"; did you mean {close[0]}?" if close else ""


def _apply_kernel_word(options: MountOptions, word: str) -> MountOptions:
    sets, clears = KERNEL_WORDS[word]
    flags = (options.kernel_flags & ~clears) | sets
    words = (*options.kernel_words, word)
    return replace(options, kernel_flags=flags, kernel_words=words, read_only=bool(flags & MS_RDONLY))


def _apply_setting(options: MountOptions, name: str, value: str) -> MountOptions | None:
    match name:
        case "sync":
            if value not in ("close", "write"):
                raise UsageError("only sync=close and sync=write exist")
            return replace(options, sync="close" if value == "close" else "write")
        case "cache_dir":
            return replace(options, cache_dir=_path(value))
        case "passphrase_file":
            return replace(options, passphrase_file=_path(value))
        case "cache_size":
            return replace(options, cache_size=parse_size(value))
        case "dirty":
            return replace(options, dirty=_dirty(value))
        case "min_free":
            return replace(options, min_free=parse_fraction(value))
        case "deadline":
            seconds = parse_duration(value)
            if seconds <= 0:
                raise UsageError("must be more than 0 seconds")
            return replace(options, deadline=seconds)
    return options if name in _ACCEPTED_WITH_VALUE or name.startswith(("x-", "X-")) else None


def _dirty(value: str) -> int:
    size = parse_size(value)
    if size < MIB:  # the kernel's longest write
        raise UsageError("must be at least 1M")
    return size


def _path(value: str) -> Path:
    if not value:
        raise UsageError("needs a path")
    return Path(value).absolute()
