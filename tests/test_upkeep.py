"""Upkeep of a volume that nobody has mounted, without its keys, over real depots in the same process."""

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.config import VolumePaths, read_key_file
from ibpfs.errors import IbpfsError, UsageError, VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.log_rows import SNAPSHOT, LogRows
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.keyless import open_for_upkeep
from ibpfs.mount import OpenVolume, open_volume

from .cache.stack import run_depot

LEASE = 600
CONTENT = b"so it was written" * 10_000


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    """A volume of two copies on depots `one` and `two`, which nobody has started."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[place(tmp_path / name) for name in ("one", "two")])
    return paths


def place(directory: Path) -> str:
    return f"unix:{directory}/depot.sock"


@asynccontextmanager
async def opened(paths: VolumePaths) -> AsyncIterator[OpenVolume]:
    async with open_volume(paths, read_key_file(paths.key)) as found:
        await found.parts.depots.wait_for_all(10)
        yield found


async def fill(paths: VolumePaths) -> None:
    """Put a file into the volume, flush and close it; forget that its leases are young."""
    async with opened(paths) as found:
        ino = found.names.create(1, b"file", NewInode(0o100600, 0, 0)).ino
        await found.parts.files.write(ino, 0, CONTENT)
        await ask(found.services.commands(), "flush")
    with Database(paths.store) as db, db.transaction():
        db.execute("UPDATE replicas SET told_at = told_at - 500, lease_end = lease_end - 500")


async def read(paths: VolumePaths) -> bytes:
    async with opened(paths) as found:
        await found.parts.files.drop()
        return await found.parts.files.read(found.names.lookup(1, b"file").ino, 0, 1 << 20)


async def ask(commands: Any, command: str, **arguments: Any) -> Any:
    return await commands[command](arguments, lambda *_: None)


async def upkeep(paths: VolumePaths, command: str, **arguments: Any) -> Any:
    """What the command says when the keys are elsewhere."""
    aside = paths.key.rename(paths.root.with_name("key"))
    try:
        async with open_for_upkeep(paths) as found:
            try:
                return await ask(found.commands(), command, **arguments)
            except IbpfsError as error:
                refusal = error  # not in the groups that nurseries make of it
        raise refusal
    finally:
        aside.rename(paths.key)


async def test_leases_are_renewed_without_the_keys(volume: VolumePaths, tmp_path: Path) -> None:
    async with run_depot(tmp_path / "one", max_lease=LEASE), run_depot(tmp_path / "two", max_lease=LEASE):
        await fill(volume)
        found = await upkeep(volume, "warm")
        assert (found["renewed"], found["not_renewed"]) == (2, 0)
        assert (found["under_replicated_bytes"], found["at_risk_bytes"]) == (0, 0)
        assert LEASE - 60 < found["survives_until"] - time.time() <= LEASE
        assert (await upkeep(volume, "warm"))["renewed"] == 0
        assert (await upkeep(volume, "warm", every=True))["renewed"] == 2 + 4  # the checkpoint and its root, twice
        assert await read(volume) == CONTENT


async def test_a_lost_copy_is_made_up(volume: VolumePaths, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with run_depot(tmp_path / "one", max_lease=LEASE):
        async with run_depot(tmp_path / "two", max_lease=LEASE):
            await fill(volume)
        shutil.rmtree(tmp_path / "two")
        async with run_depot(tmp_path / "two", max_lease=LEASE):
            found = await upkeep(volume, "warm")
            assert (found["under_replicated_bytes"], found["at_risk_bytes"]) == (0, 0)
    assert "is lost" in caplog.text
    async with run_depot(tmp_path / "two", max_lease=LEASE):  # alone
        assert await read(volume) == CONTENT


async def test_what_cannot_be_renewed_is_told(
    volume: VolumePaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_depot(tmp_path / "one", max_lease=LEASE):
        async with run_depot(tmp_path / "two", max_lease=LEASE):
            await fill(volume)
        found = await upkeep(volume, "warm")
        assert (found["renewed"], found["not_renewed"], found["at_risk_bytes"]) == (1, 1, 0)
        with Database(volume.store) as db, db.transaction():
            db.execute("UPDATE replicas SET lease_end = 1 WHERE depot = 2")
        assert (await upkeep(volume, "warm"))["at_risk_bytes"] > len(CONTENT)
    assert "does not answer" in caplog.text


async def test_a_mounted_volume_is_warmed_by_its_owner(volume: VolumePaths, tmp_path: Path) -> None:
    async with run_depot(tmp_path / "one", max_lease=LEASE), run_depot(tmp_path / "two", max_lease=LEASE):
        await fill(volume)
        async with opened(volume) as found:
            assert (await ask(found.services.commands(), "warm", every=True))["renewed"] == 2 + 4


def damage(directory: Path) -> None:
    """Change a byte in the middle of every allocation."""
    for path in allocations(directory):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def allocations(directory: Path) -> list[Path]:
    """Those of segments; the checkpoints are in others."""
    files = [path for path in (directory / "allocations").rglob("*") if path.is_file()]
    return [path for path in files if b"IBPRLOG1" not in path.read_bytes()[:8192]]


async def test_a_repair_of_what_is_sound_changes_nothing(volume: VolumePaths, tmp_path: Path) -> None:
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"):
        await fill(volume)
        found = await upkeep(volume, "repair")
        assert (found["sound"], found["bad"], found["not_verified"], found["repaired_bytes"]) == (2, 0, 0, 0)
        assert len(allocations(tmp_path / "one")) == len(allocations(tmp_path / "two")) == 1
        with Database(volume.store) as db:
            assert db.value("SELECT count(verified_at) FROM replicas") == 2


async def test_a_changed_replica_is_found_and_replaced(
    volume: VolumePaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"):
        await fill(volume)
        damage(tmp_path / "one")
        found = await upkeep(volume, "repair")
        assert (found["sound"], found["bad"], found["under_replicated_bytes"]) == (1, 1, 0)
        assert found["repaired_bytes"] > len(CONTENT)
        again = await upkeep(volume, "repair")
        assert (again["sound"], again["bad"]) == (2, 0)
        assert len(allocations(tmp_path / "one")) == 1  # the bad one was released
    assert "differ from their digest" in caplog.text
    async with run_depot(tmp_path / "one"):
        assert await read(volume) == CONTENT


async def test_what_is_sound_nowhere_stays_and_is_told(
    volume: VolumePaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"):
        await fill(volume)
        damage(tmp_path / "one")
        damage(tmp_path / "two")
        found = await upkeep(volume, "repair")
        assert (found["sound"], found["bad"]) == (0, 2)
        assert found["at_risk_bytes"] > len(CONTENT)
        assert len(allocations(tmp_path / "one") + allocations(tmp_path / "two")) >= 2
        with Database(volume.store) as db:
            assert db.value("SELECT count(*) FROM replicas") >= 2
    assert "differ from their digest" in caplog.text


async def test_a_replica_whose_depot_is_away_is_not_verified(volume: VolumePaths, tmp_path: Path) -> None:
    async with run_depot(tmp_path / "one"):
        async with run_depot(tmp_path / "two"):
            await fill(volume)
        found = await upkeep(volume, "repair")
        assert (found["sound"], found["bad"], found["not_verified"]) == (1, 0, 1)


async def add_third(volume: VolumePaths, tmp_path: Path) -> None:
    async with opened(volume) as found:
        await ask(found.services.commands(), "depots-add", address=place(tmp_path / "three"))


async def test_a_depot_is_drained_and_removed(volume: VolumePaths, tmp_path: Path) -> None:
    one = place(tmp_path / "one")
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"), run_depot(tmp_path / "three"):
        await fill(volume)
        with pytest.raises(UsageError, match="without it there are 1 depots for 2 copies"):
            await upkeep(volume, "depots-drain", address=one)
        await add_third(volume, tmp_path)
        with pytest.raises(UsageError, match="first: ibpfs depots drain VOLUME"):
            await upkeep(volume, "depots-remove", address=one)
        assert await upkeep(volume, "depots-drain", address=one) == {"imported": 0}
        assert [len(allocations(tmp_path / name)) for name in ("one", "two", "three")] == [0, 1, 1]
        assert await upkeep(volume, "depots-drain", address=one) == {"imported": 0}
        assert await upkeep(volume, "depots-remove", address=one) == {"removed": True}
        assert await upkeep(volume, "depots-remove", address=one) == {"removed": False}
        assert await upkeep(volume, "depots-drain", address=one) == {"imported": 0}
        with pytest.raises(UsageError, match="is no depot of this volume"):
            await upkeep(volume, "depots-drain", address="ibp://127.0.0.1:1")
        assert (await upkeep(volume, "warm"))["under_replicated_bytes"] == 0
        async with opened(volume) as found:  # comes back
            assert (await ask(found.services.commands(), "depots-add", address=one))["role"] == "active"
    async with run_depot(tmp_path / "three"):
        assert await read(volume) == CONTENT


async def test_a_drain_that_was_broken_off_goes_on(
    volume: VolumePaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = place(tmp_path / "one")
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"):
        async with run_depot(tmp_path / "three"):
            await fill(volume)
            await add_third(volume, tmp_path)
        with pytest.raises(VolumeError, match="1 segments cannot be moved off it now"):
            await upkeep(volume, "depots-drain", address=one)
        with pytest.raises(UsageError, match="still holds 1 replicas"):
            await upkeep(volume, "depots-remove", address=one)
        assert len(allocations(tmp_path / "one")) == 1  # nothing is let go before there is another
        async with opened(volume) as owner:  # it may be taken back meanwhile
            assert (await ask(owner.services.commands(), "depots-add", address=one))["role"] == "active"
            owner.parts.depots.drain(owner.parts.depots.get(1))
        async with run_depot(tmp_path / "three"):
            found = await upkeep(volume, "warm")
            assert (found["under_replicated_bytes"], found["at_risk_bytes"]) == (0, 0)
            assert [len(allocations(tmp_path / name)) for name in ("one", "two", "three")] == [0, 1, 1]
            assert await upkeep(volume, "depots-remove", address=one) == {"removed": True}
    assert "does not answer" in caplog.text


async def test_a_dead_depot_is_drained_from_the_others(volume: VolumePaths, tmp_path: Path) -> None:
    one = place(tmp_path / "one")
    async with run_depot(tmp_path / "two"), run_depot(tmp_path / "three"):
        async with run_depot(tmp_path / "one"):
            await fill(volume)
        await add_third(volume, tmp_path)
        await upkeep(volume, "depots-drain", address=one)
        assert await upkeep(volume, "depots-remove", address=one) == {"removed": True}
        assert await read(volume) == CONTENT


async def test_a_depot_is_drained_under_a_mount_that_writes(volume: VolumePaths, tmp_path: Path) -> None:
    one = place(tmp_path / "one")
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"), run_depot(tmp_path / "three"):
        await fill(volume)
        await add_third(volume, tmp_path)
        async with opened(volume) as found, trio.open_nursery() as nursery:
            commands, files = found.services.commands(), found.parts.files
            inos = [found.names.create(1, b"%d" % number, NewInode(0o100600, 0, 0)).ino for number in range(5)]

            async def write() -> None:
                for ino in inos:
                    await files.write(ino, 0, CONTENT)
                    await files.fsync(ino)
                written.set()

            written = trio.Event()
            nursery.start_soon(write)
            await ask(commands, "depots-drain", address=one)
            await written.wait()
            await ask(commands, "flush")
            assert found.parts.ledger.holdings(1).own == 0
            assert (await ask(commands, "depots-remove", address=one))["removed"]
            assert [depot["id"] for depot in await ask(commands, "depots")] == [2, 3]
            await ask(commands, "drop-cache")
            for ino in inos:
                assert await files.read(ino, 0, 1 << 20) == CONTENT


async def test_snapshots_stay_on_the_depots_when_a_volume_is_warmed_without_its_keys(
    volume: VolumePaths, tmp_path: Path
) -> None:
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"):
        async with opened(volume) as found:
            await found.parts.snapshots.create("kept")
            await found.parts.checkpoints.make()
            before = found.parts.checkpoints.rows.copies(SNAPSHOT)
            assert len(before) == 2
        with Database(volume.store) as db, db.transaction():
            db.set_fact("changed", "so that there is something to check in")
        await upkeep(volume, "warm")
        with Database(volume.store) as db:
            assert LogRows(db, time.time).copies(SNAPSHOT) == before
