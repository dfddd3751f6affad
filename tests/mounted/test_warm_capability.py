"""Another machine keeps a volume alive with a file that lets it read nothing."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .running import run
from .test_status import read_tree
from .volumes import Depot, MakeVolume, Volume

pytestmark = pytest.mark.mounted

PLAIN = b"what nobody else may read "
CONTENT = {"a name nobody may know": PLAIN * 40_000, "another": os.urandom(300_000)}


@pytest.fixture
def volume(volumes: MakeVolume) -> Volume:
    one = volumes("--copies", "2", "--min-copies", "2", depots=3)
    one.expect("depot|allocation")
    for name, data in CONTENT.items():
        (one / name).write_bytes(data)
    one.flush()
    return one


def empty(depot: Depot) -> None:
    depot.kill()
    shutil.rmtree(depot.store / "allocations")


def test_it_renews_and_repairs_and_cannot_read(volume: Volume, directory: Path) -> None:
    said = run("ibpfs", "warm-cap", volume.mountpoint, directory / "file").stdout
    assert said.startswith(f"{volume.mountpoint}: {directory}/file keeps ")
    file = directory / "file"
    assert file.stat().st_mode & 0o777 == 0o600
    volume.umount()
    lost = max(volume.depots, key=lambda depot: len(depot.allocations()))
    empty(lost)
    lost.start()
    away = volume.root.rename(volume.root.with_name("away"))  # what follows is another machine
    before = logs_of(file)
    found = json.loads(run("ibpfs", "warm", "--json", "--all", "--with", file).stdout)
    after = logs_of(file)
    kept = {key: told for key, told in before.items() if key[1] != lost_depot(file, lost)}
    assert {kind for kind, _ in kept} == {"root", "checkpoint"}
    assert all(after[key] > told for key, told in kept.items()), "the leases of the checkpoints were not renewed"
    assert (found["under_replicated_bytes"], found["at_risk_bytes"], found["not_renewed"]) == (0, 0, 0)
    assert run("ibpfs", "warm", "--quiet", "--with", file).stdout == ""
    holds_no_secret(file, away / "volume.key")
    reads_nothing(file, volume)
    assert run("mount.ibpfs", file, volume.mountpoint, code=None).returncode != 0
    assert sorted(path.name for path in directory.iterdir()) == ["file"]

    away.rename(volume.root)  # home again: the copies that were made are all that is left of their segments
    merged = json.loads(run("ibpfs", "warm", "--json", volume.root, "--merge", file).stdout)
    assert merged["added"] > 0
    assert (merged["unusable"], merged["under_replicated_bytes"]) == (0, 0)
    assert json.loads(run("ibpfs", "warm", "--json", volume.root, "--merge", file).stdout)["added"] == 0
    volume.empty_cache()
    volume.mount()
    assert read_tree(volume.mountpoint) == CONTENT
    volume.umount()
    assert "clean" in volume.fsck("--data", "-n").stdout


def logs_of(file: Path) -> dict[tuple[str, int], float]:
    """When a lease of each copy of the checkpoints was told last, by kind and depot."""
    with closing(sqlite3.connect(file)) as db:
        return {(kind, depot): at for kind, depot, at in db.execute("SELECT kind, depot, told_at FROM record_logs")}


def lost_depot(file: Path, depot: Depot) -> int:
    with closing(sqlite3.connect(file)) as db:
        (number,) = db.execute("SELECT id FROM depots WHERE address = ?", (depot.address,)).fetchone()
        return int(number)


def holds_no_secret(file: Path, key: Path) -> None:
    raw = file.read_bytes()
    secret = bytes.fromhex(key.read_text().split()[1])
    for text in (secret, secret.hex().encode(), *CONTENT, PLAIN):
        assert (text if isinstance(text, bytes) else text.encode()) not in raw
    db = sqlite3.connect(file)
    try:
        for table in ("inodes", "dentries", "symlinks", "xattrs", "mappings", "shares", "imported_keys"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        assert {key for (key,) in db.execute("SELECT key FROM volume")} == {"uuid", "digest_seed", "format", "kind"}
        assert db.execute("SELECT count(*) FROM replicas WHERE write_key != '-/0'").fetchone() != (0,)
        assert set(db.execute("SELECT read_key, write_key, name FROM record_logs")) == {("-/0", "-/0", None)}
    finally:
        db.close()


def reads_nothing(file: Path, volume: Volume) -> None:
    """All bytes that it names hold no word of what was written."""
    stored = b"".join(path.read_bytes() for depot in volume.depots for path in depot.allocations())
    assert len(stored) > sum(map(len, CONTENT.values()))
    assert PLAIN not in stored
    assert CONTENT["another"][:64] not in stored


def test_copies_that_nobody_needs_are_given_back(volume: Volume, directory: Path) -> None:
    file = directory / "file"
    run("ibpfs", "warm-cap", volume.root, file)
    volume.umount()
    lost = max(volume.depots, key=lambda depot: len(depot.allocations()))
    empty(lost)
    lost.start()
    run("ibpfs", "warm", "--all", "--with", file)
    run("ibpfs", "repair", volume.root)  # makes them, too
    merged = json.loads(run("ibpfs", "warm", "--json", volume.root, "--merge", file).stdout)
    assert merged["added"] == 0
    assert merged["surplus"] > 0
    run("ibpfs", "warm", volume.root)
    held = sum(len(depot.allocations()) for depot in volume.depots)
    replicas = volume.status()["segments"] * 2
    assert held == replicas


@pytest.mark.parametrize("what", ["nothing", "a text", "a volume's store", "for all to read", "another volume's"])
def test_what_is_refused_is_one_line(volume: Volume, volumes: MakeVolume, directory: Path, what: str) -> None:
    file = directory / "file"
    command: list[object] = ["ibpfs", "warm", "--with", file]
    if what == "a text":
        file.write_text("no such thing")
    elif what == "a volume's store":
        volume.umount()
        shutil.copy(volume.root / "exnode_store.sqlite", file)
    elif what != "nothing":
        run("ibpfs", "warm-cap", volume.root, file)
    if what == "for all to read":
        file.chmod(0o644)
    if what == "another volume's":
        command = ["ibpfs", "warm", volumes(mount=False).root, "--merge", file]
    done = run(*command, code=2)
    assert done.stderr.count("\n") == 1
    assert str(file) in done.stderr


def test_the_volume_s_own_depot_is_nobody_else_s(volumes: MakeVolume, directory: Path) -> None:
    volume = volumes()
    (volume / "file").write_bytes(b"x")
    volume.flush()
    done = run("ibpfs", "warm-cap", volume.mountpoint, directory / "file", code=2)
    assert "no closed segment and no checkpoint on a depot that it could" in done.stderr
    assert not list(directory.iterdir())
