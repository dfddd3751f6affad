"""Files from messages as links: each is put on a mounted volume, shared, and taken away again; the link keeps it."""

import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ibpfs.config import VolumePaths, parse_duration, parse_size
from ibpfs.control import call
from ibpfs.errors import UsageError, VolumeError
from ibpfs.mail.blocks import Shared
from ibpfs.mail.settings import Settings
from ibpfs.mount_table import MountEntry
from ibpfs_tools import mounts
from ibpfs_tools.asking import find_asked
from ibpfs_tools.share import remnant

#: What lies there for longer was left by a process that was killed.
_LEFT_BEHIND = 86400.0
#: What we call our directories: whatever else is in the place is somebody's.
_OURS = re.compile(r"mail-[0-9a-f]{16}")
#: What is copied for one link at most, where a depot gives no window on the volume's own bytes.
_COPY_LIMIT = parse_size("1T")


class MountSharer:
    """Shares on the volume that the settings name, which is mounted here."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def share(self, name: str, size: int, pieces: Iterator[bytes]) -> Shared:
        entry = self._mount()
        with _place(entry.mountpoint / self._settings.directory) as directory:
            path = directory / name
            written = _write(path, pieces)
            if written != size:
                raise VolumeError(f"{written} bytes of {size} of a file were written")
            found = call(
                VolumePaths(Path(entry.source)), "share", ino=path.stat().st_ino,
                path=f"/{path.relative_to(entry.mountpoint)}", name=name, note="", passphrase=None, recipients=[],
                seconds=parse_duration(self._settings.expires), for_browsers=True, near=None, copies=1,
                copy_limit=_COPY_LIMIT, hashes=True, gateway=self._settings.gateway or None,
            )  # fmt: skip
        if found["this_machine_only"] and self._settings.local_links == "refuse":
            self.revoke([str(found["id"])])
            raise VolumeError("its link would open on this machine alone, where the depots are (ibpfs depots add names"
                              " others; local_links = \"send\" is for mail that stays here)")  # fmt: skip
        return _shared(found)

    def revoke(self, ids: Sequence[str]) -> None:
        """VolumeError where a depot has not ended something."""
        rows = call(VolumePaths(Path(self._mount().source)), "share-revoke", id="", ids=list(ids))
        left = [f"{row['id']}: {remnant(one)}" for row in rows for one in row["left"]]
        if left:
            raise VolumeError("; ".join(left))

    def describe(self) -> str:
        """Return what is mounted where, for a person; VolumeError when nothing is."""
        entry = self._mount()
        return f"{Path(entry.source).name} on {entry.mountpoint}"

    def _mount(self) -> MountEntry:
        word = self._settings.volume
        if word:
            paths = find_asked(word)
            found = [one for one in mounts.ibpfs_mounts() if one.source == str(paths.root)]
            if not found:
                raise VolumeError(f"{word}: is not mounted")
            return found[-1]
        found = [one for one in mounts.ibpfs_mounts() if _is_mine(one)]
        if len({one.source for one in found}) > 1:
            raise UsageError("several volumes are mounted: say which one files go to (volume)")
        if not found:
            raise VolumeError("no volume is mounted")
        return found[-1]


def _is_mine(entry: MountEntry) -> bool:
    try:
        return VolumePaths(Path(entry.source)).control.exists()
    except PermissionError:
        return False


@contextmanager
def _place(base: Path) -> Iterator[Path]:
    """A new directory, which goes away with what is in it."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in base.iterdir():
        if _is_left_behind(one):
            shutil.rmtree(one, ignore_errors=True)
    directory = base / f"mail-{secrets.token_hex(8)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _is_left_behind(path: Path) -> bool:
    if _OURS.fullmatch(path.name) is None:
        return False
    try:
        found = path.lstat()
    except FileNotFoundError:  # another process has just ended
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_mtime < time.time() - _LEFT_BEHIND


def _write(path: Path, pieces: Iterator[bytes]) -> int:
    with path.open("xb") as file:
        return sum(file.write(piece) for piece in pieces)


def _shared(found: dict[str, Any]) -> Shared:
    return Shared(
        str(found["id"]), str(found["name"]), int(found["size"]), int(found["expires"]), str(found["link"]),
        str(found["ibpfs_link"]),
    )  # fmt: skip
