"""What is mounted, as the kernel tells it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ibpfs.mountinfo import mountinfo


class MountEntry(NamedTuple):
    """A line of /proc/self/mountinfo. `number` tells this mount from any other, `device` is MAJOR:MINOR."""

    number: int
    device: str
    mountpoint: Path
    options: tuple[str, ...]
    kind: str
    source: str


def mount_entries() -> Iterator[MountEntry]:
    """Yield what is mounted, in the order of mounting."""
    for number, device, place, options, kind, source in mountinfo():
        yield MountEntry(int(number), device, Path(place), tuple(options.split(",")), kind, source)
