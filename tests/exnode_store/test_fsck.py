"""Seeded faults: each is found, named and repaired, and then nothing is left to be found."""

import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, load_config
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, Consent, Outcome, always, if_safe, never
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace
from tests.exnode_store.volumes import BIG, FILE, small_volume


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> VolumePaths:
    return small_volume(tmp_path_factory.mktemp("fsck") / "volume")


@pytest.fixture
def paths(pattern: VolumePaths, tmp_path: Path) -> VolumePaths:
    return VolumePaths(Path(shutil.copytree(pattern.root, tmp_path / "volume")))


def check(paths: VolumePaths, consent: Consent = always, *, read_only: bool = False) -> tuple[list[str], Outcome]:
    lines: list[str] = []
    checkup = Checkup(paths, consent, lines.append, read_only=read_only)
    check_store(checkup)
    return lines, checkup.outcome


def seed(paths: VolumePaths, sql: str) -> None:
    with closing(sqlite3.connect(paths.store)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.executescript(sql)
        connection.commit()


def content(paths: VolumePaths) -> list[str]:
    with closing(sqlite3.connect(f"{paths.store.as_uri()}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


@dataclass(frozen=True)
class Seeded:
    name: str
    sql: str
    #: Words that must stand together in one line each.
    lines: tuple[str, ...]
    unsafe: bool = False


_FAR = "1, 1, 1, 33188, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1"
FAULTS = [
    Seeded("links of a file", "UPDATE inodes SET nlink = 5 WHERE ino = 4",
           ("inode 4 (/dir/file): link count is 5, should be 2: corrected",)),
    Seeded("links of a directory", "UPDATE inodes SET nlink = 2 WHERE ino = 2",
           ("inode 2 (/dir): link count is 2, should be 3: corrected",)),
    Seeded("no links though named", "UPDATE inodes SET nlink = 0 WHERE ino = 5",
           ("inode 5 (/big): link count is 0, should be 1",)),
    Seeded("orphaned file", "DELETE FROM dentries WHERE ino = 5",
           ("inode 5: has no name, though its link count is 1: connected as /lost+found/#5",)),
    Seeded("orphaned directory", "DELETE FROM dentries WHERE ino = 3",
           ("inode 3: has no name", "connected as /lost+found/#3")),
    Seeded("unlinked, not reaped", "DELETE FROM dentries WHERE ino = 5; UPDATE inodes SET nlink = 0 WHERE ino = 5;"
           " UPDATE state SET files = files - 1",
           ("inode 5: was unlinked and is still there: deleted",)),
    Seeded("entry of a missing inode", "INSERT INTO dentries (parent, name, ino, seq) VALUES (2, x'676f6e65', 99, 1)",
           ("entry gone of inode 2 (/dir): names inode 99, which does not exist: removed",)),
    Seeded("missing directory with entries", "DELETE FROM inodes WHERE ino = 3",
           ("inode 3: missing, though it has entries: made anew as a directory",)),
    Seeded("missing inode with mappings", "DELETE FROM inodes WHERE ino = 5",
           ("inode 5: missing, though it has mappings: made anew as a file",)),
    Seeded("missing inode with a target", "DELETE FROM inodes WHERE ino = 6",
           ("inode 6: missing, though it has a target: made anew as a symbolic link",)),
    Seeded("root missing", "DELETE FROM inodes WHERE ino = 1", ("inode 1 (/): the root directory is missing",)),
    Seeded("root no directory", "UPDATE inodes SET mode = 33188 WHERE ino = 1", ("inode 1 (/): the root is not a",)),
    Seeded("entries of a file", "UPDATE inodes SET mode = 33188 WHERE ino = 2",
           ("inode 2 (/dir): has entries, though it is no directory: made a directory",)),
    Seeded("entries of a file with bytes", "UPDATE dentries SET parent = 5 WHERE ino = 7",
           ("inode 5 (/big): has entries, though it is no directory: entries removed", "/lost+found/#7")),
    Seeded("unknown type", "UPDATE inodes SET mode = 420 WHERE ino = 5",
           ("inode 5 (/big): mode 644 has no known type: made a file",)),
    Seeded("directory with two names", "INSERT INTO dentries (parent, name, ino, seq) VALUES (1, x'78', 3, 1)",
           ("directory inode 3: has one more name, x in inode 1 (/): this name removed",)),
    Seeded("loop of directories", "UPDATE dentries SET parent = 7 WHERE ino = 3",
           ("directory inode 3: is below itself, out of reach of the root: taken out", "/lost+found/#3")),
    Seeded("root has a name", "INSERT INTO dentries (parent, name, ino, seq) VALUES (3, x'78', 1, 1)",
           ("entry x of inode 3 (/dir/sub): names the root directory: removed",)),
    Seeded("a name with a slash", "UPDATE dentries SET name = x'612f62' WHERE ino = 5",
           ("entry a/b of inode 1 (/): is not a name: removed", "/lost+found/#5")),
    Seeded("cookie of a dot", "UPDATE dentries SET id = 2 WHERE ino = 5",
           ("entry big of inode 1 (/): its id 2 is the cookie of a dot: numbered anew",)),
    Seeded("symlink without target", "DELETE FROM symlinks", ("inode 6 (/link): a symbolic link without",), True),
    Seeded("target of a file", "INSERT INTO symlinks VALUES (5, x'61', 1)", ("inode 5 (/big): has a target, though",)),
    Seeded("size of a symlink", "UPDATE inodes SET size = 3 WHERE ino = 6", ("inode 6 (/link): size is 3, its",)),
    Seeded("attributes of nobody", "UPDATE xattrs SET ino = 77", ("inode 77: missing, though it has 1 extended",)),
    Seeded("no access list", "INSERT INTO xattrs VALUES (5, CAST('system.posix_acl_access' AS BLOB), x'00', 1)",
           ("inode 5 (/big): system.posix_acl_access is no access list: removed",)),
    Seeded("overlapping extents", "UPDATE mappings SET stop = 5000, start = 3000 WHERE ino = 4 AND start = 4096;"
           " UPDATE mappings SET stop = 3050, slice_offset = 0 WHERE start = 3000",
           ("inode 4 (/dir/file): extents overlap, first at byte 3000: the younger ones cut the older",)),
    Seeded("mapping without slice", "DELETE FROM slices WHERE id = 3",
           ("inode 5 (/big): bytes 0 to 70000 are mapped to slice 3, which does not exist: mapping removed",)),
    Seeded("mapping beyond its slice", "UPDATE mappings SET slice_offset = 10 WHERE ino = 5 AND start = 70000",
           ("inode 5 (/big): bytes 70000 to 75000 are mapped to bytes 10 to 5010 of slice 4",)),
    Seeded("allocated", "UPDATE inodes SET allocated = 1 WHERE ino = 5",
           ("inode 5 (/big): counts 1 allocated bytes, 75000 are mapped: count corrected",)),
    Seeded("size", "UPDATE inodes SET size = 10 WHERE ino = 5",
           ("inode 5 (/big): size is 10, bytes are mapped up to 75000: size corrected",)),
    Seeded("version behind", "UPDATE inodes SET version = 1, spooled = 40 WHERE ino = 5",
           ("inode 5 (/big): version 1 is behind its extents' 40",)),
    Seeded("unfinished truncation", "UPDATE inodes SET size = 100 WHERE ino = 5;"
           " INSERT INTO voids VALUES (5, 9, 100, 1)",
           ("inode 5 (/big): a truncation is unfinished: finished",)),
    Seeded("truncation of nothing", "INSERT INTO voids VALUES (6, 9, 100, 1), (88, 1, 1, 1)",
           ("inode 6 (/link): a truncation is noted that nothing needs", "inode 88: missing")),
    Seeded("mapped bytes of a slice", "UPDATE slices SET mapped = 7 WHERE id = 4",
           ("slice 4: counts 7 mapped bytes, 5000 are: count corrected",)),
    Seeded("stored bytes of a slice", "UPDATE slices SET stored_length = 1 WHERE id = 1", ("slice 1: counts 1",)),
    Seeded("slice without mapping", "DELETE FROM mappings WHERE ino = 5 AND start = 70000; UPDATE inodes SET allocated"
           " = 70000 WHERE ino = 5",
           ("slice 4 of segment 2: no file is mapped to it: removed", "segment 2: counts 5056 live bytes, there are 0",
            "segment 2: nothing lives in it, and it was not released: released",
            "depot ibp://127.0.0.1:1: 1 allocation waits to be released")),
    Seeded("live bytes of a segment", "UPDATE segments SET live = 12 WHERE id = 2", ("segment 2: counts 12 live",)),
    Seeded("length of a segment", "UPDATE segments SET length = 12 WHERE id = 2", ("segment 2: counts 12 bytes, its",)),
    Seeded("segment missing", "DELETE FROM segments WHERE id = 2",
           ("segment 2: its row is missing: made anew from its slices and replicas",)),
    Seeded("dead segment", "INSERT INTO segments VALUES (9, 1, 1, 50, 0, 1.0, 1, NULL, 1); INSERT INTO replicas VALUES"
           " (9, 9, 1, 'r9/0', 'w9/0', 'm9/0', NULL, NULL, 1.0, NULL, 0, 1)",
           ("segment 9: nothing lives in it, and it was not released: released",)),
    Seeded("replica of no segment", "INSERT INTO replicas VALUES"
           " (9, 9, 1, 'r9/0', 'w9/0', 'm9/0', NULL, NULL, 1.0, NULL, 0, 1)",
           ("replica 9 on depot ibp://127.0.0.1:1, allocation", "of segment 9, which does not exist: to be released")),
    Seeded("replica on no depot", "UPDATE replicas SET depot = 9 WHERE id = 1", ("replica 1 on depot 9, allocation",)),
    Seeded("replica twice", "INSERT INTO replicas SELECT 9, segment, depot, read_key, write_key, manage_key, shard,"
           " lease_end, told_at, verified_at, suspect, seq FROM replicas WHERE id = 1",
           ("is also replica 1 of the same segment 1: second row removed",)),
    Seeded("living orphan", "INSERT INTO orphans (depot, manage_key, read_key, since, seq) SELECT depot, manage_key,"
           " read_key, 1.0, 1 FROM replicas WHERE id = 1",
           ("orphan 1 on depot ibp://127.0.0.1:1, allocation", "is to be released, though it holds segment 1: kept")),
    Seeded("living pending", "INSERT INTO pending (depot, read_key, write_key, manage_key, created_at, seq)"
           " SELECT depot, read_key, write_key, manage_key, 1.0, 1 FROM replicas WHERE id = 1",
           ("is noted as pending, though it holds segment 1: kept",)),
    Seeded("pending", "INSERT INTO pending (depot, read_key, write_key, manage_key, created_at, seq) VALUES"
           " (1, 'r/0', 'w/0', 'm/0', 1.0, 1)",
           ("was never committed: to be released", "depot ibp://127.0.0.1:1: 1 allocation waits to be released")),
    Seeded("damaged key", "UPDATE replicas SET read_key = 'no key at all' WHERE id = 1", ("its keys are damaged",)),
    Seeded("labels of a depot", "UPDATE depots SET labels = '[]' WHERE id = 1",
           ("depot 1 (ibp://127.0.0.1:1): its labels are damaged: removed",)),
    Seeded("policy of an inode", "UPDATE inodes SET policy = 8 WHERE ino = 5", ("inode 5 (/big): its policy 8 does",)),
    Seeded("policy missing", "DELETE FROM policies", ("policy 1: missing, though it is the default: made anew with",)),
    Seeded("files", "UPDATE state SET files = 1", ("state: counts 1 files, there are 7: count corrected",)),
    Seeded("next inode number", "UPDATE state SET next_ino = 3", ("state: next inode number is 3, though 7",)),
    Seeded("last transaction", "UPDATE state SET seq = 1", ("state: last transaction is 1, though a row was written",)),
    Seeded("state missing", "DELETE FROM state", ("exNode store: its row of state is missing: made anew",)),
    Seeded("cookies again", "DELETE FROM sqlite_sequence WHERE name = 'dentries'",
           ("table dentries: would give out id 1 again: goes on behind 9",)),
    Seeded("copy of volume.toml", "DELETE FROM volume WHERE key = 'volume_toml'",
           ("the exNode store's copy of volume.toml: missing: written anew",)),
    Seeded("fact", "UPDATE volume SET value = 'rot13' WHERE key = 'function'", ("fact function: 'rot13' cannot be",)),
    Seeded("uuid", "DELETE FROM volume WHERE key = 'uuid'", ("fact uuid: missing: set to",)),
    Seeded("index missing", "DROP INDEX mappings_slice", ("exNode store: index mappings_slice is missing: made anew",)),
    Seeded("table missing", "DROP TABLE xattrs", ("table xattrs is missing: made anew, empty",), True),
    Seeded("forbidden row", "UPDATE inodes SET nlink = -1 WHERE ino = 5", ("inode 5 (/big): link count is -1",)),
]  # fmt: skip


def test_a_sound_volume_has_no_faults(paths: VolumePaths) -> None:
    before = content(paths)
    assert check(paths) == ([], Outcome())
    assert content(paths) == before


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_named_and_repaired(paths: VolumePaths, fault: Seeded) -> None:
    seed(paths, fault.sql)
    before = content(paths)
    found, outcome = check(paths, read_only=True)
    assert content(paths) == before
    assert (outcome.corrected, outcome.left > 0) == (0, True), found
    first = fault.lines[0].rpartition(": ")[0] if ": " in fault.lines[0] else fault.lines[0]
    assert any(first in line for line in found), found
    lines, outcome = check(paths, if_safe)
    assert (outcome.left > 0) == fault.unsafe, lines
    if fault.unsafe:
        lines, outcome = check(paths)
    assert outcome.left == 0
    assert outcome.corrected > 0
    for words in fault.lines:
        assert any(words in line for line in lines), lines
    again, outcome = check(paths, never)
    assert outcome == Outcome(), again
    assert all("to be released" in line for line in again)
    use(paths)


def use(paths: VolumePaths) -> None:
    """A repaired store can be worked on: everything in it is deleted."""
    with Database(paths.store) as db:
        ledger = Ledger(db, time.time)
        names = Namespace(db, time.time_ns, ledger.unmap)
        empty(names, 1)
        for ino in names.unlinked():
            assert names.reap(ino)
        assert db.files == 1
        assert db.value("SELECT count(*) FROM segments") == db.value("SELECT count(*) FROM replicas") == 0
        assert db.value("SELECT count(*) FROM (SELECT DISTINCT depot, read_key FROM orphans)") == db.value(
            "SELECT count(*) FROM orphans"
        )


def empty(names: Namespace, directory: int) -> None:
    for _, name, inode in names.readdir(directory, 2, 100):
        if inode.is_directory:
            empty(names, inode.ino)
            names.rmdir(directory, name)
        else:
            names.unlink(directory, name)


def test_all_faults_at_once(paths: VolumePaths) -> None:
    """Repairs build on each other; a second look finds nothing whatever the mixture."""
    skipped = {"root missing", "table missing", "state missing", "missing directory with entries"}
    for fault in FAULTS:
        if fault.name not in skipped:
            try:
                seed(paths, fault.sql)
            except sqlite3.IntegrityError:
                continue
    _, outcome = check(paths)
    assert outcome.corrected > 20
    lines, outcome = check(paths, never)
    assert outcome.left == 0, lines


LOST = [
    ("DELETE FROM replicas WHERE segment = 2", "inode 5 (/big) bytes 70000 to 75000: lost, segment 2 has no replica"),
    ("DELETE FROM replicas WHERE segment = 1", "inode 4 (/dir/file) bytes 0 to 4196: lost, segment 1 has no replica"),
    ("DELETE FROM replicas WHERE segment = 2; DELETE FROM segments WHERE id = 2",
     "inode 5 (/big) bytes 70000 to 75000: lost, segment 2 does not exist"),
    ("UPDATE replicas SET depot = 9 WHERE segment = 2", "on depot 9, which does not exist; it is the last of its"),
    ("UPDATE slices SET segment_offset = 50 WHERE id = 2", "slice 2 of segment 1: overlaps the one before it"),
    ("UPDATE replicas SET read_key = (SELECT read_key FROM replicas WHERE id = 1) WHERE id = 3",
     "is also replica 1 of another segment, 1"),
    ("UPDATE depots SET address = 'gopher://x' WHERE id = 2", "depot 2: gopher://x is no address"),
    ("UPDATE slices SET function = 9 WHERE id = 2", "slice 2: sealed by function 9"),
    ("UPDATE volume SET value = '' WHERE key = 'digest_seed'", "fact digest_seed: missing or damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "line"), LOST, ids=[line for _, line in LOST])
def test_what_cannot_be_repaired_is_named_and_left(paths: VolumePaths, sql: str, line: str) -> None:
    seed(paths, sql)
    before = content(paths)
    lines, outcome = check(paths)
    assert outcome.left > 0
    assert outcome.corrected == 0, lines
    assert any(line in one for one in lines), lines
    assert content(paths) == before


def test_a_damaged_index_is_made_anew(paths: VolumePaths) -> None:
    seed(
        paths,
        "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = replace(sql, '(ino)', '(parent)')"
        " WHERE name = 'dentries_ino'",
    )
    lines, outcome = check(paths)
    assert "index entries differ from their tables" in lines[0]
    assert outcome.left == 0
    assert check(paths)[1] == Outcome()


@pytest.mark.parametrize("damage", [b"", b"not a database, whatever its name says" * 100])
def test_a_database_that_is_none(paths: VolumePaths, damage: bytes) -> None:
    paths.store.write_bytes(damage)
    lines, outcome = check(paths)
    assert outcome.left > 0
    assert lines
    assert paths.store.read_bytes() == damage or not damage


def test_torn_pages(paths: VolumePaths) -> None:
    data = bytearray(paths.store.read_bytes())
    data[8 * 4096 : 30 * 4096] = b"\xa5" * (22 * 4096)
    paths.store.write_bytes(data)
    lines, outcome = check(paths)
    assert outcome.left > 0
    assert any("damaged database" in line or "no readable database" in line for line in lines)


def test_no_store(paths: VolumePaths) -> None:
    paths.store.unlink()
    with pytest.raises(VolumeError, match="no exNode store there"):
        check(paths)


def test_a_newer_format_is_not_touched(paths: VolumePaths) -> None:
    seed(paths, "UPDATE volume SET value = '2' WHERE key = 'format'; DELETE FROM policies")
    with pytest.raises(VolumeError, match="format 2 is not known"):
        check(paths)


def test_an_open_segment_is_no_fault(paths: VolumePaths) -> None:
    seed(paths, "UPDATE segments SET state = 0 WHERE id = 2")
    assert check(paths, read_only=True) == (["segment 2: its owner left it open"], Outcome())
    assert check(paths) == (["segment 2: its owner left it open, closed"], Outcome())
    assert check(paths) == ([], Outcome())


# volume.toml


def damage(path: Path) -> None:
    path.write_text(path.read_text().replace("plain = false", "plain = true"))


@pytest.mark.parametrize(("spoil", "word"), [(damage, "damaged"), (Path.unlink, "missing")])
def test_volume_toml_is_restored(paths: VolumePaths, spoil: Callable[[Path], None], word: str) -> None:
    before = load_config(paths)
    spoil(paths.properties)
    lines, _ = check(paths, read_only=True)
    assert lines == [f"volume.toml: {word}: not repaired"]
    lines, outcome = check(paths, if_safe)
    assert lines == [f"volume.toml: {word}: restored from the exNode store"]
    assert outcome == Outcome(corrected=1)
    assert load_config(paths) == before
    assert stat.S_IMODE(paths.properties.stat().st_mode) == 0o600
    assert check(paths) == ([], Outcome())


def test_both_copies_gone(paths: VolumePaths) -> None:
    paths.properties.write_text("")
    seed(paths, "DELETE FROM volume WHERE key = 'volume_toml'")
    lines, outcome = check(paths)
    assert "without key slots no byte can be opened" in lines[0]
    assert outcome.left == 1


def test_another_volumes_toml(paths: VolumePaths, tmp_path: Path) -> None:
    other = small_volume(tmp_path / "other")
    shutil.copy(other.properties, paths.properties)
    assert check(paths, if_safe)[1] == Outcome(left=1)
    assert check(paths, always)[1] == Outcome(corrected=1)
    assert load_config(paths).uuid != load_config(other).uuid


def test_directories_are_made(paths: VolumePaths) -> None:
    shutil.rmtree(paths.spool)
    lines, outcome = check(paths, if_safe)
    assert (lines, outcome) == (["spool/: missing: made"], Outcome(corrected=1))


def test_the_own_depots_row(paths: VolumePaths) -> None:
    (paths.depot / "address").write_text("")
    seed(paths, "DELETE FROM depots")
    seed(paths, "UPDATE replicas SET depot = 2")
    lines, outcome = check(paths, if_safe)
    assert lines == ["depot 2: its row is missing: made anew: it is the embedded one"]
    assert outcome == Outcome(corrected=1)


# Who decides, what is left behind


def test_a_check_that_changes_nothing_leaves_no_trace(paths: VolumePaths) -> None:
    before = sorted(path.name for path in paths.root.iterdir())
    check(paths, read_only=True)
    assert sorted(path.name for path in paths.root.iterdir()) == before


def test_each_repair_needs_consent(paths: VolumePaths) -> None:
    seed(paths, "UPDATE inodes SET nlink = 5 WHERE ino = 4; UPDATE inodes SET allocated = 5 WHERE ino = 5")
    lines, outcome = check(paths, lambda fault: "link count" in fault.what)
    assert outcome == Outcome(corrected=1, left=1)
    assert sorted(line.rpartition(": ")[2] for line in lines) == ["corrected", "not repaired"]


def test_lost_and_found_is_not_taken_from_a_file(paths: VolumePaths) -> None:
    seed(paths, "UPDATE dentries SET name = CAST('lost+found' AS BLOB) WHERE ino = 6;"
                " DELETE FROM dentries WHERE ino = 5")  # fmt: skip
    check(paths)
    with Database(paths.store) as db:
        names = Namespace(db, time.time_ns, lambda ino, limit: 0)
        found = names.lookup(1, b"lost+found.1")
        assert stat.S_IMODE(found.mode) == 0o700
        assert names.lookup(found.ino, b"#5").ino == BIG
        assert names.lookup(1, b"lost+found").is_symlink


def test_the_younger_of_overlapping_extents_stays(paths: VolumePaths) -> None:
    seed(paths, "UPDATE mappings SET start = 4000, stop = 4100, covers = 99 WHERE ino = 4 AND start = 4096")
    check(paths)
    with Database(paths.store) as db:
        extents = Ledger(db, time.time).extents(FILE)
        assert [(one.start, one.stop, one.offset) for one in extents] == [(0, 4000, 0), (4000, 4100, 0)]


def test_no_key_is_ever_told(paths: VolumePaths) -> None:
    with Database(paths.store) as db:
        rows = db.rows("SELECT read_key, write_key, manage_key FROM replicas")
        secrets = [key.partition("/")[0] for row in rows for key in row]
    seed(paths, "UPDATE replicas SET depot = 9, segment = 9; INSERT INTO pending (depot, read_key, write_key,"
                " manage_key, created_at, seq)"
                " SELECT depot, write_key, read_key, manage_key, 1, 1 FROM replicas")  # fmt: skip
    text = "\n".join(check(paths)[0])
    assert text.count("replica") >= 4
    assert not [secret for secret in secrets if secret in text]
