"""Inodes as the store hands them out."""

import dataclasses
import stat

import pytest

from ibpfs.exnode_store.attributes import COLUMNS, JOINED_COLUMNS, AttributeChange, Inode
from ibpfs.exnode_store.database import Database


def make(mode: int) -> Inode:
    return Inode(5, 1, 1, 1, mode, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_columns_are_the_fields_in_order() -> None:
    fields = [field.name for field in dataclasses.fields(Inode)]
    assert COLUMNS.split(", ") == fields
    assert JOINED_COLUMNS.split(", ") == [f"i.{name}" for name in fields]


def test_columns_are_those_of_the_table(db: Database) -> None:
    table = [row[1] for row in db.rows("PRAGMA table_info(inodes)")]
    assert table == [*COLUMNS.split(", "), "seq"]


@pytest.mark.parametrize(
    ("kind", "directory", "regular", "symlink"),
    [
        (stat.S_IFDIR, True, False, False),
        (stat.S_IFREG, False, True, False),
        (stat.S_IFLNK, False, False, True),
        (stat.S_IFIFO, False, False, False),
        (stat.S_IFSOCK, False, False, False),
        (stat.S_IFBLK, False, False, False),
    ],
)
def test_types(kind: int, directory: bool, regular: bool, symlink: bool) -> None:
    inode = make(kind | 0o644)
    assert (inode.is_directory, inode.is_regular, inode.is_symlink) == (directory, regular, symlink)


def test_a_change_is_nothing_unless_told() -> None:
    assert set(dataclasses.asdict(AttributeChange()).values()) == {None}
