"""umount.ibpfs: everything to the depots, then away with the mount, then wait for its process to end."""

import errno
import os
from pathlib import Path

import click

from ibpfs.config import VolumePaths
from ibpfs.errors import IbpfsError
from ibpfs.kernel import MountEntry
from ibpfs_tools import exits, mounts
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.occupants import describe
from ibpfs_tools.unlocking import Secrets

EPILOG = """\b
Exit codes are those of mount(8): 0 everything is on the depots and the mount is gone,
1 wrong call, 2 system error, 8 interrupted, 32 still mounted (busy, or depots do not answer).

A plain umount or fusermount3 -u loses nothing either: what is not on depots then waits in the
volume's spool and is uploaded in the background, or by the next mount.
"""


@command("umount.ibpfs", epilog=EPILOG)
@click.argument("mountpoint")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def umount(mountpoint: str, quiet: bool) -> None:
    """Unmount MOUNTPOINT (or the volume of that path); return when everything is on the depots."""
    place = mounts.absolute(mountpoint)
    mount = mounts.mount_on(place) or mounts.mount_of(place)
    if mount is None:
        raise IbpfsError(f"{place}: no file system of ibpfs is mounted there")
    os.chdir("/")  # else this process would be one that uses the mount
    paths = VolumePaths(Path(mount.source))
    if mounts.in_use(paths):
        ask(paths, "flush", Secrets(), title="flushing", quiet=quiet)
    else:
        click.echo("umount.ibpfs: the mount's process is gone; what it left is uploaded by the next mount", err=True)
    _take_away(mount)
    mounts.wait_until_free(paths)
    _check_spool(paths)


def _take_away(mount: MountEntry) -> None:
    try:
        mounts.take_away(mount.mountpoint)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise IbpfsError(
            f"{mount.mountpoint}: in use {describe(mount)}; everything written so far is on the depots"
        ) from None


def _check_spool(paths: VolumePaths) -> None:
    """What was written between the flush and the end has been uploaded by the owner, or waits here."""
    if any(paths.spool.glob("*.spool")):
        raise IbpfsError(f"{paths.root}: unmounted, but bytes wait in the spool; the next mount uploads them")


def main() -> None:
    exits.run(umount, exits.MOUNT)
