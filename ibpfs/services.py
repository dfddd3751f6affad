"""What the owner of a volume does for those who ask: the commands behind `ibpfs status`, `flush`, `drop-cache`, ...

Knows the objects of an open volume; neither terminal nor socket.
"""

import importlib.metadata
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from ibpfs import __version__
from ibpfs.cache.clean import CleanCache
from ibpfs.cache.compactor import Compactor
from ibpfs.cache.files import FileCache
from ibpfs.cache.flusher import Flusher
from ibpfs.config import VolumePaths
from ibpfs.control import Command, Progress
from ibpfs.depot.address import Address
from ibpfs.depot.pinning import fingerprint_of
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.diagnosis import of_cache
from ibpfs.errors import DeadlineExceeded, NoSpace, UsageError, VolumeError
from ibpfs.exchange import Exchange
from ibpfs.exnode_store.checkpoints.keeper import Checkpoints
from ibpfs.exnode_store.checkpoints.recovery_key import RecoveryKey, advice
from ibpfs.exnode_store.checkpoints.recovery_string import dump_recovery
from ibpfs.exnode_store.compaction import most_segments
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.description import (
    at_risk_bytes,
    describe,
    earliest_lease_end,
    summarize,
    survives_until,
)
from ibpfs.exnode_store.findings import Finding
from ibpfs.exnode_store.imports import Imports, describe_imports
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.pace import HedgeBudget
from ibpfs.exnode_store.snapshots import Snapshots
from ibpfs.exnode_store.warmer import Warmer
from ibpfs.quantities import format_size
from ibpfs.sharing import Sharing
from ibpfs.snapshot_commands import SnapshotCommands
from ibpfs.trash_commands import TrashCommands
from ibpfs.upkeep import UpkeepCommands

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds that a flush goes on although nothing more arrives on the depots.
PATIENCE = 30.0
#: Seconds that a flush waits, when everything is safe, for the copies beyond min_copies.
COPIES_LIMIT = 30.0
#: Seconds in which a new depot shows whether it answers.
_FIRST_ANSWER = 3.0
#: Commands that change what a volume holds, or where.
_CHANGING = (
    "compact", "depots-add", "depots-drain", "depots-label", "depots-remove", "import", "policy-set", "share",
    "share-extend", "share-revoke", "snapshot-create", "snapshot-delete", "trash-empty", "trash-keep", "trash-restore",
    "warm-merge",
)  # fmt: skip
#: And those that change what programs, or others by links, find there: what a read-only mount does not do. Depots are
#: looked after as ever.
_WRITING = (
    "import", "policy-set", "share", "share-extend", "share-revoke", "snapshot-create", "snapshot-delete",
    "trash-empty", "trash-keep", "trash-restore",
)  # fmt: skip


@dataclass
class Parts:
    """What the commands work on."""

    paths: VolumePaths
    db: Database
    ledger: Ledger
    depots: DepotSet
    clean: CleanCache
    flusher: Flusher
    files: FileCache
    warmer: Warmer
    compactor: Compactor
    imports: Imports
    upkeep: UpkeepCommands
    snapshots: Snapshots
    checkpoints: Checkpoints
    recovery_key: RecoveryKey
    sharing: Sharing
    trash: TrashCommands
    reads: HedgeBudget


