"""The kernel's side of a mount: making it, finding it in the mount table, tuning it, taking it away.

Knows no file and no volume. Nothing here opens, or looks below, a mount point: who serves a mount must never
wait for it.
"""

import ctypes
import errno
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

from ibpfs.errors import UsageError, VolumeError
from ibpfs.mount_options import KERNEL_WORDS, MS_REMOUNT, MountOptions
from ibpfs.mount_table import MountEntry, mount_entries
from ibpfs.mountinfo import FILE_SYSTEM_TYPE

_log = logging.getLogger(__name__)

#: One request carries at most this (the kernel's 256 pages).
REQUEST_SIZE = 1024 * 1024
#: Measured: 1 MiB 435 MB/s, 4 MiB 794 MB/s through the same process: four requests are in flight instead of one.
READ_AHEAD_KIB = 4096
#: Background requests (read-ahead, writeback) in flight. With the kernel's 12, twelve stuck ones stop all others.
MAX_BACKGROUND = 64

_MS_POSIXACL = 1 << 16
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PROGRAM_LIMIT = 20.0  # seconds that fusermount3 may take

_libc = ctypes.CDLL(None, use_errno=True)


def mount_at(mountpoint: Path) -> MountEntry | None:
    """What is visible at a mount point; None when nothing is mounted there."""
    found = None
    for entry in mount_entries():
        if entry.mountpoint == mountpoint:
            found = entry
    return found


def mounts_of(source: Path) -> list[MountEntry]:
    """The mounts of one volume."""
    return [entry for entry in mount_entries() if entry.kind == FILE_SYSTEM_TYPE and entry.source == str(source)]


def attach(source: str, mountpoint: Path, options: MountOptions) -> int:
    """Mount, and return the descriptor of the connection to the kernel. VolumeError when that is refused."""
    if os.geteuid() == 0:
        return _attach_as_root(source, mountpoint, options)
    return _attach_as_user(source, mountpoint, options)


def _attach_as_root(source: str, mountpoint: Path, options: MountOptions) -> int:
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise VolumeError(f"/dev/fuse: {error.strerror}; is FUSE in this kernel (modprobe fuse)?") from None
    words = [
        f"fd={descriptor}", f"rootmode={stat.S_IFDIR:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}",
        f"max_read={REQUEST_SIZE}", "default_permissions",
    ]  # fmt: skip
    if options.allow_other:
        words.append("allow_other")
    # MS_POSIXACL makes the kernel send the unmasked mode of new files, which default lists need.
    flags = options.kernel_flags | _MS_POSIXACL
    try:
        _mount(source, mountpoint, flags, ",".join(words))
    except OSError as error:
        os.close(descriptor)
        raise VolumeError(f"{mountpoint}: cannot mount there ({error.strerror})") from None
    return descriptor


def attach_beneath(source: str, mountpoint: Path, options: MountOptions, staging: Path) -> int:
    """Mount below what is mounted on the mount point, so that nobody ever sees the directory that both hide.

    `staging` is an empty directory where the mount is made first. The caller detaches what is above, once this one
    answers. VolumeError when the kernel cannot (Linux 6.5 can), or this is not root.
    """
    if os.geteuid() != 0:
        raise VolumeError("only root mounts beneath another mount")
    descriptor = _attach_as_root(source, staging, options)
    try:
        # A copy, since a mount below a shared one cannot be moved.
        tree = _system_call(_OPEN_TREE, _AT_FDCWD, os.fsencode(staging), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            _system_call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(mountpoint), _FROM_DESCRIPTOR | _BENEATH)
        finally:
            os.close(tree)
    except OSError as error:
        os.close(descriptor)
        raise VolumeError(f"{mountpoint}: cannot mount beneath what is there ({error.strerror})") from None
    finally:
        detach(staging)
    return descriptor


