"""umount.ibpfs: everything to the depots, then away with the mount, then wait for its process to end."""

import errno
import os
from pathlib import Path

import click

from ibpfs.config import VolumePaths, data_directory
from ibpfs.control import Refused
from ibpfs.directory_below import DirectoryBelow
from ibpfs.errors import IbpfsError
from ibpfs.mount_table import MountEntry
from ibpfs.ownership import is_held
from ibpfs_tools import exits, mounts
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.namespaces import enter_namespace
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
@click.option("-f", "--force", is_flag=True, help="Do not wait for depots: what they lack waits in the spool.")
@click.option("-l", "--lazy", is_flag=True, help="As -f, and also while the mount is in use.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
@click.option("-n", "no_mtab", is_flag=True, help="Accepted.")
@click.option("-r", "read_only", is_flag=True, help="Accepted.")
@click.option("-t", "types", metavar="TYPE", help="Accepted.")
@click.option("-N", "--namespace", metavar="NS", help="Unmount in this mount namespace: a process id or a path.")
def umount(
    mountpoint: str,
    quiet: bool,
    force: bool,
    lazy: bool,
    verbose: bool,
    no_mtab: bool,
    read_only: bool,
    types: str | None,
    namespace: str | None,
) -> None:
    """Unmount MOUNTPOINT (or the volume of that path or name); return when everything is on the depots."""
    del no_mtab, read_only, types
    if namespace:
        enter_namespace(namespace)
    place = mounts.absolute(mountpoint)
    mount = mounts.mount_on(place) or mounts.mount_of(place)
    if mount is None and "/" not in mountpoint:
        mount = mounts.mount_of((data_directory() / mountpoint).resolve())
    if mount is None:
        raise IbpfsError(f"{place}: no file system of ibpfs is mounted there")
    os.chdir("/")  # else this process would be one that uses the mount
    paths = VolumePaths(Path(mount.source))
    waiting = not (force or lazy)
    if waiting:
        _flush(mount, paths, quiet)
    _take_away(mount, lazy)
    if not is_held(paths.lock):  # a dead mount, whose process could not do that
        DirectoryBelow(mount.mountpoint, paths.directory_below).give_back()
    if waiting:
        _wait(paths)
    if verbose:
        click.echo(f"umount.ibpfs: {mount.mountpoint}: unmounted", err=True)


def _flush(mount: MountEntry, paths: VolumePaths, quiet: bool) -> None:
    if not is_held(paths.lock):
        click.echo("umount.ibpfs: the mount's process is gone; what it left is uploaded by the next mount", err=True)
        return
    try:
        result = ask(paths, "flush", Secrets(), title="flushing", quiet=quiet)
    except Refused as error:
        raise IbpfsError(f"{mount.mountpoint}: {error}; to unmount without waiting: umount.ibpfs -f") from None
    if isinstance(result, dict) and result.get("note"):
        click.echo(f"umount.ibpfs: {mount.mountpoint}: {result['note']}", err=True)


def _take_away(mount: MountEntry, lazily: bool) -> None:
    try:
        mounts.take_away(mount.mountpoint, lazily=lazily)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise IbpfsError(
            f"{mount.mountpoint}: in use {describe(mount)}; everything written so far is on the depots"
        ) from None


def _wait(paths: VolumePaths) -> None:
    if mounts.wait_until_free(paths):
        _check_spool(paths)
    else:
        click.echo(f"umount.ibpfs: {paths.root}: on the depots, and still mounted in another mount namespace", err=True)


def _check_spool(paths: VolumePaths) -> None:
    """What was written between the flush and the end has been uploaded by the owner, or waits here; beside it there may
    be what lacks copies, which the flush has told."""
    if any(paths.spool.glob("*.spool")) and not paths.safe.exists():
        raise IbpfsError(f"{paths.root}: unmounted, but bytes wait in the spool; the next mount uploads them")


def main() -> None:
    exits.run(umount, exits.MOUNT)
