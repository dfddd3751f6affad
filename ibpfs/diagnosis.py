"""What can be found wrong from here, without becoming a volume's owner: kernel, mounts, disks, key, settings."""

import errno
import os
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from ibpfs.config import Secret, VolumePaths, check_access, load_config, read_key_file
from ibpfs.errors import IbpfsError, UsageError, VolumeError, WrongKey
from ibpfs.exnode_store.database import find_damage
from ibpfs.exnode_store.findings import Finding, judge_clock
from ibpfs.exnode_store.keys import open_slots
from ibpfs.mount_options import parse_mount_options
from ibpfs.mount_table import mount_entries
from ibpfs.mountinfo import FILE_SYSTEM_TYPE
from ibpfs.ownership import is_held
from ibpfs.quantities import format_size

FUSE = Path("/dev/fuse")
FSTAB = Path("/etc/fstab")
#: Bytes that writes leave of the volume's disk, and bytes and share of a cache's disk that make it full.
_DISK, _CACHE_DISK, _CACHE_SHARE = 64 << 20, 1 << 20, 0.01
#: Seconds by which a file may be from the future, and for which the spool of a volume that is not mounted may wait.
_CLOCK, _SPOOL = 3600.0, 3600.0
_SETTINGS = frozenset(("digest", "format", "uuid", "plain", "created", "features", "slots", "epochs"))


def of_this_machine() -> Iterator[Finding]:
    """What keeps any volume from being mounted, and dead mounts."""
    if not FUSE.exists():
        yield Finding("no-fuse", str(FUSE), "is not there: the kernel has no FUSE", "modprobe fuse")
    elif not os.access(FUSE, os.R_OK | os.W_OK):
        yield Finding("no-fuse", str(FUSE), "this user may not open it", f"chmod 666 {FUSE} (as root)")
    if os.geteuid() and shutil.which("fusermount3") is None:
        yield Finding("no-fusermount", "fusermount3", "is not there: only root can mount", "install the package fuse3")
    yield from _dead_mounts()
    yield from _unknown_options()


def _dead_mounts() -> Iterator[Finding]:
    for entry in mount_entries():
        if entry.kind != FILE_SYSTEM_TYPE:
            continue
        try:
            dead = not is_held(VolumePaths(Path(entry.source)).lock)
        except OSError:  # somebody else's volume
            continue
        if dead:
            yield Finding("stale-mount", str(entry.mountpoint), f"the process that served {entry.source} is gone",
                          f"mount.ibpfs {entry.source} {entry.mountpoint}, or: umount -l {entry.mountpoint}")


def _unknown_options() -> Iterator[Finding]:
    try:
        lines = FSTAB.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) < 4 or line.lstrip().startswith("#") or words[2] not in ("ibpfs", FILE_SYSTEM_TYPE):
            continue
        try:
            parse_mount_options([words[3]])
        except UsageError as error:
            yield Finding("unknown-setting", f"{FSTAB}, {words[1]}", str(error), "take that option out")


def of_volume(paths: VolumePaths) -> Iterator[Finding]:
    """What is wrong with the parts of a volume on this machine's disks."""
    for check in (_parts, _settings, _key, _database, _disks, _times, _spool):
        found = list(check(paths))
        yield from found
        if found and check is _parts:
            return


def _parts(paths: VolumePaths) -> Iterator[Finding]:
    try:
        check_access(paths)
        load_config(paths)
    except VolumeError as error:
        place, _, cause = str(error).partition(": ")
        cause, _, action = cause.partition("; ")
        code = "unknown-format" if "not known to this version" in cause else "damaged-volume"
        yield Finding(code, place, cause, action or f"fsck.ibpfs {paths.root}")


def _settings(paths: VolumePaths) -> Iterator[Finding]:
    table = tomllib.loads(paths.properties.read_text(encoding="utf-8"))
    for key in sorted(table.keys() - _SETTINGS):
        yield Finding("unknown-setting", str(paths.properties), f"unknown setting {key!r}: of a later version?",
                      "install that, or take the line out and run fsck.ibpfs")  # fmt: skip


