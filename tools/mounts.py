"""Mounts and volumes in use, as commands need them; only `volume_holding` touches a mount itself."""

import errno
import os
import time
from pathlib import Path

from ibpfs import mountinfo
from ibpfs.errors import IbpfsError, VolumeError
from ibpfs.mount_table import MountEntry, mount_entries
from ibpfs.paths import VolumePaths

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
#: Seconds in which an owner notices that its mount is gone.
_NOTICE = 5.0


def ibpfs_mounts() -> list[MountEntry]:
    """Return the mounts of ibpfs, oldest first."""
    return [entry for entry in mount_entries() if entry.kind == mountinfo.FILE_SYSTEM_TYPE]


def mount_on(mountpoint: Path) -> MountEntry | None:
    """Return the topmost mount of ibpfs on exactly this directory."""
    return next((entry for entry in reversed(ibpfs_mounts()) if entry.mountpoint == mountpoint), None)


def sources() -> list[Path]:
    """Return the volumes that are mounted and this user's."""
    return [Path(entry.source) for entry in ibpfs_mounts() if os.access(Path(entry.source) / "run", os.W_OK)]


def mount_of(volume: Path) -> MountEntry | None:
    return next((entry for entry in reversed(ibpfs_mounts()) if entry.source == str(volume)), None)


def mount_holding(path: Path) -> MountEntry | None:
    """Return the mount of ibpfs that an absolute path lies in."""
    inside = [entry for entry in ibpfs_mounts() if path.is_relative_to(entry.mountpoint)]
    return max(inside, key=lambda entry: len(entry.mountpoint.parts), default=None)


def volume_holding(path: Path) -> VolumePaths:
    """Return the volume on whose mount a file is. VolumeError when it is on none."""
    place = absolute(str(path))
    entry = mount_holding(place) or mount_holding(place.resolve())
    # Something else may be mounted inside, with inode numbers of its own.
    if entry is None or place.lstat().st_dev != entry.mountpoint.stat().st_dev:
        raise VolumeError(f"{path}: is not on a mounted volume of ibpfs")
    return VolumePaths(Path(entry.source))


def absolute(word: str) -> Path:
    """As `mountinfo` has it."""
    return Path(mountinfo.absolute(word))


def wait_until_free(paths: VolumePaths) -> bool:
    """Return True when no process owns the volume any more, False when its owner has it mounted somewhere else.

    That is another mount namespace, to which this mount was copied.
    """
    from ibpfs.ownership import MOUNTED, is_held, owner_of  # slow to import, and needed here only

    seen_mounted = time.monotonic()
    while is_held(paths.lock):
        if owner_of(paths).get("state") != MOUNTED:
            seen_mounted = time.monotonic()
        elif time.monotonic() > seen_mounted + _NOTICE:
            return False
        time.sleep(0.02)
    return True


def take_away(mountpoint: Path, *, lazily: bool = False) -> None:
    """Unmount what nobody uses; OSError EBUSY when somebody does, unless `lazily`: then when nobody does any more."""
    import ctypes  # as above
    import subprocess

    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(mountpoint), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(mountpoint))
        return
    words = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", str(mountpoint)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode and "busy" in done.stderr.lower():
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(mountpoint))
    if done.returncode:
        raise IbpfsError(done.stderr.strip() or f"{mountpoint}: fusermount3 failed")