class Services:
    """The commands of one open volume. A mount fills in `mountpoint`, `drop_kernel_caches`, `remounted` and
    `read_only`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.mountpoint: Path | None = None
        self.supervisor: int | None = None
        self.drop_kernel_caches: Callable[[], Awaitable[None]] | None = None
        self.remounted: Callable[[], None] | None = None
        self.read_only: Callable[[], bool] | None = None
        self.exchange = Exchange(
            parts.db, parts.ledger, parts.depots, parts.files, parts.imports, parts.warmer.recoding
        )

    def commands(self) -> dict[str, Command]:
        commands = self._all_commands()
        commands |= {name: self._unless_stale(commands[name]) for name in _CHANGING}
        return commands | {name: self._unless_read_only(commands[name]) for name in _WRITING}

    def _unless_stale(self, command: Command) -> Command:
        """Nothing is changed in a store that is older than what the depots have."""

        async def run(request: Mapping[str, Any], progress: Progress) -> Any:
            if self._parts.checkpoints.stale:
                raise VolumeError(self._parts.checkpoints.stale)
            return await command(request, progress)

        return run

    def _unless_read_only(self, command: Command) -> Command:
        async def run(request: Mapping[str, Any], progress: Progress) -> Any:
            if self.read_only is not None and self.read_only():
                raise VolumeError(f"{self._parts.paths.root}: is mounted read-only; mount it with -o rw to change it")
            return await command(request, progress)

        return run

    def _all_commands(self) -> dict[str, Command]:
        return {
            "status": self._status,
            "stat": self._stat,
            "flush": self._flush,
            "drop-cache": self._drop_cache,
            "compact": self._compact,
            "depots": self._list_depots,
            "depots-add": self._add_depot,
            "depots-pin": self._pin_depot,
            "checkpoint": self._checkpoint,
            "recovery-key": self._tell_recovery_key,
            "remount": self._remount,
            **self._parts.upkeep.commands(),
            "doctor": self._doctor,
            **self.exchange.commands(),
            **SnapshotCommands(self._parts.snapshots, self.flush).commands(),
            **self._parts.sharing.commands(),
            **self._parts.trash.commands(),
        }

    async def _status(self, _: Mapping[str, Any], __: Progress) -> dict[str, Any]:
        parts = self._parts
        parts.files.commit_stored()
        return {
            "volume": str(parts.paths.root),
            "mountpoint": str(self.mountpoint) if self.mountpoint else None,
            "pid": os.getpid(),
            "pids": self._processes(),
            "dirty_bytes": parts.files.dirty_bytes,
            "spool_bytes": parts.files.spool_bytes,
            "retained_bytes": parts.files.retained_bytes,
            "cache_bytes": parts.clean.used,
            "files": parts.db.files,
            "used_bytes": parts.files.used_bytes,
            "pinned_bytes": parts.ledger.dead_bytes(),
            "trash_bytes": parts.files.trash.bytes(),
            "segments": parts.ledger.segments,
            "under_replicated_bytes": parts.warmer.under_replicated_bytes,
            "at_risk_bytes": at_risk_bytes(parts.db, parts.ledger.now()),
            "coded_bytes": parts.ledger.coded_bytes,
            "code_trouble": parts.warmer.recoding.trouble() or None,
            "earliest_lease_end": earliest_lease_end(parts.db),
            "scrub": parts.warmer.scrubbing.state(),
            "survives_until": survives_until(parts.db, parts.ledger.now()),
            "shares_hold_until": parts.sharing.hold_until(),
            "reads": parts.reads.reads,
            "hedged_reads": parts.reads.hedged,
            "trouble": str(parts.flusher.trouble) if parts.flusher.trouble else None,
            "checkpoint_at": parts.checkpoints.at,
            "checkpoint_behind": None if (behind := parts.checkpoints.behind) is None else round(behind, 1),
            "checkpoint_trouble": parts.checkpoints.stale or parts.checkpoints.trouble or None,
            "recovery_advice": advice(parts.db, parts.checkpoints, str(parts.paths.root)) or None,
            "depots": [_depot(depot) for depot in parts.depots],
            "version": __version__,
            "installed_version": _installed_version(),
        }

    def _processes(self) -> list[int]:
        # The supervisor first: who ends them in this order does not see another one started.
        watched = self.supervisor is not None and os.getppid() == self.supervisor
        return [os.getppid(), os.getpid()] if watched else [os.getpid()]

    async def _stat(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        ino = _integer(request, "ino")
        return self._attributes(ino) | describe(self._parts.db, self._parts.ledger, ino)

    def describe(self, ino: int) -> bytes:
        """The text of the virtual attribute user.ibpfs.info."""
        return json.dumps(self._attributes(ino) | summarize(self._parts.db, self._parts.ledger, ino)).encode()

    def _attributes(self, ino: int) -> dict[str, Any]:
        self._parts.files.commit_stored()
        inode = self._parts.files.inode(ino)
        dirty = self._parts.flusher.files.get(ino)
        imported = describe_imports(self._parts.db, ino)
        return {
            "inode": ino,
            "size": inode.size,
            "allocated": inode.allocated,
            "dirty_bytes": dirty.dirty if dirty else 0,
            "policy": inode.policy,
            **({} if imported is None else {"imported": imported}),
        }

    async def _flush(self, _: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        await self.flush(progress)
        lacking = await self._wait_for_copies()
        notes = []
        if lacking:
            notes.append(f"{format_size(lacking)} still lack copies, which are made as depots allow")
        if trouble := await self.checkpoint():
            notes.append(f"no checkpoint of the names yet: {trouble}")
        note = f"safe on the depots; {'; '.join(notes)}" if notes else ""
        return {"under_replicated_bytes": lacking, "note": note}

    async def checkpoint(self) -> str:
        """Let the depots have the names as they are now; return why not, or ''."""
        with trio.move_on_after(PATIENCE):
            return await self._parts.checkpoints.try_make()
        return "depots are too slow"

    async def _checkpoint(self, _: Mapping[str, Any], __: Progress) -> dict[str, Any]:
        await self._parts.depots.wait_for_all(PATIENCE)
        return {"trouble": await self.checkpoint() or None, "checkpoint_at": self._parts.checkpoints.at}

    async def _tell_recovery_key(self, _: Mapping[str, Any], __: Progress) -> dict[str, Any]:
        await self._parts.depots.wait_for_all(COPIES_LIMIT)
        with trio.fail_after(PATIENCE):
            return {"bytes": dump_recovery(await self._parts.recovery_key.tell()).hex()}

    async def flush(self, progress: Progress) -> None:
        """Wait until all is on the depots, as long as more of it arrives there. DeadlineExceeded, NoSpace."""
        best = -1
        with trio.CancelScope() as scope:

            def advance(done: int, total: int) -> None:
                nonlocal best
                if done > best:
                    best = done
                    scope.deadline = trio.current_time() + PATIENCE
                progress(done, total, "")

            await self._parts.files.flush(advance)
            return
        trouble = self._parts.flusher.trouble
        reason = f": {trouble}" if trouble else ""
        text = f"{format_size(self._parts.files.dirty_bytes)} are not on the depots yet{reason}; they wait in the spool"
        raise NoSpace(text) if isinstance(trouble, NoSpace) else DeadlineExceeded(text)

    async def _wait_for_copies(self) -> int:
        with trio.move_on_after(COPIES_LIMIT):
            while self._parts.warmer.under_replicated_bytes:  # noqa: ASYNC110 (a table, not an event)
                await trio.sleep(0.2)
        return self._parts.warmer.under_replicated_bytes

    async def _drop_cache(self, _: Mapping[str, Any], progress: Progress) -> None:
        await self.flush(progress)
        if self.drop_kernel_caches is not None:
            # This may make the kernel write what programs changed through mmap.
            await self.drop_kernel_caches()
            await self.flush(progress)
        with trio.fail_after(PATIENCE):
            await self._parts.files.drop()

    async def _compact(self, _: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        parts = self._parts
        await self.flush(progress)
        try:
            merged = await parts.compactor.compact(lambda done, total: progress(done, total, "merging slices"))
        except (DepotError, DepotUnreachable, NoSpace) as error:
            raise VolumeError(f"{parts.paths.root}: not compacted: {error} (see ibpfs depots)") from error
        packed = await parts.warmer.pack_all(lambda done, total: progress(done, total, "packing segments"))
        await parts.db.sync()
        if parts.ledger.segments > most_segments(parts.files.used_bytes):
            raise VolumeError(f"{parts.paths.root}: {parts.ledger.segments} segments are left: some cannot be moved now"
                              " (see ibpfs depots, and the log)")  # fmt: skip
        return {
            "files": merged.files,
            "slices_before": merged.slices_before,
            "slices_after": merged.slices_after,
            "written_bytes": merged.written,
            "packed_bytes": packed,
            "segments": parts.ledger.segments,
            "used_bytes": parts.files.used_bytes,
            "damaged": merged.damaged,
        }

    async def _list_depots(self, _: Mapping[str, Any], __: Progress) -> list[dict[str, Any]]:
        return [_depot(depot) for depot in self._parts.depots]

    async def _add_depot(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        labels = request.get("labels") or {}
        address = Address.parse(str(request.get("address")))
        pin = await fingerprint_of(address, wanted=request.get("tls") is not False)
        named = {str(key): str(value) for key, value in labels.items()}
        depot = self._parts.depots.add(str(address), named, pin)
        await self._parts.depots.wait_for_all(_FIRST_ANSWER)
        return _depot(depot)

    async def _pin_depot(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        word = str(request.get("depot") or _integer(request, "id"))  # releases before this one say the number alone
        depot = self._parts.depots.at(word)
        if depot is None or depot.embedded:
            raise UsageError(f"there is no depot {word} whose certificate could be pinned (see ibpfs depots)")
        pin = await fingerprint_of(Address.parse(depot.address))
        if pin is None:
            raise UsageError(f"{depot.address}: offers no TLS, or does not answer")
        self._parts.depots.pin(depot.id, pin)
        return _depot(depot) | {"fingerprint": pin.hex()}

    async def _doctor(self, request: Mapping[str, Any], progress: Progress) -> list[dict[str, Any]]:
        parts, place = self._parts, str(self._parts.paths.root)
        found = await parts.upkeep.doctor(request, progress)
        mine = [] if parts.clean.directory.is_relative_to(parts.paths.cache) else list(of_cache(parts.clean.directory))
        if parts.flusher.trouble and parts.files.dirty_bytes:
            waiting = f"{format_size(parts.files.dirty_bytes)} wait in the spool: {parts.flusher.trouble}"
            mine.append(Finding("spool-waits", place, waiting, "see to its depots (ibpfs depots)"))
        if stale := parts.checkpoints.stale:
            cause, _, action = stale.removeprefix(f"{place}: ").rpartition(": run ")
            mine.append(Finding("stale-store", place, f"{cause}, and so read-only", action))
        elif trouble := parts.checkpoints.trouble:
            mine.append(Finding("checkpoint", place, f"the names are not checkpointed: {trouble}",
                                "see to its depots (ibpfs depots)"))  # fmt: skip
        if asked := advice(parts.db, parts.checkpoints, place):
            cause, _, action = asked.rpartition(": ")
            mine.append(Finding("recovery-string", place, cause, action))
        if _installed_version() != __version__:
            mine.append(Finding("version", place, f"{__version__} is running, {_installed_version()} is installed",
                                "unmount and mount again"))  # fmt: skip
        return [*found, *(asdict(one) for one in mine)]

    async def _remount(self, _: Mapping[str, Any], __: Progress) -> None:
        """The flags of the mount have been changed: look at them."""
        if self.remounted is None:
            raise UsageError(f"{self._parts.paths.root}: is not mounted")
        self.remounted()


def _depot(depot: Depot) -> dict[str, Any]:
    return {
        "id": depot.id,
        "address": depot.address,
        "state": depot.state,
        "free_bytes": depot.free_bytes if depot.status else None,
        "embedded": depot.embedded,
        "tls": depot.is_pinned,
        "open": depot.is_open,
        "role": depot.role,
        "labels": dict(depot.labels),
        "trouble": depot.trouble or None,
    }


def _integer(request: Mapping[str, Any], name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int):
        raise UsageError(f"{name} must be a number")
    return value


def _installed_version() -> str:
    try:
        return importlib.metadata.version("ibpfs")
    except importlib.metadata.PackageNotFoundError:
        return __version__
