"""Parts of a sync: to let the disk begin, and to wait for what has begun (sync_file_range of Linux)."""

import ctypes
import os
from contextlib import suppress

_WAIT, _WRITE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def start_writeback(fd: int, offset: int = 0, length: int = 0) -> None:
    """Lets the disk begin early; a hint, so that the sync which follows is short. `length` 0: to the end."""
    with suppress(OSError):
        _file_range(fd, offset, length, _WRITE)


def wait_for_writeback(fd: int) -> None:
    """OSError when some of the file could not be written since it was opened."""
    _file_range(fd, 0, 0, _WAIT)


def _file_range(fd: int, offset: int, length: int, flags: int) -> None:
    if _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
