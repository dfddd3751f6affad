"""A volume's rooms below the kernel's door, over a real depot in the same process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

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
from ibpfs.config import VolumePaths, load_config, read_key_file
from ibpfs.depot.clock import SteadyClock
from ibpfs.depot.server.depot import open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.exnode_store.attributes import COLUMNS, Inode, NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.imports import Imports
from ibpfs.exnode_store.keys import open_slots
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.merging import Merging
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.sealing import FUNCTION_CODES
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.warmer import Warmer
from tests.exnode_store.volumes import kill


@dataclass
class Stack:
    """The objects of one owner. Leaving it without a flush is what a kill leaves behind."""

    db: Database
    names: Namespace
    ledger: Ledger
    depots: DepotSet
    transfer: Transfer
    warmer: Warmer
    compactor: Compactor
    flusher: Flusher
    files: FileCache
    recovered: int
    imports: Imports

    def create(self, name: bytes, mode: int = 0o100644) -> Inode:
        return self.names.create(1, name, NewInode(mode, 0, 0))


@asynccontextmanager
async def run_depot(directory: Path, capacity: int | None = None, max_lease: int | None = None) -> AsyncIterator[None]:
    """A real depot on DIRECTORY/depot.sock."""
    directory.mkdir(exist_ok=True)
    settings = Settings(
        store=directory, unix=directory / "depot.sock", capacity=capacity, permanent=max_lease is None,
        max_lease=max_lease,
    )  # fmt: skip
    with open_depot(settings, trio.current_time) as depot:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(depot.serve)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def run_stack(paths: VolumePaths, limits: Limits | None = None, *, warming: bool = True) -> AsyncIterator[Stack]:
    """The rooms of a volume from its spool to its depots, as their owner puts them together.

    Without `warming` the warmer stands still until the test runs it.
    """
    config = load_config(paths)
    keys = open_slots(config.slots, config.epochs, "keyfile", read_key_file(paths.key).value, config.uuid)
    db = Database(paths.store)
    ledger = Ledger(db, SteadyClock())
    names = Namespace(db, lambda: 1_000_000_000, ledger.unmap)
    clean = CleanCache(paths.cache, 64 * 1024 * 1024, 0.0)
    facts = db.facts
    sealer = Sealer(keys, config.uuid, FUNCTION_CODES[facts["function"]], 65536, int(facts["digest_seed"], 16))
    spool = Spool(paths.spool, keys, config.uuid)
    async with DepotSet(db, str(paths.depot / "depot.sock")).watched() as depots, trio.open_nursery() as nursery:
        transfer = Transfer(db, ledger, depots)
        imports = Imports(db, ledger, keys, config.uuid)
        reader = SliceReader(ledger.segment_length, transfer, imports, clean)
        memory = RecordMemory(1024 * 1024)
        retention = Retention(ledger, transfer, spool, sealer)
        flusher = Flusher(db, ledger, transfer, spool, memory, clean, sealer, retention)
        files = FileCache(db, names, ledger, transfer, spool, memory, reader, flusher, limits or Limits())
        transfer.untrimmed.update(ledger.close_all_segments())
        ledger.abandon_pending()
        recovered = files.recover()
        warmer = Warmer(db, ledger, depots, transfer)
        compactor = Compactor(Merging(db, ledger), ledger, transfer, reader, clean, sealer, flusher)
        for task in (flusher.run, files.run, reader.serve, compactor.run):
            nursery.start_soon(task)
        if warming:
            nursery.start_soon(warmer.run)
        yield Stack(db, names, ledger, depots, transfer, warmer, compactor, flusher, files, recovered, imports)
        nursery.cancel_scope.cancel()
    for ino, row in db.remembered.rows.items():
        assert db.row(f"SELECT {COLUMNS} FROM inodes WHERE ino = ?", (ino,)) == row
    for file in spool._files:
        file.close()
    kill(db)
