"""Which objects an open volume consists of, in what order they start and stop; and a volume on a mount point.

Ends in any case with the spool holding what is not on the depots. Nothing here knows a terminal; what the person who
mounts should hear is logged at INFO.
"""

import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ibpfs import kernel
from ibpfs.cache.clean import CleanCache
from ibpfs.cache.compactor import Compactor
from ibpfs.cache.dirty import RecordMemory
from ibpfs.cache.files import FileCache
from ibpfs.cache.flusher import Flusher
from ibpfs.cache.frames import SliceReader
from ibpfs.cache.retention import Retention
from ibpfs.cache.room import Limits
from ibpfs.cache.sealer import Sealer
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import FILE_SIZE
from ibpfs.config import Secret, VolumeConfig, VolumePaths, check_access, load_config
from ibpfs.control import Progress
from ibpfs.depot.clock import SteadyClock
from ibpfs.depot.embedded import EmbeddedDepot, socket_of
from ibpfs.depot.suspends import watch_suspends
from ibpfs.directory_below import DirectoryBelow
from ibpfs.ear import listening
from ibpfs.errors import DeadlineExceeded, NoSpace, UsageError, VolumeError
from ibpfs.exnode_store.checkpoints.commits import Dirty
from ibpfs.exnode_store.checkpoints.keeper import Checkpoints
from ibpfs.exnode_store.checkpoints.recovery_key import RecoveryKey, prepare_checkpoints
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.findings import Findings
from ibpfs.exnode_store.imports import Imports
from ibpfs.exnode_store.keys import VolumeKeys, open_slots
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.merging import Merging
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.policy_walks import PolicyWalks
from ibpfs.exnode_store.sealing import FUNCTION_CODES
from ibpfs.exnode_store.settling import Settling
from ibpfs.exnode_store.sharing.adoption import Adoption
from ibpfs.exnode_store.snapshots import Snapshots
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.upkeep import Upkeep
from ibpfs.exnode_store.warmer import Warmer
from ibpfs.exnode_store.whereabouts import Whereabouts
from ibpfs.kernel_door import KernelDoor
from ibpfs.mount_options import MountOptions
from ibpfs.ownership import DRAINING, MOUNTED, Ownership, owned
from ibpfs.process import calm_collector, prepare_process
from ibpfs.quantities import format_size
from ibpfs.services import Parts, Services
from ibpfs.sharing import Sharing
from ibpfs.trash_commands import TrashCommands
from ibpfs.upkeep import UpkeepCommands

_log = logging.getLogger(__name__)

MIB = 1024 * 1024
GIB = 1024 * MIB
#: Clear bytes of spool records kept in memory; older ones are read back from the spool when they fly.
_RECORD_MEMORY = 64 * MIB
#: Seconds that a mount waits for its own depot to start; it does without it then, for the time being.
_DEPOT_START = 5.0
#: Seconds that mkfs waits for depots.
_FIRST_ANSWER = 3.0


@dataclass
class OpenVolume:
    """A volume and its owner: everything but the kernel."""

    ownership: Ownership
    names: Namespace
    parts: Parts
    services: Services

    @property
    def root(self) -> Path:
        return self.parts.paths.root

    @property
    def whereabouts(self) -> Whereabouts:
        return Whereabouts(self.parts.db, self.parts.ledger, self.parts.depots)


@asynccontextmanager
async def open_volume(
    paths: VolumePaths, secret: Secret, options: MountOptions | None = None
) -> AsyncIterator[OpenVolume]:
    """Own a volume: its rooms, their tasks, and an ear for commands. Needs no depot to answer.

    Waits for an owner that is about to end. Raises VolumeBusy, VolumeError, WrongKey.
    """
    options = options or MountOptions()
    check_access(paths)
    async with owned(paths) as ownership:
        config = load_config(paths)
        keys = unlock(paths, config, secret)
        with Database(paths.store) as db:
            async with _rooms(paths, config, keys, db, options) as (names, parts):
                services = Services(parts)
                async with listening(paths.control, services.commands()):
                    yield OpenVolume(ownership, names, parts, services)


