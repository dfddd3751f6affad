"""Owning a volume without its keys, to keep it alive: its own directory, or a warm capability of it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ibpfs.config import VolumePaths, check_access, load_config
from ibpfs.control import Progress
from ibpfs.depot.clock import SteadyClock
from ibpfs.exnode_store.allocator import Allocator
from ibpfs.exnode_store.checkpoints.keeper import Checkpoints
from ibpfs.exnode_store.checkpoints.log_rows import LogRows
from ibpfs.exnode_store.checkpoints.logs import Logs
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.findings import Findings
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.policy_walks import PolicyWalks
from ibpfs.exnode_store.settling import Settling
from ibpfs.exnode_store.snapshots import Snapshots
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.upkeep import Upkeep
from ibpfs.exnode_store.warm_capability import open_warm_capability
from ibpfs.exnode_store.warmer import Warmer
from ibpfs.mount import volume_depots
from ibpfs.ownership import owned
from ibpfs.process import prepare_process
from ibpfs.upkeep import UpkeepCommands


@asynccontextmanager
async def open_for_upkeep(paths: VolumePaths) -> AsyncIterator[UpkeepCommands]:
    """Own a volume without its keys; the spool is left as it is. Raises VolumeBusy, VolumeError."""
    check_access(paths)
    async with owned(paths):
        load_config(paths)
        with Database(paths.store) as db:
            async with volume_depots(paths, db) as depots:
                ledger = Ledger(db, SteadyClock())
                transfer = Transfer(db, ledger, depots)
                transfer.untrimmed.update(ledger.close_all_segments())
                ledger.abandon_pending()
                checkpoints = Checkpoints(db, ledger, depots, paths.run)
                checkpoints.snapshots = Snapshots(db, ledger, paths.snapshots).files
                await checkpoints.check()
                warmer = Warmer(db, ledger, depots, transfer, checkpoints)
                draining = Draining(db, ledger, depots, transfer, warmer)
                upkeep = Upkeep(db, ledger, depots, transfer, warmer, draining)
                findings = Findings(db, ledger, depots, warmer, str(paths.root))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(warmer.renew_for_ever)
                    settling = Settling(PolicyWalks(db, transfer.policies), ledger, depots, transfer, warmer)
                    yield UpkeepCommands(upkeep, draining, warmer.scrubbing, findings, settling)
                    nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_warm(path: Path) -> AsyncIterator[Upkeep]:
    """A warm capability with its warmer: of a volume of which there is nothing else here. Raises UsageError,
    VolumeError."""
    with open_warm_capability(path) as db:
        async with DepotSet(db, "").watched() as depots, trio.open_nursery() as nursery:
            ledger = Ledger(db, SteadyClock())
            transfer = Transfer(db, ledger, depots)
            ledger.abandon_pending()
            rows = LogRows(db, ledger.now, partial(setattr, ledger, "orphans_waiting", True))
            logs = Logs(db, rows, depots, Allocator(db, ledger, depots))
            warmer = Warmer(db, ledger, depots, transfer, logs=logs)
            nursery.start_soon(warmer.renew_for_ever)
            yield Upkeep(db, ledger, depots, transfer, warmer, None)
            nursery.cancel_scope.cancel()


async def run_upkeep(paths: VolumePaths, command: str, arguments: Mapping[str, Any], progress: Progress) -> Any:
    """The same for a command of `UpkeepCommands`, which needs no keys."""
    prepare_process()
    async with open_for_upkeep(paths) as upkeep:
        return await upkeep.commands()[command](arguments, progress)


async def run_warm(path: Path, every: bool, progress: Progress) -> Any:
    """Renew, verify and repair with a warm capability."""
    prepare_process()
    async with open_warm(path) as upkeep:
        return await upkeep.warm(progress, every=every)
