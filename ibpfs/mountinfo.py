"""What is mounted, as plain text. Looks at no mount point: who serves a mount must never wait for it.

`ibpfs flush MOUNTPOINT` needs this and `control` alone, and neither imports pathlib, typing or contextlib: they take
5 ms, a third of the time that it has beside Python's own start.
"""

# ruff: noqa: PTH100, PTH115, PTH118, PTH119, PTH120, PTH123

import errno
import os
import re

from ibpfs.errors import IbpfsError

FILE_SYSTEM_TYPE = "fuse.ibpfs"
TABLE = "/proc/self/mountinfo"

_OCTAL = re.compile(r"\\([0-7]{3})")
_LINKS = 40  # as many in one path as the kernel follows


def mountinfo() -> list[tuple[str, str, str, str, str, str]]:
    """Number, device, mount point, options, type and source of each mount, in the order of mounting."""
    with open(TABLE, "rb") as table:
        lines = table.read().decode(errors="surrogateescape").rstrip("\n").split("\n")  # a name may hold "\f"
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(" "), right.split(" ")
        found.append((fields[0], fields[2], _plain(fields[4]), fields[5], kind, _plain(source)))
    return found


def volume_on(mountpoint: str) -> str | None:
    """The volume whose mount is the topmost of ibpfs on exactly this directory."""
    for _, _, place, _, kind, source in reversed(mountinfo()):
        if place == mountpoint and kind == FILE_SYSTEM_TYPE:
            return source
    return None


def absolute(word: str) -> str:
    """Return an absolute path without `..` and links; what lies there, perhaps a dead mount, is not looked at.

    IbpfsError when its links lead nowhere.
    """
    path = os.path.abspath(word)
    for _ in range(_LINKS):
        parent = os.path.realpath(os.path.dirname(path))
        path = os.path.join(parent, os.path.basename(path))
        try:
            path = os.path.join(parent, _tidy(os.readlink(path)))  # of a mount this asks the kernel alone
        except OSError:
            return path
    raise IbpfsError(f"{word}: {os.strerror(errno.ELOOP)}")


def _tidy(path: str) -> str:
    """Without a slash at its end, or `/.`: who follows these looks at what lies there. `..` may be that of a link."""
    names = "/".join(name for name in path.split("/") if name not in ("", "."))
    return f"/{names}" if path.startswith("/") else names or "."


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