def unlock(paths: VolumePaths, config: VolumeConfig, secret: Secret) -> VolumeKeys:
    """Return the volume's keys. Raises WrongKey, VolumeError."""
    try:
        return open_slots(config.slots, config.epochs, secret.kind, secret.value, config.uuid)
    except VolumeError as error:
        raise type(error)(f"{paths.root}: {error}") from error.__cause__


@asynccontextmanager
async def _rooms(
    paths: VolumePaths, config: VolumeConfig, keys: VolumeKeys, db: Database, options: MountOptions
) -> AsyncIterator[tuple[Namespace, Parts]]:
    prepare_checkpoints(db, config, keys)
    ledger = Ledger(db, SteadyClock())
    ledger.remove_empty_depots()
    ledger.forget_windows()
    names = Namespace(db, time.time_ns, ledger.unmap)
    clean = CleanCache(*_cache_settings(paths, config, db, options))
    clean.forget_above(ledger.last_segment)
    snapshots = Snapshots(db, ledger, paths.snapshots)
    snapshots.recover()
    paths.safe.unlink(missing_ok=True)
    spool = Spool(paths.spool, keys, config.uuid)
    async with volume_depots(paths, db) as depots, trio.open_nursery() as nursery:
        checkpoints = Checkpoints(db, ledger, depots, paths.run)
        await checkpoints.check()
        transfer = Transfer(db, ledger, depots)
        imports = Imports(db, ledger, keys, config.uuid)
        same_disk = _same_disk(clean.directory, paths.depot)
        beside = transfer.is_own if same_disk else _is_not_beside
        reader = SliceReader(ledger.segment_length, transfer, imports, clean, is_beside=beside)
        memory = RecordMemory(min(options.dirty, _RECORD_MEMORY))
        sealer = _sealer(config, keys, db)
        retention = Retention(ledger, transfer, spool, sealer)
        flusher = Flusher(db, ledger, transfer, spool, memory, clean, sealer, retention, beside)
        files = FileCache(db, names, ledger, transfer, spool, memory, reader, flusher, _limits(paths, options))
        checkpoints.snapshots = snapshots.files
        checkpoints.dirty = lambda: [
            Dirty(ino, one.dirty, [(piece.start, piece.stop) for piece in one.extents])
            for ino, one in flusher.files.items()
            if one.dirty
        ]
        checkpoints.commit_stored = flusher.commit_stored
        transfer.untrimmed.update(ledger.close_all_segments())
        ledger.abandon_pending()
        recovered = files.recover()
        if recovered:
            _log.info("%s: %s of an earlier mount wait in the spool and are uploaded now", paths.root,
                      format_size(recovered))  # fmt: skip
        warmer = Warmer(db, ledger, depots, transfer, checkpoints)
        compactor = Compactor(Merging(db, ledger), ledger, transfer, reader, clean, sealer, flusher)
        draining = Draining(db, ledger, depots, transfer, warmer)
        findings = Findings(db, ledger, depots, warmer, str(paths.root))
        settling = Settling(PolicyWalks(db, transfer.policies), ledger, depots, transfer, warmer)
        settling.walks.changed = flusher.policies_changed
        upkeep = UpkeepCommands(
            Upkeep(db, ledger, depots, transfer, warmer, draining), draining, warmer.scrubbing, findings, settling
        )
        sharing = Sharing(db, ledger, depots, files, imports, keys, warmer.recoding)
        tasks = flusher.run, files.run, reader.serve, warmer.run, draining.run, settling.run, compactor.run
        adoption = Adoption(db, ledger, transfer, imports, int(db.facts["digest_seed"], 16))
        for task in (*tasks, sharing.run, adoption.run, checkpoints.run):
            nursery.start_soon(task)
        nursery.start_soon(watch_suspends, depots.drop_connections)
        try:
            recovery_key = RecoveryKey(paths, db, config, keys, checkpoints)
            yield names, Parts(paths, db, ledger, depots, clean, flusher, files, warmer, compactor, imports, upkeep,
                               snapshots, checkpoints, recovery_key, sharing,
                               TrashCommands(db, names, files.trash), transfer.hedging)  # fmt: skip
            if await flusher.finish(0.0):
                with suppress(OSError):
                    paths.safe.touch()
        finally:
            nursery.cancel_scope.cancel()
            spool.close()
            snapshots.close()