def _key(paths: VolumePaths) -> Iterator[Finding]:
    config = load_config(paths)
    kinds = {slot.get("kind") for slot in config.slots}
    if "keyfile" not in kinds:
        return
    restore = "put the right one back, or open it with --recovery-file FILE"
    try:
        secret: Secret = read_key_file(paths.key)
        open_slots(config.slots, config.epochs, secret.kind, secret.value, config.uuid)
        if (mode := paths.key.stat().st_mode & 0o777) & 0o077:
            yield Finding("open-key", str(paths.key), f"not for its owner alone (mode {mode:04o})",
                          f"chmod 600 {paths.key}")  # fmt: skip
    except FileNotFoundError:
        yield Finding("no-key", str(paths.key), "the key file is missing", restore)
    except WrongKey:
        yield Finding("wrong-key", str(paths.key), "does not open this volume", restore)
    except (VolumeError, OSError) as error:
        yield Finding("wrong-key", str(paths.key), str(error).removeprefix(f"{paths.key}: "), restore)


def _database(paths: VolumePaths) -> Iterator[Finding]:
    if not paths.store.exists():
        yield Finding("damaged-database", str(paths.store), "no exNode store there",
                      "put it back, or bring the volume back from its depots: ibpfs recover NEWVOLUME")  # fmt: skip
    elif damage := find_damage(paths.store):
        yield Finding("damaged-database", str(paths.store), f"damaged database ({damage})",
                      f"keep a copy of it, then: fsck.ibpfs -y {paths.root}")  # fmt: skip


def _disks(paths: VolumePaths) -> Iterator[Finding]:
    disk = os.statvfs(paths.root)
    free = disk.f_bavail * disk.f_frsize
    if free < _DISK:
        yield Finding("disk-full", str(paths.root), f"its disk has {format_size(free)} free: writes fail",
                      "make room there (ibpfs flush empties the spool)")  # fmt: skip
    yield from of_cache(paths.cache)
    try:
        with tempfile.NamedTemporaryFile(dir=paths.run) as trial:
            trial.write(bytes(65536))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        if error.errno == errno.EDQUOT:
            yield Finding("quota", str(paths.root), "the disk quota of this user is used up",
                          "delete something, or have the quota raised")  # fmt: skip
        elif error.errno != errno.ENOSPC:
            yield Finding("disk", str(paths.run), f"cannot be written ({error.strerror})", "see to that disk")


def of_cache(directory: Path) -> Iterator[Finding]:
    """Of the disk of the local cache, wherever that is."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return
    free = disk.f_bavail * disk.f_frsize
    if free < max(_CACHE_DISK, disk.f_blocks * disk.f_frsize * _CACHE_SHARE):
        yield Finding("cache-disk-full", str(directory), f"the cache's disk has {format_size(free)} free: nothing is"
                      " cached", "make room there, or mount with -o cache_dir=")  # fmt: skip


def _times(paths: VolumePaths, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    written = max(
        (path.stat().st_mtime for path in (paths.store, Path(f"{paths.store}-wal"), paths.lock) if path.exists()),
        default=0.0,
    )
    if written > now() + _CLOCK:
        yield judge_clock(now() - written, str(paths.root))


def _spool(paths: VolumePaths) -> Iterator[Finding]:
    if is_held(paths.lock) or paths.safe.exists():
        return  # its owner is asked; or copies are lacking, and nothing else
    files = [path.stat() for path in paths.spool.glob("*.spool")]
    waiting = sum(one.st_size for one in files)
    if files and max(one.st_mtime for one in files) < time.time() - _SPOOL:
        yield Finding("spool-waits", str(paths.spool), f"{format_size(waiting)} wait there for the next mount",
                      f"ibpfs flush {paths.root}")  # fmt: skip


def first_error(error: IbpfsError, place: str) -> Finding:
    """The owner of a volume could not be asked."""
    return Finding("no-answer", place, str(error).removeprefix(f"{place}: "), "see its log")
