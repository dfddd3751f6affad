"""Files that appear whole or not at all, and never over another one unless that was asked for."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ibpfs.config import sync_directory, write_private
from ibpfs.errors import NameExists, UsageError, VolumeBusy


def refuse_existing(path: Path, overwrite: bool, *, advice: str = "; --force replaces it") -> None:
    """Raise before any work is done; what is put into place checks again."""
    if path.is_dir():
        raise UsageError(f"{path}: is a directory")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise NameExists(f"{path}: exists already{advice}")


def put_in_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a file that is complete and synced its name."""
    if overwrite:
        temporary.replace(path)
    else:
        _rename_new(temporary, path)
    sync_directory(path.parent)


def _rename_new(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        refuse_existing(path, overwrite=False)
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        refuse_existing(path, overwrite=False)  # a file system without links: the check and the rename are two steps
        temporary.replace(path)
    else:
        temporary.unlink()


def write_document(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a document, 0600: its capabilities are secrets."""
    if overwrite:
        write_private(path.resolve(), data)
        return
    refuse_existing(path, overwrite=False)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path, overwrite=False)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def editing(path: Path) -> Iterator[None]:
    """Nobody else changes the document meanwhile: VolumeBusy when somebody does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise VolumeBusy(f"{path}: another command is changing it") from None
    finally:
        os.close(descriptor)