def _sealer(config: VolumeConfig, keys: VolumeKeys, db: Database) -> Sealer:
    facts = db.facts
    function = FUNCTION_CODES[facts["function"]]
    return Sealer(keys, config.uuid, function, int(facts["frame_size"]), int(facts["digest_seed"], 16))


def _cache_settings(
    paths: VolumePaths, config: VolumeConfig, db: Database, options: MountOptions
) -> tuple[Path, int, float]:
    """Where the clean cache is, how large, and which share of its disk stays free."""
    directory = (options.cache_dir or paths.cache) / config.uuid.hex()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = os.statvfs(directory)
    except OSError as error:
        raise VolumeError(f"{directory}: cannot keep a cache there ({error.strerror})") from None
    limit = options.cache_size
    if limit is None:
        embedded_alone = not db.value("SELECT count(*) FROM depots WHERE NOT embedded AND role != 'removed'")
        limit = min(disk.f_blocks * disk.f_frsize // 10, GIB if embedded_alone else 50 * GIB)
    return directory, limit, options.min_free


def _is_not_beside(segment: int, giver: int | None = None) -> bool:
    """As `is_own`, where the clean cache has a disk of its own."""
    return False


def _same_disk(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_dev == other.stat().st_dev
    except OSError:
        return False


def _limits(paths: VolumePaths, options: MountOptions) -> Limits:
    disk = os.statvfs(paths.spool)
    return Limits(
        dirty=options.dirty,
        spool=max(2 * FILE_SIZE, disk.f_bavail * disk.f_frsize // 5),
        deadline=20.0 if options.deadline is None else options.deadline,
    )


@asynccontextmanager
async def _embedded(paths: VolumePaths, db: Database, depots: DepotSet) -> AsyncIterator[EmbeddedDepot | None]:
    """Keep the embedded depot running, where the volume has one; entered when it answers, or is slow to."""
    if not db.value("SELECT count(*) FROM depots WHERE embedded AND role != 'removed'"):
        yield None
        return
    embedded = EmbeddedDepot(paths.depot, paths.log / "depot.log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(embedded.keep, partial(_note_address, depots))
        with trio.move_on_after(_DEPOT_START):
            await embedded.ready.wait()
        yield embedded
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def volume_depots(paths: VolumePaths, db: Database) -> AsyncIterator[DepotSet]:
    depots = DepotSet(db, str(socket_of(paths.depot)))
    async with _embedded(paths, db, depots) as embedded, depots.watched():
        if embedded is not None and embedded.address:
            _note_address(depots, embedded.address)
        yield depots


def _note_address(depots: DepotSet, address: str) -> None:
    for depot in depots:
        if depot.embedded and depot.address != address:
            try:
                depots.moved(depot, address)
            except (NoSpace, OSError) as error:  # it is reached by its Unix socket; the next mount notes where it is
                _log.info("depot %s: its address is not noted: %s", address, error)


async def run_command(
    paths: VolumePaths, secret: Secret, command: str, arguments: Mapping[str, Any], progress: Progress
) -> Any:
    """Run one command on a volume that nobody has mounted, as its owner for that time."""
    prepare_process()
    async with open_volume(paths, secret) as volume:
        await volume.parts.depots.wait_for_any(5.0)
        return await volume.services.commands()[command](arguments, progress)


async def first_recovery(paths: VolumePaths, secret: Secret) -> tuple[Recovery | str, dict[str, str]]:
    """The recovery string of a volume that was made just now, with its first checkpoint; or why there is none yet.
    And the depots that do not answer, with what is known of it."""
    prepare_process()
    async with open_volume(paths, secret) as volume:
        await volume.parts.depots.wait_for_all(_FIRST_ANSWER)
        silent = {one.address: one.trouble for one in volume.parts.depots if not one.answers or one.status is None}
        try:
            return await volume.parts.recovery_key.tell(), silent
        except VolumeError as error:
            return str(error), silent


async def serve(
    paths: VolumePaths,
    mountpoint: Path,
    options: MountOptions,
    secret: Secret,
    ready: Callable[[], None],
    supervisor: int | None = None,
    *,
    again: bool = False,
) -> None:
    """Mount a volume and serve it until it is unmounted or SIGTERM, SIGINT or SIGHUP come; then drain it.

    `ready` is called when the mount answers; `supervisor` is the process that watches this one. Raises UsageError and
    VolumeError before that. With `again`, only in the place of a dead mount: who took that away wants none.
    """
    prepare_process()
    _check_cache_place((options.cache_dir or paths.cache).resolve(), mountpoint)
    options = _without_trap(options)
    async with open_volume(paths, secret, options) as volume:
        staging = _take_dead_mounts_away(paths, mountpoint)
        below = DirectoryBelow(mountpoint, paths.directory_below)
        if staging is None and again:
            below.give_back()
            _log.info("%s: was unmounted meanwhile", mountpoint)
            return
        if staging is None:
            kernel.check_mountpoint(mountpoint, paths.root)
        services = volume.services
        services.supervisor = supervisor
        door = KernelDoor(paths.root, mountpoint, options, volume.names, volume.parts.files, services.describe, below,
                          volume.parts.snapshots, volume.whereabouts)  # fmt: skip
        door.refuse_changes(lambda: volume.parts.checkpoints.stale)
        services.drop_kernel_caches, services.remounted = door.drop_caches, door.remounted
        services.read_only = door.is_read_only
        services.exchange.forget_kernel = door.forget
        volume.parts.trash.forget_kernel = door.forget_names
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            volume.ownership.tell(MOUNTED, mountpoint)
            services.mountpoint = mountpoint
            calm_collector()
            try:
                await door.serve(signals, ready, staging)
            finally:
                volume.ownership.tell(DRAINING)
                services.mountpoint = services.drop_kernel_caches = services.remounted = None
                services.read_only = services.exchange.forget_kernel = volume.parts.trash.forget_kernel = None
            await _drain(volume, signals)


async def _drain(volume: OpenVolume, signals: AsyncIterator[int]) -> None:
    """Carry what is left to the depots, as long as they take it; a signal ends that."""
    files = volume.parts.files
    if files.dirty_bytes:
        _log.info("%s: unmounted; %s go to the depots now", volume.root, format_size(files.dirty_bytes))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
        with suppress(DeadlineExceeded, NoSpace):
            await volume.services.flush(_no_progress)
            await volume.services.checkpoint()
        nursery.cancel_scope.cancel()
    if files.dirty_bytes:
        _log.warning("%s: %s wait in the spool for the next mount", volume.root, format_size(files.dirty_bytes))


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def _no_progress(_: int, __: int, ___: str) -> None:
    """Where nobody looks."""


def _take_dead_mounts_away(paths: VolumePaths, mountpoint: Path) -> Path | None:
    """Called with the lock held: nobody serves this volume, whatever the mount table says.

    One on the mount point stays until the new mount lies beneath it, so that no write ever lands in the directory
    below; the return value is then where to make the new mount first.
    """
    staging = None
    for entry in kernel.mounts_of(paths.root):
        visible = kernel.mount_at(entry.mountpoint)
        if visible is None or (visible.kind, visible.source) != (entry.kind, entry.source):
            continue  # taken away meanwhile, or hidden by a mount of others, which would go in its place
        _log.info("%s: a dead mount of this volume is taken away", entry.mountpoint)
        if entry.mountpoint == mountpoint and staging is None:
            staging = paths.run / "beneath"
            staging.mkdir(mode=0o700, exist_ok=True)
        else:
            kernel.detach(entry.mountpoint)
    return staging


def _check_cache_place(place: Path, mountpoint: Path) -> None:
    if place.is_relative_to(mountpoint):
        raise UsageError(f"{place}: lies inside the mount point {mountpoint} and would be hidden by it")


def _without_trap(options: MountOptions) -> MountOptions:
    if options.writeback and not kernel.can_raise_background():
        _log.info("the write-back cache stays off: it needs root and fusectl mounted on /sys/fs/fuse/connections")
        return replace(options, writeback=False)
    return options


_ENDING = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
