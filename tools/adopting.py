"""What a link points to, as files of a mounted volume that consist of the shared slices."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ibpfs.config import VolumePaths
from ibpfs.errors import NameExists
from ibpfs.exnode_store.ledger_rows import pack_key
from ibpfs.exnode_store.lors.outputs import put_in_place
from ibpfs.exnode_store.sealing import ForeignSlice
from ibpfs.exnode_store.sharing.contents import DIRECTORY, FILE, Content, Entry
from ibpfs.exnode_store.sharing.symlinks import make_links
from ibpfs_tools.asking import ask
from ibpfs_tools.exnodes import Pace, printable
from ibpfs_tools.mounts import volume_holding
from ibpfs_tools.unlocking import Secrets


def adopt_content(content: Content, target: Path, pace: Pace) -> None:
    """Make `target`, on a mounted volume, what the link points to; it appears when it is complete."""
    _refuse(target)
    paths = volume_holding(target.parent)
    hidden = target.with_name(f".{target.name[:60]}.adopt-{os.getpid()}")
    try:
        if not content.is_directory:
            _file(paths, content, content.entries[0], hidden, pace)
            put_in_place(hidden, target, overwrite=False)
            return
        _tree(paths, content, hidden, pace)
        _refuse(target)
        hidden.rename(target)
    except BaseException:
        hidden.unlink(missing_ok=True) if not hidden.is_dir() else shutil.rmtree(hidden, ignore_errors=True)
        raise


def _refuse(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise NameExists(f"{target}: exists already; say another name with -o")


def _tree(paths: VolumePaths, content: Content, root: Path, pace: Pace) -> None:
    for entry in content.entries:
        place = root.joinpath(*entry.path)
        if entry.kind == FILE:
            _file(paths, content, entry, place, pace)
        elif entry.kind == DIRECTORY:
            place.mkdir()
    make_links(root, content.entries)
    for entry in reversed(content.entries):
        if entry.kind == DIRECTORY:
            _touch(root.joinpath(*entry.path), entry)


def _file(paths: VolumePaths, content: Content, entry: Entry, place: Path, pace: Pace) -> None:
    mode = 0o777 if entry.mode & 0o100 else 0o666
    descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    ino = os.fstat(descriptor).st_ino
    os.close(descriptor)
    if entry.size:
        ask(paths, "import", Secrets(), title=f"adopting {printable(content.name)}", quiet=pace.quiet, ino=ino,
            size=entry.size, own=False, adopted=True, parts=list(_parts(content, entry)))  # fmt: skip
    _touch(place, entry)


def _touch(place: Path, entry: Entry) -> None:
    with suppress(OverflowError, OSError):
        os.utime(place, ns=(time.time_ns(), entry.mtime_ns))


def _parts(content: Content, entry: Entry) -> Iterator[dict[str, Any]]:
    for part in entry.parts:
        slice_ = content.slices[part.slice]
        yield {
            "start": part.start, "stop": part.stop,
            "sealed": ForeignSlice(slice_.form, part.offset, slice_.key).as_row(),
            "replicas": [
                {"address": str(copy.depot), "base": copy.base + slice_.offset, "read": pack_key(copy.read),
                 "lease_end": content.expires, "pin": content.pins.get(copy.depot, b"").hex()}
                for copy in content.runs[slice_.run].copies
            ],
        }  # fmt: skip
