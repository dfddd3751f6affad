"""mount.ibpfs: mount a volume; also what mount(8) calls as /sbin/mount.ibpfs and /sbin/mount.fuse.ibpfs."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from ibpfs import kernel
from ibpfs.config import Secret, VolumePaths, check_access, find_volume, load_config
from ibpfs.errors import UsageError, VolumeBusy, VolumeError
from ibpfs.mount_options import MountOptions, parse_mount_options
from ibpfs.ownership import is_dying, is_held, owner_of
from ibpfs_tools import exits, mounts
from ibpfs_tools.commands import command, complete_volume
from ibpfs_tools.daemon import Report, run_in_background
from ibpfs_tools.logs import NoteHandler, log_to_terminal, start_logging
from ibpfs_tools.namespaces import enter_namespace
from ibpfs_tools.remount import remount
from ibpfs_tools.supervisor import Supervisor
from ibpfs_tools.unlocking import Secrets, find_secret, secret_options

_log = logging.getLogger(__name__)

OPTIONS_HELP = """\b
Options of our own behind -o (docs/operating.md has more on each):
  sync=close|write    close (or every write) waits until the depots have the bytes
  cache_dir=DIR       the cache of clean bytes  [default: VOLUME/cache]
  cache_size=SIZE     its limit  [default: 10% of its disk, at most 50G;
                      1G when the only depot is the volume's own]
  min_free=SHARE      of the cache's disk that stays free  [default: 5%]
  dirty=SIZE          memory for bytes not yet on depots  [default: 256M]
  deadline=SECONDS    for every request  [default: read 20, fsync 30, local 5]
  passphrase_file=F   as --passphrase-file, for /etc/fstab
  writeback           the kernel's write-back cache (root only)
  noallow_other       a mount by root is for root alone
Every option of mount(8) and systemd.mount(5) is honoured or accepted. With ro
no policy, snapshot, link or trash of the volume is changed either.

\b
Exit codes are those of mount(8): 0 mounted, 1 wrong call, 2 system error,
4 internal error, 8 interrupted, 32 not mounted.
"""


@command("mount.ibpfs", epilog=OPTIONS_HELP)
@click.argument("volume", shell_complete=complete_volume)
@click.argument("mountpoint")
@click.option("-o", "words", multiple=True, metavar="OPT,...", help="Mount options, see below.")
@click.option("-F", "--foreground", is_flag=True, help="Stay in the foreground and log to the terminal.")
@click.option("-f", "--fake", is_flag=True, help="Check everything, but do not mount.")
@click.option("-n", "--no-mtab", is_flag=True, help="Accepted: nothing is written to /etc/mtab anyway.")
@click.option("-s", "--sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
@click.option("-t", "--types", metavar="TYPE", help="Accepted: mount(8) names the type here.")
@click.option("-N", "--namespace", metavar="NS", help="Mount in this mount namespace: a process id or a path.")
@secret_options
def mount(
    volume: str,
    mountpoint: str,
    words: tuple[str, ...],
    foreground: bool,
    fake: bool,
    no_mtab: bool,
    sloppy: bool,
    verbose: bool,
    types: str | None,
    namespace: str | None,
    secrets: Secrets,
) -> None:
    """Mount VOLUME (a path, or a name under ~/.local/share/ibpfs) on the directory MOUNTPOINT.

    Returns when the mount answers. Works as root and, through fusermount3, as an ordinary user.
    """
    del no_mtab, types
    if namespace:
        enter_namespace(namespace)
    options = parse_mount_options(words, sloppy=sloppy)
    place = mounts.absolute(mountpoint)
    say = _say if verbose else _nothing
    if options.remount:
        remount(place, options, fake=fake)
        say(f"{place}: remounted")
        return
    paths = find_volume(volume)
    _prepare(paths, place)
    if fake:
        say(f"{paths.root} can be mounted on {place}")
        return
    secret = find_secret(paths, secrets if secrets != Secrets() else Secrets(options.passphrase_file))
    if foreground:
        _in_foreground(paths, place, options, secret)
        return
    supervisor = _supervisor(paths, place, options, secret)
    run_in_background(supervisor.run, exits.MOUNT, _say)
    say(f"{paths.root}: mounted on {place}")


def _prepare(paths: VolumePaths, place: Path) -> None:
    """Raise what would make the mount fail, in words, before anything is begun."""
    load_config(paths)
    check_access(paths)
    ours = kernel.mounts_of(paths.root)
    if ours and is_held(paths.lock) and not is_dying(owner_of(paths)):
        raise VolumeBusy(f"{paths.root}: is mounted already, on {ours[-1].mountpoint}")
    if any(entry.mountpoint == place for entry in ours):
        return  # a dead mount: whoever gets hold of the volume takes it away
    try:
        kernel.check_mountpoint(place, paths.root)
    except UsageError as error:  # what mount(8) itself calls a failure, not a wrong call
        raise VolumeError(str(error)) from None


def _in_foreground(paths: VolumePaths, place: Path, options: MountOptions, secret: Secret) -> None:
    log_to_terminal()
    _run(paths, place, options, secret, lambda: logging.getLogger(__name__).info("%s: mounted", place))


def _supervisor(paths: VolumePaths, place: Path, options: MountOptions, secret: Secret) -> Supervisor:
    def left_behind() -> bool:
        return any(entry.mountpoint == place for entry in kernel.mounts_of(paths.root))

    def give_up(why: str) -> None:
        start_logging(paths)
        _log.critical("%s: the process that serves it was %s", place, why)

    return Supervisor(
        lambda report, again: _serve(paths, place, options, secret, report, again=again), left_behind, exits.MOUNT,
        give_up,
    )  # fmt: skip


def _serve(
    paths: VolumePaths, place: Path, options: MountOptions, secret: Secret, report: Report, *, again: bool
) -> None:
    notes = NoteHandler(report.note)
    logging.getLogger().addHandler(notes)

    def ready() -> None:
        logging.getLogger().removeHandler(notes)
        report.ready()

    _run(paths, place, options, secret, ready, os.getppid(), again=again)


def _run(
    paths: VolumePaths, place: Path, options: MountOptions, secret: Secret, ready: Callable[[], None],
    supervisor: int | None = None, *, again: bool = False,
) -> None:  # fmt: skip
    start_logging(paths)
    import trio  # behind the fork

    from ibpfs.mount import serve

    trio.run(partial(serve, again=again), paths, place, options, secret, ready, supervisor)


def _say(text: str) -> None:
    click.echo(f"mount.ibpfs: {text}", err=True)


def _nothing(_: str) -> None:
    """Where words go without -v."""


def main() -> None:
    exits.run(mount, exits.MOUNT)
