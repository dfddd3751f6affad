"""A volume's directory made anew: what is there then, what is refused, what is left after a failure."""

import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, load_config, read_key_file
from ibpfs.errors import VolumeError, WrongKey
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.commits import Place
from ibpfs.exnode_store.checkpoints.log_rows import SNAPSHOT, LogRows
from ibpfs.exnode_store.checkpoints.rebuilding import rebuild
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, always
from ibpfs.exnode_store.keys import open_slots
from ibpfs.exnode_store.snapshots import Snapshots

from .places import Site, log_files, owner, site


def snapshot_file(path: Path, rows: int) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [(f"row {row}" * 20,) for row in range(rows)])
    connection.commit()
    connection.close()
    return path


async def test_a_volume_made_anew(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            now.names.create(1, b"name", NewInode(stat.S_IFREG | 0o644, 0, 0))
            kept = snapshot_file(tmp_path / "kept", 5000)
            now.checkpoints.snapshots = lambda: {"7": kept, "9": tmp_path / "missing"}
            await now.checkpoints.make()
            uuid = now.db.facts["uuid"]
            recovery = now.recovery(place.secret)
        new = VolumePaths(tmp_path / "deep" / "new")
        found = await rebuild(new, recovery, b"a passphrase")
        assert (found.notes, found.lost, found.commit.files) == ([], [], 2)
        assert (new.snapshots / "7.sqlite").read_bytes() == kept.read_bytes()
        config = load_config(new)
        assert config.uuid.hex() == uuid
        assert open_slots(config.slots, config.epochs, "passphrase", b"a passphrase", config.uuid)
        assert not new.key.exists()
        with pytest.raises(VolumeError, match="is not empty"):
            await rebuild(new, recovery)
        other = VolumePaths(tmp_path / "other")
        await rebuild(other, recovery)
        config = load_config(other)
        secret = read_key_file(other.key).value
        assert open_slots(config.slots, config.epochs, "keyfile", secret, config.uuid)
        assert stat.S_IMODE(other.store.stat().st_mode) == stat.S_IMODE(other.key.stat().st_mode) == 0o600
        with Database(other.store) as db:
            assert db.facts["volume_toml"] == other.properties.read_text()
        async with owner(other) as now:  # takes over
            await now.checkpoints.check()
            await now.checkpoints.make()
            assert now.recovery(place.secret) == recovery
        async with owner(new) as now:
            with pytest.raises(VolumeError, match="older than the depots by 1 commit"):
                await now.checkpoints.check()
        with pytest.raises(WrongKey):
            await rebuild(VolumePaths(tmp_path / "gone"), Recovery(b"x" * 24, recovery.places))
        assert not (tmp_path / "gone").exists()


async def test_snapshots_come_and_go_on_the_depots(tmp_path: Path) -> None:
    async with site(tmp_path, 4) as place, owner(place.paths) as now:
        files = {"1": snapshot_file(tmp_path / "one", 10), "2": snapshot_file(tmp_path / "two", 10)}
        now.checkpoints.snapshots = lambda: files
        await now.checkpoints.make()
        copies = now.checkpoints.rows.copies(SNAPSHOT)
        assert sorted(copy.name or "" for copy in copies) == ["1", "1", "1", "2", "2", "2"]
        leaving = now.depots.get(copies[0].depot)
        now.depots.drain(leaving)
        await now.checkpoints.leave(leaving.id)
        await now.warmer.release_orphans()
        assert log_files(place.store(leaving.id - 1)) == []
        assert len(now.checkpoints.rows.copies(SNAPSHOT)) == 6
        del files["1"]
        await now.checkpoints.make()
        assert {copy.name for copy in now.checkpoints.rows.copies(SNAPSHOT)} == {"2"}


def damage(place: Site, name: str) -> None:
    """Turn over the end of every copy of a snapshot's log; once more: it is sound again."""
    with Database(place.paths.store) as db:
        logs = {copy.log for copy in LogRows(db, lambda: 0.0).copies(SNAPSHOT) if copy.name == name}
    for number in place.addresses:
        for path in log_files(place.store(number)):
            raw = bytearray(path.read_bytes())
            if any(log in raw[:8192] for log in logs):
                raw[-10] ^= 1
                path.write_bytes(raw)


async def test_a_snapshot_whose_file_is_lost_comes_back_from_the_depots(tmp_path: Path) -> None:
    async with site(tmp_path) as place, owner(place.paths) as now:
        snapshots = Snapshots(now.db, now.ledger, place.paths.snapshots)
        now.checkpoints.snapshots = snapshots.files
        await snapshots.create("one")
        await now.checkpoints.make()
        path = snapshots.files()["1"]
        before, copies = path.read_bytes(), now.checkpoints.rows.copies(SNAPSHOT)
        path.unlink()
        damage(place, "1")
        await now.checkpoints.make()
        assert now.checkpoints.rows.copies(SNAPSHOT) == copies  # they are all that there is
        assert not path.exists()
        damage(place, "1")
        await now.checkpoints.make()
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (before, 0o600)
        assert now.checkpoints.rows.copies(SNAPSHOT) == copies
        await snapshots.delete("one")
        await now.checkpoints.make()
        assert now.checkpoints.rows.copies(SNAPSHOT) == []


async def test_snapshots_of_a_volume_made_anew(tmp_path: Path) -> None:
    """One was on no depot yet, the copies of one cannot be read for now, the third is as it was."""
    new = VolumePaths(tmp_path / "new")
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            snapshots = Snapshots(now.db, now.ledger, place.paths.snapshots)
            for name in ("early", "away", "there"):
                await snapshots.create(name)
                now.names.create(1, name.encode(), NewInode(stat.S_IFREG | 0o644, 0, 0))
            files = snapshots.files()
            now.checkpoints.snapshots = lambda: {name: files[name] for name in ("2", "3")}
            await now.checkpoints.make()
            recovery = now.recovery(place.secret)
        damage(place, "2")
        notes = (await rebuild(new, recovery)).notes
        assert "snapshot early is given up: it was on no depot yet" in notes
        assert any(note.startswith("snapshot away does not come back now") for note in notes)
        assert sorted(path.name for path in new.snapshots.iterdir()) == ["3.sqlite"]
        damage(place, "2")
        for told in (True, False):
            said: list[str] = []
            checkup = Checkup(new, always, said.append)
            check_store(checkup)
            assert checkup.outcome.left == checkup.outcome.corrected == 0, said
            assert any("the next mount fetches it" in line for line in said) == told
            async with owner(new) as now:
                snapshots = Snapshots(now.db, now.ledger, new.snapshots)
                snapshots.recover()
                now.checkpoints.snapshots = snapshots.files
                await now.checkpoints.make()
                assert [pin.name for pin in snapshots.all()] == ["away", "there"]
                assert snapshots.describe(snapshots.find("away"))["trouble"] is None
                snapshots.close()
                now.db._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def test_a_killed_recovery_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, copy = VolumePaths(tmp_path / "new"), VolumePaths(tmp_path / "copy")
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            await now.checkpoints.make()
            recovery = now.recovery(place.secret)
        with monkeypatch.context() as patched:
            patched.setattr("ibpfs.exnode_store.checkpoints.rebuilding.check_file",
                            lambda _: shutil.copytree(new.root, copy.root))  # fmt: skip
            await rebuild(new, recovery)
        (copy.depot / "kept").touch()
        await rebuild(copy, recovery)
        load_config(copy)
        assert (copy.depot / "kept").exists()
        assert {path.name for path in copy.root.iterdir()} == {path.name for path in new.root.iterdir()}


async def test_what_cannot_come_back_is_one_line(tmp_path: Path) -> None:
    new = VolumePaths(tmp_path / "new")
    with pytest.raises(VolumeError, match="does not say where its checkpoints are"):
        await rebuild(new, Recovery(b"x" * 24))
    with pytest.raises(VolumeError, match="without its directory it cannot come back"):
        await rebuild(new, Recovery(b"x" * 24, [Place("", True, "key/1")]))
    with pytest.raises(VolumeError, match="no depot that the recovery string names"):
        await rebuild(new, Recovery(b"x" * 24, [Place("ibp://127.0.0.1:1", False, "key/1")]))
    assert not new.root.exists()
