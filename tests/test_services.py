"""What an owner does for those who ask, on an open volume over a real depot in the same process."""

import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs import services
from ibpfs.config import VolumePaths, read_key_file
from ibpfs.errors import DeadlineExceeded, IbpfsError, NotFound, UsageError, VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.losses import note_lost
from ibpfs.exnode_store.checkpoints.recovery import recovering
from ibpfs.exnode_store.creation import create_volume
from ibpfs.mount import OpenVolume, open_volume

from .cache.stack import run_depot

STATUS_KEYS = {
    "volume", "mountpoint", "pid", "pids", "dirty_bytes", "spool_bytes", "files", "used_bytes",
    "segments", "under_replicated_bytes", "earliest_lease_end", "depots", "version", "installed_version",
    "at_risk_bytes", "survives_until",
}  # fmt: skip


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[OpenVolume]:
    """A volume on its embedded depot, which runs in this process: the keeper finds it running."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    (paths.depot / "address").write_text("ibp://127.0.0.1:7\n")
    lock = os.open(paths.depot / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    async with run_depot(paths.depot), open_volume(paths, read_key_file(paths.key)) as volume:
        assert await volume.parts.depots.wait_for_any(10)
        yield volume
    os.close(lock)


async def ask(volume: OpenVolume, command: str, progress: Any = lambda *_: None, **arguments: Any) -> Any:
    return await volume.services.commands()[command](arguments, progress)


async def write(volume: OpenVolume, name: bytes, data: bytes) -> int:
    ino = volume.names.create(1, name, NewInode(0o100600, 0, 0)).ino
    await volume.parts.files.write(ino, 0, data)
    return ino


_WRITING = [
    ("import", {"ino": 2, "size": 0, "own": True, "parts": []}), ("policy-set", {"ino": 1, "copies": 1}),
    ("share", {"ino": 1}), ("share-extend", {"id": "x"}), ("share-revoke", {"id": "x"}),
    ("snapshot-create", {"name": "one"}), ("snapshot-delete", {"name": "one"}),
    ("trash-empty", {}), ("trash-keep", {"seconds": 1}), ("trash-restore", {"number": 1}),
]  # fmt: skip


async def test_a_read_only_mount_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await ask(volume, "snapshot-create", name="two")
        volume.services.read_only = lambda: True
        before = volume.parts.db.seq
        for command, arguments in _WRITING:
            with pytest.raises(VolumeError, match="is mounted read-only"):
                await ask(volume, command, **arguments)
        assert volume.parts.db.seq == before
        assert [one["name"] for one in await ask(volume, "snapshot-list")] == ["two"]
        assert await ask(volume, "share-list") == []
        await ask(volume, "flush")
        volume.services.read_only = lambda: False
        await ask(volume, "snapshot-delete", name="two")


async def test_status_and_stat(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        ino = await write(volume, b"file", b"x" * 100_000)
        before = await ask(volume, "status")
        assert set(before) >= STATUS_KEYS
        assert (before["files"], before["dirty_bytes"], before["mountpoint"]) == (2, 100_000, None)
        told: list[tuple[int, int, str]] = []
        assert await ask(volume, "flush", lambda *step: told.append(step)) == {"under_replicated_bytes": 0, "note": ""}
        assert told[-1][:2] == (100_000, 100_000)
        after = await ask(volume, "status")
        assert (after["dirty_bytes"], after["spool_bytes"], after["earliest_lease_end"]) == (0, 0, None)
        assert after["used_bytes"] >= 100_000
        (depot,) = after["depots"]
        assert (depot["address"], depot["state"], depot["embedded"]) == ("ibp://127.0.0.1:7", "ok", True)
        found = await ask(volume, "stat", ino=ino)
        assert (found["size"], found["slices"], len(found["mappings"])) == (100_000, 1, 1)
        (segment,) = found["segments"]
        assert [replica["depot"] for replica in segment["replicas"]] == ["ibp://127.0.0.1:7"]
        info = json.loads(volume.services.describe(ino))
        assert (info["size"], info["slices"], info["fewest_copies"]) == (100_000, 1, 1)
        json.dumps([after, found])  # all of it goes over a socket
        with pytest.raises(NotFound):
            await ask(volume, "stat", ino=77)
        with pytest.raises(UsageError):
            await ask(volume, "stat", ino="one")


async def test_drop_cache_leaves_no_clean_byte(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        ino = await write(volume, b"file", b"x" * 3_000_000)
        asked = 0

        async def drop_kernel_caches() -> None:
            nonlocal asked
            asked += 1
            await volume.parts.files.write(ino, 0, b"changed through mmap")

        volume.services.drop_kernel_caches = drop_kernel_caches
        await ask(volume, "drop-cache")
        assert asked == 1
        assert (volume.parts.clean.used, volume.parts.files.dirty_bytes) == (0, 0)
        assert (await volume.parts.files.read(ino, 0, 30)) == b"changed through mmapxxxxxxxxxx"


async def test_a_flush_says_what_lacks_copies_and_the_next_owner_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(services, "COPIES_LIMIT", 0.1)
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[f"unix:{tmp_path}/{name}/depot.sock" for name in ("one", "two")])
    async with run_depot(tmp_path / "one"):
        async with open_volume(paths, read_key_file(paths.key)) as volume:
            await volume.parts.depots.wait_for_any(10)
            await write(volume, b"file", b"x" * 100_000)
            told = await ask(volume, "flush")
            assert told["under_replicated_bytes"] > 100_000
            assert "safe on the depots" in told["note"]
            assert "still lack copies" in told["note"]
        async with open_volume(paths, read_key_file(paths.key)) as volume:
            found = await ask(volume, "status")
    assert (found["dirty_bytes"], found["retained_bytes"]) == (0, 100_000)
    assert found["spool_bytes"] > 100_000
    assert "of an earlier mount" not in caplog.text


async def test_compact_merges_packs_and_releases(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        parts = volume.parts
        ino = await write(volume, b"log", b"")
        for number in range(40):  # each in a segment of its own
            await parts.files.write(ino, number * 1000, b"%02d" % number * 500)
            await parts.flusher.finish(5)
        await parts.files.write(ino, 0, b"dirty")
        shown = await parts.files.read(ino, 0, 100_000)
        told: list[tuple[int, int, str]] = []
        result = await ask(volume, "compact", lambda *step: told.append(step))
        assert (result["files"], result["slices_before"], result["slices_after"]) == (1, 41, 1)
        assert (result["written_bytes"], result["damaged"]) == (40_000, [])
        assert {text for _, _, text in told} >= {"", "merging slices"}
        after = await ask(volume, "status")
        assert (result["segments"], result["used_bytes"]) == (after["segments"], after["used_bytes"])
        assert after["segments"] < 3
        assert len([one for one in (parts.paths.depot / "allocations").rglob("*") if one.is_file()]) < 3
        await ask(volume, "drop-cache")
        assert await parts.files.read(ino, 0, 100_000) == shown
        again = await ask(volume, "compact")
        assert (again["files"], again["written_bytes"], again["packed_bytes"]) == (0, 0, 0)


async def test_flush_gives_up_when_nothing_arrives(tmp_path: Path, autojump_clock: object) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=["ibp://127.0.0.1:1"])
    async with open_volume(paths, read_key_file(paths.key)) as volume:
        await write(volume, b"file", b"x" * 100_000)
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded, match=r"97\.7 KiB are not on the depots yet"):
            await ask(volume, "flush")
        assert trio.current_time() - began < 60
    async with open_volume(paths, read_key_file(paths.key)) as volume:
        assert volume.parts.files.dirty_bytes == 100_000


async def test_depots_are_listed_and_added(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        added = await ask(volume, "depots-add", address="ibp://127.0.0.1:1", labels={"site": "attic"})
        assert added["labels"] == {"site": "attic"}
        assert [depot["address"] for depot in await ask(volume, "depots")] == ["ibp://127.0.0.1:7", "ibp://127.0.0.1:1"]
        with pytest.raises(UsageError, match="already"):
            await ask(volume, "depots-add", address="ibp://127.0.0.1:1")
        with pytest.raises(IbpfsError):
            await ask(volume, "depots-add", address="http://example.org")


async def test_remount_needs_a_mount(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        with pytest.raises(UsageError, match="is not mounted"):
            await ask(volume, "remount")


async def test_a_checkpoint_says_what_only_the_spool_held(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await write(volume, b"safe", b"x" * 1000)
        await ask(volume, "flush")
        ino = await write(volume, b"waits", b"y" * 5000)
        await volume.parts.files.write(ino, 9000, b"z" * 10)
        told = await volume.parts.recovery_key.tell()
        with (tmp_path / "back.sqlite").open("wb") as file:
            async with recovering(told, volume.parts.paths.depot) as recoverer:
                found = await recoverer.recover(file)
        assert [(one.ino, one.size, list(one.runs)) for one in found.commit.dirty] == [
            (ino, 5010, [(0, 5000), (9000, 9010)])
        ]
        assert note_lost(tmp_path / "back.sqlite", found.commit.dirty) == [("/waits", 5010)]
        status = await ask(volume, "status")
        assert status["checkpoint_at"] == pytest.approx(found.commit.at)
        assert status["checkpoint_trouble"] is status["recovery_advice"] is None


async def test_the_doctor_tells_of_checkpoints_and_of_the_string_that_leads_to_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as volume:
        await write(volume, b"file", b"x" * 1000)
        await ask(volume, "flush")
        (found,) = await ask(volume, "doctor")
        assert (found["code"], found["action"]) == ("recovery-string", f"ibpfs recovery-key {volume.root}")
        await volume.parts.recovery_key.tell()
        assert await ask(volume, "doctor") == []
        volume.parts.checkpoints.trouble = "no depot takes it"
        (found,) = await ask(volume, "doctor")
        assert (found["code"], found["place"]) == ("checkpoint", str(volume.root))
        assert found["cause"] == "the names are not checkpointed: no depot takes it"
