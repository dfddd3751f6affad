"""The directory that a mount hides, made unwritable where a dead mount cannot be replaced unseen.

Between the death of a mount and the next one, programs must not write into it by mistake: what they write there would
be hidden again. The mode it had is noted in the volume, so that whoever mounts next gives it back, whatever happened.
"""

import json
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from ibpfs import kernel

_log = logging.getLogger(__name__)
_WRITING = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class DirectoryBelow:
    """`note` is the file that holds its mode while it is unwritable. Does nothing where mounts go beneath dead ones."""

    def __init__(self, mountpoint: Path, note: Path) -> None:
        self._mountpoint = mountpoint
        self._note = note
        self._descriptor: int | None = None

    def give_back(self) -> None:
        """Undo what an earlier mount did, where the directory is in sight; the others stay noted."""
        hidden: dict[str, int] = {}
        for directory, mode in self._noted().items():
            if kernel.mount_at(Path(directory)) is not None:
                hidden[directory] = mode
                continue
            with suppress(OSError):
                Path(directory).chmod(stat.S_IMODE(mode))
        with suppress(OSError):
            self._write(hidden)

    def look(self) -> None:
        """Get hold of the directory, before it is hidden."""
        if not kernel.can_mount_beneath():
            with suppress(OSError):
                self._descriptor = os.open(self._mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def protect(self) -> None:
        """Once it is hidden: nobody writes there."""
        if self._descriptor is None:
            return
        found = os.fstat(self._descriptor)
        if found.st_uid != os.geteuid() or not found.st_mode & _WRITING:
            return
        try:
            self._write(self._noted() | {str(self._mountpoint): stat.S_IMODE(found.st_mode)})
            os.fchmod(self._descriptor, stat.S_IMODE(found.st_mode) & ~_WRITING)
        except OSError as error:
            _log.info("%s: stays writable below the mount: %s", self._mountpoint, error.strerror)

    def release(self) -> None:
        """The mount is gone: the directory is as it was, though another mount may hide it now."""
        if self._descriptor is not None:
            noted = self._noted()
            mode = noted.pop(str(self._mountpoint), None)
            if mode is not None:
                with suppress(OSError):
                    os.fchmod(self._descriptor, stat.S_IMODE(mode))
                    self._write(noted)
            os.close(self._descriptor)
            self._descriptor = None
        self.give_back()

    def _noted(self) -> dict[str, int]:
        """Modes by directory."""
        try:
            noted = json.loads(self._note.read_bytes())
            return {str(directory): int(mode) for directory, mode in noted.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _write(self, noted: dict[str, int]) -> None:
        if not noted:
            self._note.unlink(missing_ok=True)
            return
        fresh = self._note.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(noted, file)
            file.flush()
            os.fsync(file.fileno())  # before the mode changes: that may survive a power cut alone
        fresh.replace(self._note)
