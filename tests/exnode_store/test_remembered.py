"""What is kept of names in memory has a limit, and is forgotten where somebody else writes."""

import stat
from functools import partial

import pytest

from ibpfs.errors import IbpfsError, NotFound
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.remembered import Names, Remembered
from ibpfs.exnode_store.schema import ROOT_INO


def test_the_oldest_rows_go_first() -> None:
    remembered = Remembered()
    for ino in range(10_001):
        remembered.keep(ino, (ino,))
    remembered.keep(1, (1, "again"))
    assert len(remembered.rows) == 10_000
    assert remembered.rows[1] == (1, "again")
    assert 0 not in remembered.rows


def test_the_oldest_directories_go_first() -> None:
    names = Names(most=6)
    names.keep_whole(1, {b"a": (3, 10), b"b": (4, 11)})
    names.keep_whole(2, {})
    names.keep(2, b"c", (5, 12))
    assert names.whole == {1, 2}
    names.keep(2, b"d", (6, 13))
    names.keep(2, b"e", (7, 14))
    assert names.whole == {2}
    assert names.of == {2: {b"c": (5, 12), b"d": (6, 13), b"e": (7, 14)}}


def test_a_directory_that_is_too_large_is_not_whole() -> None:
    """What is missing in memory is looked for in the table then."""
    names = Names(most=4)
    names.keep_whole(1, {})
    for number in range(100):
        names.keep(1, b"%d" % number, (number, number))
        assert sum(map(len, names.of.values())) <= 4
    assert not names.whole


def test_names_of_a_large_directory_are_known_to_be_none() -> None:
    names = Names(most=100)
    names.large = 50
    names.keep_whole(1, {})
    for number in range(10_000):
        assert names.lacks(1, b"%d" % number)
        names.keep(1, b"%d" % number, (number, number))
    assert not names.whole
    assert not any(names.lacks(1, b"%d" % number) for number in range(10_000))
    names.keep_whole(2, {})
    assert not names.lacks(3, b"x"), "nothing is known of it"
    names.forget_directory(1)
    assert not names.lacks(1, b"x")


def test_filters_have_a_limit() -> None:
    names = Names(most=100)
    names.large = 2
    for directory in range(20):
        names.keep_whole(directory, {b"a": (3, 10)})
        names.keep(directory, b"b", (4, 11))
        names.keep(directory, b"c", (5, 12))
    assert list(names.filters) == list(range(12, 20))
    names.clear()
    assert not names.filters


def test_removed_names_leave_room() -> None:
    names = Names(most=4)
    names.keep_whole(1, {})
    for number in range(100):
        names.keep(1, b"x", (number, number))
        names.forget(1, b"x")
        names.forget(1, b"x")
        names.forget(2, b"x")
    assert names.whole == {1}
    names.forget_directory(1)
    names.forget_directory(1)
    assert not names.of
    assert not names.whole


def test_statements_of_others(db: Database) -> None:
    for table in ("dentries", "inodes", "xattrs"):
        db.remembered.keep(7, (7,))
        db.remembered.keep_plain(7)
        db.remembered.names.keep(7, b"x", (7, 8))
        db.execute("SELECT 1 FROM dentries")
        assert db.remembered.names.of
        with db.transaction():
            db.execute(f"DELETE FROM {table} WHERE ino = 0")
        assert not db.remembered.names.of
        assert not db.remembered.rows
        assert not db.remembered.plain


@pytest.mark.parametrize(
    "sql",
    [
        "REPLACE INTO dentries (parent, name, ino, seq) VALUES (1, x'61', 1, 1)",
        "\n  update dentries SET seq = 1",
        "UPDATE OR IGNORE dentries SET seq = 1",
        "INSERT OR ABORT INTO dentries (parent, name, ino, seq) VALUES (1, x'61', 1, 1)",
        'DELETE FROM "dentries"',
        "DELETE FROM main.dentries",
        "WITH some AS (SELECT 1) DELETE FROM dentries WHERE id IN some",
    ],
)
def test_statements_of_others_in_other_spellings(db: Database, sql: str) -> None:
    db.remembered.names.keep(7, b"x", (7, 8))
    with db.transaction():
        db.execute(sql)
    assert not db.remembered.names.of


@pytest.mark.parametrize(
    "sql", ["DELETE FROM voids WHERE ino NOT IN (SELECT ino FROM inodes)", "UPDATE depots SET seq = 1 /* dentries */"]
)
def test_what_others_only_read_stays(db: Database, sql: str) -> None:
    db.remembered.names.keep(7, b"x", (7, 8))
    with db.transaction():
        db.execute(sql)
    assert db.remembered.names.of


def test_what_is_refused_at_once_makes_nothing_forgotten(names: Namespace, db: Database) -> None:
    directory = names.create(ROOT_INO, b"d", NewInode(stat.S_IFDIR | 0o755, 0, 0)).ino
    names.create(directory, b"f", NewInode(stat.S_IFREG | 0o644, 0, 0))
    for attempt in (
        partial(names.rmdir, ROOT_INO, b"d"),
        partial(names.removexattr, directory, b"user.none"),
        partial(names.rename, ROOT_INO, b"none", ROOT_INO, b"d"),
        partial(names.create, directory, b"f", NewInode(stat.S_IFREG | 0o644, 0, 0)),
    ):
        with pytest.raises(IbpfsError):
            attempt()
        assert directory in db.remembered.names.whole
    with pytest.raises(NotFound), db.transaction():
        names.unlink(directory, b"f")
        names.unlink(directory, b"f")
    assert not db.remembered.names.of
    assert not db.remembered.rows
    assert names.lookup(directory, b"f").nlink == 1
