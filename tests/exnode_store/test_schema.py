"""The tables as a document: they can be made, everything is explained, every row carries its commit."""

import re
import sqlite3

import pytest

from ibpfs.exnode_store import schema

#: Tables whose rows are no part of increments, or are themselves commits.
WITHOUT_SEQ = {"volume"}


@pytest.fixture(scope="module")
def connection() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:")
    made.executescript(schema.TABLES + schema.ADDED_TABLES)
    return made


def tables_of(connection: sqlite3.Connection) -> dict[str, list[str]]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {
        name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for (name,) in names.fetchall()
    }


def test_what_the_design_asks_for(connection: sqlite3.Connection) -> None:
    tables = tables_of(connection)
    expected = {
        "volume": "key value",
        "state": "seq next_ino files",
        "depots": "id address embedded fingerprint labels role",
        "policies": "id copies min_copies code labels cache",
        "inodes": "ino generation version policy birth_ns spooled",
        "dentries": "id parent name ino",
        "slices": "slice_id epoch origin function frame_size length stored_length digest digest_name born died",
        "mappings": "ino start stop slice slice_offset covers",
        "voids": "ino covers start",
        "segments": "id policy state live born died",
        "replicas": "segment depot read_key write_key manage_key shard lease_end told_at verified_at suspect",
        "pending": "depot manage_key",
        "orphans": "depot manage_key",
        "shares": "id record",
        "pins": "pinned",
        "tombstones": "table_name row_key",
        "imported": "replica segment base owned allocation",
        "windows": "segment until",
        "imported_keys": "slice epoch wrapped",
        "commits": "seq volume epoch writer versions root_digest previous signature",
    }
    for table, columns in expected.items():
        assert set(columns.split()) <= set(tables[table]), table


def test_every_row_carries_the_commit_that_wrote_it(connection: sqlite3.Connection) -> None:
    without = {name for name, columns in tables_of(connection).items() if "seq" not in columns}
    assert without == WITHOUT_SEQ


def test_every_table_is_explained(connection: sqlite3.Connection) -> None:
    text = schema.TABLES + schema.ADDED_TABLES
    statements = re.findall(r"((?:^--[^\n]*\n)*)^CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*?)^\)", text, re.M | re.S)
    assert {name for _, name, _ in statements} == tables_of(connection).keys()
    for above, name, body in statements:
        assert "--" in above + body, name


def test_references_lead_somewhere(connection: sqlite3.Connection) -> None:
    tables = tables_of(connection)
    for table in tables:
        for row in connection.execute(f"PRAGMA foreign_key_list({table})"):
            assert row[4] in tables[row[2]], table


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO dentries (parent, name, ino, seq) VALUES (1, x'', 1, 1)",
        "INSERT INTO dentries (parent, name, ino, seq) VALUES (1, zeroblob(256), 1, 1)",
        "INSERT INTO policies (copies, min_copies, labels, seq) VALUES (1, 2, '[]', 1)",
        "INSERT INTO policies (copies, min_copies, labels, seq) VALUES (1, 0, '[]', 1)",
        "INSERT INTO inodes VALUES (281474976710656, 1,1,1,0,1,0,0,0,0,0,0,0,0,0,0,1)",
        "INSERT INTO inodes VALUES (1,1,1,1,0,-1,0,0,0,0,0,0,0,0,0,0,1)",
        "INSERT INTO mappings VALUES (1, 5, 5, 1, 0, 0, 1)",
        "INSERT INTO state VALUES (2, 0, 1, 0, 1)",
    ],
)
def test_rows_that_make_no_sense_are_refused(connection: sqlite3.Connection, statement: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM dentries WHERE parent = 1 AND name = x'61'", "sqlite_autoindex_dentries_1"),
        ("SELECT * FROM dentries WHERE parent = 1 AND id > 2 ORDER BY id LIMIT 9", "dentries_parent"),
        ("SELECT * FROM dentries WHERE ino = 1", "dentries_ino"),
        ("SELECT ino FROM inodes WHERE nlink = 0", "inodes_unlinked"),
        ("SELECT * FROM mappings WHERE slice = 1", "mappings_slice"),
        ("SELECT * FROM replicas WHERE segment = 1", "replicas_segment"),
        ("SELECT * FROM slices WHERE segment = 1 ORDER BY segment_offset", "slices_segment"),
    ],
)
def test_what_is_asked_often_has_an_index(connection: sqlite3.Connection, query: str, index: str) -> None:
    plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert index in plan
    assert "SCAN" not in plan or index == "inodes_unlinked"
    assert "TEMP B-TREE" not in plan
