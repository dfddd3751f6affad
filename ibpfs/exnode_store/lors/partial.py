"""A download under way: `.NAME.part` holds bytes, `.NAME.part.done` which of them are there.

A download that was killed goes on behind all that the second says; after a power cut, behind what it says was synced.
"""

import fcntl
import hashlib
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ibpfs.errors import NoSpace, VolumeBusy, VolumeError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.extents import ExtentMap
from ibpfs.exnode_store.lors.outputs import put_in_place
from ibpfs.quantities import format_size

#: Bytes that are fetched again at most after a power cut.
_SYNC_EVERY: Final = 64 * 1024 * 1024
#: Stands behind what is on stable storage.
_SYNCED: Final = "synced"
#: '.NAME.part.done' has to be a name, too.
_LONGEST_NAME: Final = 240
#: Characters that a record begins with.
_IDENTITY: Final = 64
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def identity(exnode: ExNode) -> str:
    """A digest of what is fetched: the same text means the same bytes. Tells no capability."""
    digest = hashlib.sha256(f"{exnode.size}\n".encode())
    for one in exnode.mappings:
        label = one.read.label if one.read else ""
        digest.update(f"{one.offset} {one.length} {one.alloc_offset} {label}\n".encode())
    return digest.hexdigest()


class PartialFile:
    """One at a time per file: VolumeBusy for the second."""

    def __init__(self, path: Path, identity: str, size: int, *, resume: bool = True, part: Path | None = None) -> None:
        """`identity`: the same text means the same bytes; `part`: where they are collected."""
        self._path = path
        self._data = part or part_of(path)
        self._record = self._data.with_name(f"{self._data.name}.done")
        self._identity = identity
        self._size = size
        self._unsynced = 0
        self._done: ExtentMap[None] = ExtentMap()
        _refuse_others(self._data, self._record)
        if not self._record.exists():  # before the data: what has no record was never ours
            self._note_identity()
        self._file = _open_own(self._data)
        try:
            self._lock()
            if not (resume and self._recall()):
                self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VolumeBusy(f"{self._path}: another download of it is under way") from None

    def _recall(self) -> bool:
        """Return whether the record is one of this very file."""
        if os.fstat(self._file).st_size != self._size:
            return False
        try:
            head, boot, *lines = self._record.read_text("ascii").split("\n")
            if head != self._identity:
                return False
            lines = lines[:-1]  # behind the last line end is nothing, or half a line
            if boot != _boot():
                lines = lines[: len(lines) - lines[::-1].index(_SYNCED)] if _SYNCED in lines else []
            for line in lines:
                if line != _SYNCED:
                    start, stop = map(int, line.split())
                    self._done.overlay(start, stop, None)
        except (FileNotFoundError, ValueError):
            self._done = ExtentMap()
            return False
        return True

    def _begin(self) -> None:
        self._note_identity()
        os.ftruncate(self._file, 0)
        try:
            os.ftruncate(self._file, self._size)
        except OSError as error:
            raise NoSpace(f"{self._path}: {error.strerror}, for {format_size(self._size)}") from None
        os.fsync(self._file)

    def _note_identity(self) -> None:
        """In place of any other record: of the file nothing is there."""
        record = os.open(self._record, _OPEN | os.O_TRUNC, 0o600)
        os.write(record, f"{self._identity}\n{_boot()}\n".encode())
        os.close(record)

    @property
    def done_bytes(self) -> int:
        return self._done.covered

    def has(self, start: int, stop: int) -> bool:
        return not self._done.holes(start, stop)

    def write(self, start: int, data: bytes) -> None:
        """Blocks; `start` is a place in the file."""
        view = memoryview(data)
        at = start
        while view:
            written = os.pwrite(self._file, view, at)
            at, view = at + written, view[written:]
        self._note(f"{start} {start + len(data)}")
        self._done.overlay(start, start + len(data), None)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Bring what is there to stable storage, and note that it is."""
        if not self._unsynced:
            return
        self._unsynced = 0
        os.fdatasync(self._file)
        self._note(_SYNCED)

    def _note(self, line: str) -> None:
        with self._record.open("a", encoding="ascii") as record:
            record.write(f"{line}\n")

    def sha256(self) -> bytes:
        """Of all that is there. Blocks."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()

    def touch(self, mtime_ns: int, *, executable: bool) -> None:
        """Give it the time of another file, and the right to be run where it may be read."""
        with suppress(OverflowError, OSError):  # a time that this file system cannot hold
            os.utime(self._file, ns=(time.time_ns(), mtime_ns))
        if executable:
            mode = stat.S_IMODE(os.fstat(self._file).st_mode)
            os.fchmod(self._file, mode | (mode & 0o444) >> 2)

    def finish(self, *, overwrite: bool) -> None:
        """All is there: give the file its name."""
        os.fsync(self._file)
        put_in_place(self._data, self._path, overwrite=overwrite)
        self._unsynced = 0
        self._record.unlink(missing_ok=True)

    def discard(self) -> None:
        """Nothing was fetched, and nothing is worth keeping."""
        self._data.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def close(self) -> None:
        self.sync()
        os.close(self._file)


def part_of(path: Path) -> Path:
    """A hidden name beside it; of one that would be too long, a hash."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.part")


def _boot() -> str:
    """Differs after every start of the machine."""
    try:
        return _BOOT.read_text("ascii").strip()
    except OSError:
        return ""


def _refuse_others(data: Path, record: Path) -> None:
    """Raises VolumeError: a file of these names is there that no download made."""
    try:
        with os.fdopen(os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            head = file.read(_IDENTITY + 1)
    except FileNotFoundError:
        if os.path.lexists(data):
            raise VolumeError(f"{data}: no download made it; it is in the way of this one") from None
        return
    if head and re.fullmatch(rb"[0-9a-f]{64}\n", head) is None:
        raise VolumeError(f"{record}: no download made it; it is in the way of this one")


def _open_own(path: Path) -> int:
    file = os.open(path, _OPEN, 0o666)
    if os.fstat(file).st_uid != os.geteuid():
        os.close(file)
        raise VolumeError(f"{path}: belongs to somebody else; it is in the way of this download")
    return file
