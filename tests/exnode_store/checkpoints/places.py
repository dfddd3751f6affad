"""A volume over depots that run in this process, its owner's checkpoints, and what comes back from them."""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from ibpfs.config import VolumePaths, load_config, read_key_file
from ibpfs.depot.server.depot import open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.exnode_store.checkpoints.keeper import Checkpoints
from ibpfs.exnode_store.checkpoints.log_rows import ROOT
from ibpfs.exnode_store.checkpoints.recovery import Recovered, recovering
from ibpfs.exnode_store.checkpoints.recovery_key import RecoveryKey
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.keys import open_slots
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.warmer import Warmer
from tests.exnode_store.volumes import kill


@dataclass
class Site:
    """Depots by number, each of which can be ended and started again, and a volume on all of them."""

    base: Path
    nursery: trio.Nursery
    addresses: dict[int, str] = field(default_factory=dict)
    scopes: dict[int, trio.CancelScope] = field(default_factory=dict)
    ended: dict[int, trio.Event] = field(default_factory=dict)
    secret: bytes = b""

    @property
    def paths(self) -> VolumePaths:
        return VolumePaths(self.base / "volume")

    def store(self, number: int) -> Path:
        return self.base / f"depot{number}"

    async def start(self, number: int, address: str = "") -> None:
        """On a port of the system's choice, or that of an earlier address."""
        port = int(address.rpartition(":")[2]) if address else 0
        self.addresses[number] = await self.nursery.start(self._serve, number, port)

    async def _serve(self, number: int, port: int, task_status: trio.TaskStatus[str]) -> None:
        directory = self.store(number)
        directory.mkdir(exist_ok=True)
        settings = Settings(store=directory, listen=(("127.0.0.1", port),), tls=False)
        self.ended[number] = trio.Event()
        with open_depot(settings, trio.current_time) as depot, trio.CancelScope() as scope:
            self.scopes[number] = scope
            task_status.started(depot.address)
            await depot.serve()
        self.ended[number].set()

    async def stop(self, number: int) -> None:
        self.scopes[number].cancel()
        await self.ended[number].wait()

    def make_volume(self) -> None:
        made = create_volume(self.paths, depots=list(self.addresses.values()), copies=min(2, len(self.addresses)))
        self.secret = made.recovery


@asynccontextmanager
async def site(base: Path, depots: int = 3) -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        one = Site(base, nursery)
        for number in range(depots):
            await one.start(number)
        one.make_volume()
        yield one
        nursery.cancel_scope.cancel()


@dataclass
class Owner:
    """Who has the volume open, without a cache."""

    db: Database
    names: Namespace
    ledger: Ledger
    depots: DepotSet
    checkpoints: Checkpoints
    warmer: Warmer
    transfer: Transfer
    paths: VolumePaths

    def recovery_key(self) -> RecoveryKey:
        config = load_config(self.paths)
        keys = open_slots(config.slots, config.epochs, "keyfile", read_key_file(self.paths.key).value, config.uuid)
        return RecoveryKey(self.paths, self.db, config, keys, self.checkpoints)

    def draining(self) -> Draining:
        return Draining(self.db, self.ledger, self.depots, self.transfer, self.warmer)

    def recovery(self, secret: bytes) -> Recovery:
        """What the recovery string says."""
        rows = self.checkpoints.rows
        return Recovery(secret, [rows.place(copy) for copy in rows.copies(ROOT)])


@asynccontextmanager
async def owner(paths: VolumePaths) -> AsyncIterator[Owner]:
    """Leaving it is what a kill leaves behind."""
    db = Database(paths.store)
    async with DepotSet(db, "").watched() as depots:
        ledger = Ledger(db, time.time)
        names = Namespace(db, time.time_ns, ledger.unmap)
        checkpoints = Checkpoints(db, ledger, depots, paths.run)
        transfer = Transfer(db, ledger, depots)
        warmer = Warmer(db, ledger, depots, transfer, checkpoints)
        await depots.wait_for_all(10)
        yield Owner(db, names, ledger, depots, checkpoints, warmer, transfer, paths)
    kill(db)


async def come_back(recovery: Recovery, file: Path) -> Recovered:
    """The database file from the depots alone."""
    async with recovering(recovery, file.parent / "no-depot") as recoverer:
        with file.open("wb") as target:
            return await recoverer.recover(target)


def tables(path: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}
    finally:
        connection.close()


def freeze(paths: VolumePaths, target: Path) -> Path:
    """A copy of the store as it is now, by SQLite itself."""
    source, copy = sqlite3.connect(paths.store), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
    return target


def log_files(store: Path) -> list[Path]:
    """The allocations of a depot that hold record logs."""
    files = [path for path in (store / "allocations").rglob("*") if path.is_file()]
    return [path for path in files if b"IBPRLOG1" in path.read_bytes()[:8192]]
