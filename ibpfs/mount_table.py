"""What is mounted, as the kernel tells it. Looks at no mount point: who serves a mount must never wait for it.

Quick to import, as `paths`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE_SYSTEM_TYPE = "fuse.ibpfs"

_OCTAL = re.compile(r"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """A line of /proc/self/mountinfo. `number` tells this mount from any other, `device` is MAJOR:MINOR."""

    number: int
    device: str
    mountpoint: Path
    options: tuple[str, ...]
    kind: str
    source: str


def mount_entries(table: Path = Path("/proc/self/mountinfo")) -> Iterator[MountEntry]:
    """Yield what is mounted, in the order of mounting."""
    for line in table.read_bytes().decode(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source, *_) = left.split(" "), right.split(" ")
        place, options = Path(_plain(fields[4])), tuple(fields[5].split(","))
        yield MountEntry(int(fields[0]), fields[2], place, options, kind, _plain(source))


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
