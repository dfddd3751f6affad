"""Who uses a mount: what fuser(1) would say, read from /proc without touching the mount."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ibpfs.mount_table import MountEntry


@dataclass(frozen=True)
class Occupant:
    """A process and one thing of it that keeps the mount busy."""

    pid: int
    name: str
    use: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}, {self.use})"


def occupants(mount: MountEntry) -> list[Occupant]:
    """Return the processes that this user may look into and that use the mount, by process id."""
    found = []
    for directory in sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name)):
        with suppress(OSError):  # it ended, or is somebody else's
            use = next(_uses(directory, mount), None)
            if use is not None:
                name = (directory / "comm").read_text(errors="replace").strip()
                found.append(Occupant(int(directory.name), name, use))
    return found


def describe(mount: MountEntry) -> str:
    """Return the occupants in one line."""
    found = occupants(mount)
    if not found:
        return "by a process of another user"
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return "by " + ", ".join(str(occupant) for occupant in found[:5]) + more


def _uses(process: Path, mount: MountEntry) -> Iterator[str]:
    for link, use in (("cwd", "working directory"), ("root", "root directory"), ("exe", "running program")):
        if _inside(process / link, mount):
            yield use
    for descriptor in (process / "fd").iterdir():
        if _inside(descriptor, mount) and _is_on(process / "fdinfo" / descriptor.name, mount):
            path = Path(os.readlink(descriptor)).relative_to(mount.mountpoint)  # noqa: PTH115 (no resolving)
            yield f"open file {path}"
    if f" {_map_device(mount.device)} " in (process / "maps").read_text(errors="replace"):
        yield "mapped file"


def _inside(link: Path, mount: MountEntry) -> bool:
    try:
        return Path(os.readlink(link)).is_relative_to(mount.mountpoint)  # noqa: PTH115
    except OSError:
        return False


def _is_on(description: Path, mount: MountEntry) -> bool:
    """Whether a descriptor is of the mount; it may be of what the mount hides, as one of the mount's own process."""
    return f"mnt_id:\t{mount.number}" in description.read_text().splitlines()


def _map_device(device: str) -> str:
    major, minor = (int(part) for part in device.split(":"))
    return f"{major:02x}:{minor:02x}"
