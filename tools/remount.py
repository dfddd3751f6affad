"""mount -o remount: the flags of a mount change through mount(2), and its owner is told."""

from pathlib import Path

from ibpfs import kernel
from ibpfs.config import VolumePaths
from ibpfs.control import call
from ibpfs.errors import VolumeError
from ibpfs.mount_options import MountOptions
from ibpfs_tools.mounts import mount_on


def remount(place: Path, options: MountOptions, *, fake: bool = False) -> None:
    """Change flags (`ro`, `rw`, `noatime`, `nosuid`, ...) of the mount on `place`; settings of our own stay.

    mount(8) passes every option of /proc/mounts along; what is not named stays as it is.
    """
    entry = mount_on(place)
    if entry is None:
        raise VolumeError(f"{place}: no file system of ibpfs is mounted there")
    if fake:
        return
    paths = VolumePaths(Path(entry.source))
    if not options.read_only:
        call(paths, "remount", read_only=False)  # it may refuse
    kernel.remount(place, options)
    call(paths, "remount", read_only=options.read_only)  # the owner looks at the mount's flags as they are now
