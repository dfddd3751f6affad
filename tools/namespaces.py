"""Other mount namespaces, which -N of mount(8) and umount(8) names."""

import ctypes
import os
from pathlib import Path

from ibpfs.errors import IbpfsError

_CLONE_NEWNS = 0x00020000


def enter_namespace(word: str) -> None:
    path = Path(f"/proc/{word}/ns/mnt") if word.isdigit() else Path(word)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise IbpfsError(f"{path}: no such mount namespace ({error.strerror})") from None
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.setns(descriptor, _CLONE_NEWNS)
    os.close(descriptor)
    if failed:
        raise IbpfsError(f"{path}: cannot enter this mount namespace ({os.strerror(ctypes.get_errno())})")
