"""A new volume: what is there, who may open it, what is left after a failure."""

import stat
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, load_config, read_key_file
from ibpfs.depot.address import BadAddress
from ibpfs.errors import UsageError, VolumeError, WrongKey
from ibpfs.exnode_store.checkpoints.recovery_string import format_text, parse_recovery
from ibpfs.exnode_store.creation import (
    EMBEDDED_ADDRESS,
    choose_function,
    create_volume,
    dump_short_recovery,
)
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.keys import open_slots


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    return VolumePaths(tmp_path / "deep" / "volume")


def test_a_volume_on_an_embedded_depot(paths: VolumePaths) -> None:
    made = create_volume(paths, owner=(1000, 1001))
    config = load_config(paths)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (paths.root, *paths.directories))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (paths.properties, paths.store, paths.key))
    by_file = open_slots(config.slots, config.epochs, "keyfile", read_key_file(paths.key).value, config.uuid)
    by_hand = open_slots(config.slots, config.epochs, "recovery", made.recovery, config.uuid)
    assert by_file == by_hand
    with Database(paths.store) as database:
        assert database.facts["uuid"] == config.uuid.hex()
        assert database.facts["volume_toml"] == paths.properties.read_text()
        assert (database.next_ino, database.files) == (2, 1)
        assert database.row("SELECT mode, nlink, uid, gid FROM inodes") == (stat.S_IFDIR | 0o755, 2, 1000, 1001)
        assert database.rows("SELECT address, embedded FROM depots") == [(EMBEDDED_ADDRESS, 1)]
        assert database.row("SELECT copies, min_copies FROM policies") == (1, 1)
        with database.transaction():
            database.execute("INSERT INTO dentries (parent, name, ino, seq) VALUES (1, x'61', 1, 1)")
        assert database.value("SELECT id FROM dentries") == 3  # 1 and 2 are "." and ".."
    assert repr(made.recovery) not in repr(made)
    assert parse_recovery(format_text(dump_short_recovery(made.recovery))).secret == made.recovery
    assert str(paths.root) not in paths.properties.read_text()


def test_a_volume_on_given_depots(paths: VolumePaths) -> None:
    create_volume(paths, depots=["ibp://a:6714", "ibp://b:6714", "ibp://c:1"], copies=3)
    with Database(paths.store) as database:
        assert database.rows("SELECT address, embedded FROM depots") == [
            ("ibp://a:6714", 0),
            ("ibp://b:6714", 0),
            ("ibp://c:1", 0),
        ]
        assert database.row("SELECT copies, min_copies FROM policies") == (3, 2)


def test_passphrase_and_plain(paths: VolumePaths) -> None:
    create_volume(paths, passphrase=b"correct horse", plain=True)
    config = load_config(paths)
    assert config.plain
    assert not paths.key.exists()
    open_slots(config.slots, config.epochs, "passphrase", b"correct horse", config.uuid)
    with pytest.raises(WrongKey, match="passphrase does not open"):
        open_slots(config.slots, config.epochs, "passphrase", b"battery", config.uuid)
    with Database(paths.store) as database:
        assert database.facts["function"] == "plain-xxh3/1"


def test_what_is_in_the_way_stays(paths: VolumePaths) -> None:
    create_volume(paths)
    before = paths.properties.read_bytes(), paths.key.read_bytes()
    with pytest.raises(VolumeError, match="is a volume already"):
        create_volume(paths)
    assert before == (paths.properties.read_bytes(), paths.key.read_bytes())


def test_a_directory_with_something_in_it(paths: VolumePaths) -> None:
    paths.root.mkdir(parents=True)
    (paths.root / "letter").write_text("dear")
    with pytest.raises(VolumeError, match="not empty"):
        create_volume(paths)
    assert [entry.name for entry in paths.root.iterdir()] == ["letter"]


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VolumeError, match="cannot make a volume"):
        create_volume(VolumePaths(tmp_path / "file" / "volume"))


@pytest.mark.parametrize("made_before", [False, True])
def test_a_failure_leaves_nothing(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch, made_before: bool) -> None:
    if made_before:
        paths.root.mkdir(parents=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ibpfs.exnode_store.creation.sync_file", full)
    with pytest.raises(OSError, match="No space"):
        create_volume(paths)
    assert paths.root.exists() == made_before
    assert paths.root.parent.exists() == made_before
    assert not made_before or not list(paths.root.iterdir())


def test_copies_that_cannot_be(paths: VolumePaths) -> None:
    with pytest.raises(UsageError, match="2 copies need 2 depots"):
        create_volume(paths, copies=2)
    with pytest.raises(UsageError, match="min copies"):
        create_volume(paths, depots=["ibp://a:1", "ibp://b:1"], copies=1, min_copies=2)
    with pytest.raises(UsageError, match="twice"):
        create_volume(paths, depots=["ibp://a:1", "ibp://a:1"])
    with pytest.raises(BadAddress):
        create_volume(paths, depots=["http://a"])
    assert not paths.root.parent.exists()


@pytest.mark.parametrize(
    ("flags", "function"),
    [
        ("flags\t\t: fpu aes sse", "aes-256-gcm/1"),
        ("Features\t: fp aes", "aes-256-gcm/1"),
        ("flags : faes", "chacha20-poly1305/1"),
    ],
)
def test_function_by_cpu(tmp_path: Path, flags: str, function: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{flags}\nmodel name : aes\n")
    assert choose_function(False, cpuinfo) == function
    assert choose_function(False, tmp_path / "none") == "chacha20-poly1305/1"
