"""The check of stored bytes, on volumes whose bytes really lie on depots."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths, load_config, read_key_file
from ibpfs.depot.server.depot import open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.fsck import checked_store, finish
from ibpfs.exnode_store.fsck_data import check_data
from ibpfs.exnode_store.fsck_faults import Checkup, Outcome, if_safe
from ibpfs.exnode_store.keys import VolumeKeys, open_slots
from ibpfs.exnode_store.ledger import Ledger
from tests.cache.stack import run_depot, run_stack
from tests.exnode_store.test_fsck import content, seed

FILES = {b"a": b"a" * 100_000, b"b": b"bee" * 1000, b"c": bytes(range(256)) * 300}


@asynccontextmanager
async def tcp_depot(store: Path) -> AsyncIterator[str]:
    """A real depot in this process; yields its address."""
    with open_depot(Settings(store=store, listen=(("127.0.0.1", 0),), permanent=True), time.time) as depot:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(depot.serve)
            yield depot.address
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def volume_on(root: Path, depots: int) -> AsyncIterator[VolumePaths]:
    """A volume with FILES, a copy on each depot; the depots run."""
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        addresses = [await nursery.start(_keep_depot, root / f"depot{number}", stop) for number in range(depots)]
        paths = VolumePaths(root / "volume")
        create_volume(paths, depots=addresses, copies=depots)
        await fill(paths)
        yield paths
        stop.set()


async def _keep_depot(store: Path, stop: trio.Event, *, task_status: trio.TaskStatus[str]) -> None:
    async with tcp_depot(store) as address:
        task_status.started(address)
        await stop.wait()


async def fill(paths: VolumePaths) -> None:
    async with run_stack(paths) as now:
        await now.depots.wait_for_any(5)
        for name, data in FILES.items():
            await now.files.write(now.create(name).ino, 0, data)
        await now.files.flush()
    await check(paths)  # closes the segment


def open_keys(paths: VolumePaths) -> VolumeKeys:
    config = load_config(paths)
    return open_slots(config.slots, config.epochs, "keyfile", read_key_file(paths.key).value, config.uuid)


async def check(paths: VolumePaths, *, keys: bool = True, read_only: bool = False) -> tuple[list[str], Outcome]:
    lines: list[str] = []
    checkup = Checkup(paths, if_safe, lines.append, read_only=read_only)
    with checked_store(checkup) as db:
        assert db is not None
        await check_data(checkup, str(paths.depot / "depot.sock"), open_keys(paths) if keys else None, 2.0)
        finish(checkup)
    return lines, checkup.outcome


async def is_clean(paths: VolumePaths) -> None:
    assert await check(paths) == ([], Outcome())
    with Database(paths.store) as db:
        assert db.value("SELECT count(*) FROM orphans") == 0


async def assert_readable(paths: VolumePaths) -> None:
    async with run_stack(paths) as now:
        await now.files.drop()
        for name, data in FILES.items():
            assert await now.files.read(now.names.lookup(1, name).ino, 0, 1 << 20) == data


def spoil(paths: VolumePaths, depot: int, name: bytes) -> None:
    """Change a byte of the only slice of a file in the store of one depot."""
    with Database(paths.store) as db:
        (slice_id,) = db.rows(
            "SELECT slice_id FROM slices s JOIN mappings m ON m.slice = s.id JOIN dentries d ON d.ino = m.ino"
            " WHERE d.name = ?", (name,)
        )[0]  # fmt: skip
    stores = paths.root.parent / f"depot{depot}", paths.depot
    for path in (path for store in stores if store.exists() for path in store.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if slice_id in data:
            at = data.index(slice_id) + 500
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([data[at] ^ 1]))
            return
    raise AssertionError("the slice is nowhere")


async def test_a_sound_volume_has_no_faults(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        before = content(paths)
        assert await check(paths, read_only=True) == ([], Outcome())
        assert content(paths) == before
        await is_clean(paths)
        assert await check(paths, keys=False) == ([], Outcome())
        with Database(paths.store) as db:
            assert db.value("SELECT count(*) FROM replicas WHERE verified_at IS NULL") == 0


async def test_a_volume_on_its_own_depot(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, plain=True)
    async with run_depot(paths.depot):
        await fill(paths)
        await is_clean(paths)
        spoil(paths, 0, b"b")
        lines, outcome = await check(paths, keys=False)
        assert len(lines) == 1
        assert lines[0].startswith("inode 3 (/b) bytes 0 to 3000: lost, slice ")
        assert outcome == Outcome(left=1)


@pytest.mark.parametrize("keys", [True, False])
async def test_a_damaged_replica_is_copied_anew_from_a_sound_one(tmp_path: Path, keys: bool) -> None:
    async with volume_on(tmp_path, 2) as paths:
        spoil(paths, 1, b"a")
        lines, outcome = await check(paths, read_only=True)
        assert outcome == Outcome(left=1)
        lines, outcome = await check(paths, keys=keys)
        assert len(lines) == 1, lines
        assert "1 of 3 slices are damaged (digest differs; inode 2 (/a) bytes 0 to 100000): dropped, to be" in lines[0]
        assert outcome == Outcome(corrected=1), lines
        await is_clean(paths)
        with Database(paths.store) as db:
            assert db.value("SELECT count(*) FROM replicas") == 2
        await assert_readable(paths)


async def test_replicas_damaged_in_different_places_are_put_together(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        spoil(paths, 0, b"a")
        spoil(paths, 1, b"c")
        lines, outcome = await check(paths)
        assert any("each of its 2 replicas is damaged" in line and "put together" in line for line in lines), lines
        assert outcome == Outcome(corrected=1), lines
        await is_clean(paths)
        await assert_readable(paths)


async def test_what_is_damaged_everywhere_is_named_and_left(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        spoil(paths, 0, b"c")
        spoil(paths, 1, b"c")
        lines, outcome = await check(paths)
        assert len(lines) == 1, lines
        assert lines[0].startswith("inode 4 (/c) bytes 0 to 76800: lost, slice ")
        assert lines[0].endswith("is damaged in every replica (digest differs): cannot be repaired")
        assert outcome == Outcome(left=1)
        with Database(paths.store) as db:
            assert db.value("SELECT count(*) FROM replicas") == 2


ROWS: list[tuple[str, str]] = [
    ("UPDATE slices SET digest = zeroblob(16) WHERE id = 2", "its bytes are sound, its digest is not: digest corr"),
    ("UPDATE slices SET segment_offset = segment_offset + 10 WHERE id = 2", "its row differs from its bytes at"),
    ("UPDATE slices SET segment_offset = -7 WHERE id = 1", "its row differs from its bytes at 0: row corrected"),
    ("UPDATE slices SET segment_offset = 1000000 WHERE id = 3", "its row differs from its bytes at"),
    ("UPDATE slices SET frame_size = 4096 WHERE id = 1", "its row differs from its bytes at 0: row corrected"),
    ("UPDATE slices SET epoch = 3 WHERE id = 2", "its row differs from its bytes at"),
]


@pytest.mark.parametrize(("sql", "words"), ROWS, ids=[sql for sql, _ in ROWS])
async def test_rows_are_corrected_by_the_bytes(tmp_path: Path, sql: str, words: str) -> None:
    async with volume_on(tmp_path, 2) as paths:
        seed(paths, sql)
        lines, outcome = await check(paths)
        assert any(words in line for line in lines), lines
        assert outcome.corrected > 0
        assert outcome.left == 0, lines
        await is_clean(paths)
        await assert_readable(paths)


async def forget_allocation(paths: VolumePaths, depot: int) -> None:
    """The depot loses what it holds of the volume."""
    with Database(paths.store) as db:
        async with DepotSet(db, "/nowhere").watched() as depots:
            await depots.wait_for_any(5)
            for (segment,) in db.rows("SELECT id FROM segments"):
                for replica in Ledger(db, time.time).replicas(segment):
                    if replica.depot == depot:
                        await depots.get(depot).client.decr(replica.manage)


async def test_an_allocation_that_is_gone(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        await forget_allocation(paths, 1)
        lines, outcome = await check(paths)
        assert len(lines) == 1, lines
        assert "the depot does not have it any more: dropped" in lines[0]
        assert outcome == Outcome(corrected=1), lines
        await is_clean(paths)
        await forget_allocation(paths, 1)
        await forget_allocation(paths, 2)
        lines, outcome = await check(paths)
        assert sum("lost, segment 1 has no replica left" in line for line in lines) == 3
        assert outcome.corrected == 0


async def test_an_allocation_that_two_segments_claim(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        async with run_stack(paths) as now:
            await now.depots.wait_for_any(5)
            await now.files.write(now.create(b"later").ino, 0, b"later" * 99)
            await now.files.flush()
        await check(paths)
        seed(paths, "UPDATE replicas SET read_key = (SELECT read_key FROM replicas WHERE id = 1), manage_key ="
                    " (SELECT manage_key FROM replicas WHERE id = 1), write_key = 'w/0' WHERE id = 3")  # fmt: skip
        lines, outcome = await check(paths)
        assert outcome.left == 0, lines
        assert any("replica 3 of segment 2" in line and "dropped" in line for line in lines)
        await is_clean(paths)
        await assert_readable(paths)


async def test_a_silent_depot_is_no_damage(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        seed(paths, "UPDATE depots SET address = 'ibp://127.0.0.1:9' WHERE id = 2")
        lines, outcome = await check(paths)
        assert lines == ["depot ibp://127.0.0.1:9: does not answer, 1 replica is not verified"]
        assert outcome == Outcome(unverified=1)


async def test_a_suspect_replica_is_cleared(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 2) as paths:
        seed(paths, "UPDATE replicas SET suspect = 1 WHERE id = 1")
        lines, outcome = await check(paths)
        assert [line.rpartition(": ")[2] for line in lines] == ["was suspect, is sound"]
        assert outcome == Outcome()
        await is_clean(paths)


async def test_pending_and_orphaned_allocations_are_released(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 1) as paths:
        with Database(paths.store) as db:
            async with DepotSet(db, "/nowhere").watched() as depots:
                await depots.wait_for_any(5)
                caps = await depots.get(1).client.allocate(1000, 600)
                Ledger(db, time.time).add_pending(
                    [(1, caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key)]
                )
        lines, outcome = await check(paths)
        assert len(lines) == 1
        assert "was never committed: to be released" in lines[0]
        assert outcome == Outcome(corrected=1), lines
        await is_clean(paths)


async def test_without_digests_nothing_is_verified(tmp_path: Path) -> None:
    async with volume_on(tmp_path, 1) as paths:
        seed(paths, "DELETE FROM volume WHERE key = 'digest_seed'")
        lines, outcome = await check(paths)
        assert any("stored bytes are not verified" in line for line in lines)
        assert outcome == Outcome(left=1)