def can_mount_beneath() -> bool:
    """Whether attach_beneath works: for root, since Linux 6.5."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return os.geteuid() == 0 and release is not None and (int(release[1]), int(release[2])) >= (6, 5)


_AT_FDCWD = -100
_OPEN_TREE, _OPEN_TREE_CLONE = 428, 1
_MOVE_MOUNT, _FROM_DESCRIPTOR, _BENEATH = 429, 0x4, 0x200


def _system_call(number: int, *arguments: int | bytes) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attach_as_user(source: str, mountpoint: Path, options: MountOptions) -> int:
    program = _fusermount()
    words = ["nosuid", "nodev", f"fsname={_escaped(source)}", "subtype=ibpfs", "default_permissions"]
    words += [f"max_read={REQUEST_SIZE}", "ro" if options.read_only else "rw"]
    words += [word for word in dict.fromkeys(options.kernel_words) if word in ("noatime", "nodiratime", "noexec")]
    if options.allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [program, "-o", ",".join(words), "--", str(mountpoint)],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROGRAM_LIMIT,
            check=False,
        )  # fmt: skip
        if done.returncode:
            reason = " ".join(done.stderr.decode(errors="replace").split()) or f"{program} ended with {done.returncode}"
            raise VolumeError(f"{mountpoint}: cannot mount there ({reason})")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _fusermount() -> str:
    program = shutil.which("fusermount3", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if program is None:
        raise VolumeError("fusermount3 is missing: install the package fuse3, or mount as root")
    return program


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def detach(mountpoint: Path) -> bool:
    """Take the mount out of the tree at once; open files keep it alive. False when nothing is mounted there.

    Blocks until the kernel has let go of what it can: not for the thread that serves the mount.
    """
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOENT):
            return False
        raise OSError(code, os.strerror(code), str(mountpoint))
    done = subprocess.run(
        [_fusermount(), "-u", "-z", "--", str(mountpoint)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROGRAM_LIMIT, check=False,
    )  # fmt: skip
    return done.returncode == 0


def write_back(mountpoint: Path, limit: float = 5.0) -> None:
    """Have the kernel send us the pages that were changed through mmap, as far as that takes less than `limit` s.

    A process of its own opens the mount point: this one must not.
    """
    program = shutil.which("sync") or "/bin/sync"
    try:
        subprocess.run(
            [program, "-f", str(mountpoint)],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, OSError) as error:
        _log.warning("%s: pages changed through mmap may not have been written: %s", mountpoint, error)


def remount(mountpoint: Path, options: MountOptions) -> None:
    """Change the flags of the mount as `-o remount,...` says; words that were not given keep what is set."""
    entry = mount_at(mountpoint)
    if entry is None or entry.kind != FILE_SYSTEM_TYPE:
        raise VolumeError(f"{mountpoint}: no ibpfs is mounted there")
    if os.geteuid() != 0:
        raise UsageError("only root can remount")
    flags = 0
    for word in (*entry.options, *options.kernel_words):
        sets, clears = KERNEL_WORDS.get(word, (0, 0))
        flags = (flags & ~clears) | sets
    try:
        _mount(entry.source, mountpoint, flags | MS_REMOUNT, "")
    except OSError as error:
        raise VolumeError(f"{mountpoint}: cannot remount ({error.strerror})") from None


def is_read_only(mountpoint: Path) -> bool:
    """Whether the kernel refuses changes there now."""
    entry = mount_at(mountpoint)
    return entry is not None and "ro" in entry.options


def _mount(source: str, mountpoint: Path, flags: int, data: str) -> None:
    arguments = os.fsencode(source), os.fsencode(mountpoint), FILE_SYSTEM_TYPE.encode()
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(mountpoint))


def tune(mountpoint: Path) -> None:
    """Let the kernel read further ahead and keep more requests in flight, where this user may.

    Works only once the connection is initialised: the kernel's answer to that lowers the figures again.
    """
    entry = mount_at(mountpoint)
    if entry is None or os.geteuid() != 0:
        return
    connection = _FUSECTL / entry.device.partition(":")[2]
    _write_figure(Path("/sys/class/bdi") / entry.device / "read_ahead_kb", READ_AHEAD_KIB)
    if connection.is_dir():
        _write_figure(connection / "max_background", MAX_BACKGROUND)
        _write_figure(connection / "congestion_threshold", MAX_BACKGROUND * 3 // 4)


_FUSECTL = Path("/sys/fs/fuse/connections")


def can_raise_background() -> bool:
    """Whether max_background can be raised: without that, the writeback cache would be a trap."""
    return os.geteuid() == 0 and any(entry.kind == "fusectl" for entry in mount_entries())


def _write_figure(path: Path, figure: int) -> None:
    try:
        path.write_text(str(figure))
    except OSError as error:
        _log.info("%s stays as it is: %s", path, error.strerror)


def check_mountpoint(mountpoint: Path, volume: Path) -> None:
    """Raise UsageError when the volume cannot be mounted there."""
    entry = mount_at(mountpoint)
    if entry is not None and entry.kind == FILE_SYSTEM_TYPE:
        raise UsageError(f"{mountpoint}: {entry.source} is mounted there already")
    try:
        is_directory = stat.S_ISDIR(mountpoint.stat().st_mode)
    except FileNotFoundError:
        raise UsageError(f"{mountpoint}: no such directory; make it with mkdir") from None
    except OSError as error:
        dead = "; a dead mount? umount -l it" if error.errno == errno.ENOTCONN else ""
        raise UsageError(f"{mountpoint}: cannot mount there ({error.strerror}{dead})") from None
    if not is_directory:
        raise UsageError(f"{mountpoint}: not a directory")
    if volume == mountpoint or mountpoint in volume.parents:
        raise UsageError(f"{volume}: lies inside the mount point {mountpoint} and would be hidden by it")
    if volume in mountpoint.parents:
        raise UsageError(f"{mountpoint}: lies inside the volume {volume}, whose files it would hide; choose another")
