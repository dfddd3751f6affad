"""Checks of the database as a file of SQLite: readable, whole, with all its tables and its one row of state.

They come first: everything else trusts what the tables say.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from ibpfs.exnode_store.database import check_format
from ibpfs.exnode_store.fsck_faults import Checkup, Fault
from ibpfs.exnode_store.schema import FORMAT, TABLES

#: What integrity_check says of an index that differs from its table: the table counts, the index is made anew.
_OF_INDEX = re.compile(r"row \d+ missing from index|wrong # of entries in index|non-unique entry in index")
#: What it says of a row's content; later checks look at that, and `check_rows` at what they leave.
_OF_ROW = re.compile(r"CHECK constraint failed|NULL value in|(TEXT|NUMERIC) value in")

#: Ids that are handed out from here on. Cookies 1 and 2 of a directory are `.` and `..`.
_RESERVED = {"dentries": 2}
_NUMBERED = ("depots", "policies", "dentries", "slices", "segments", "replicas", "pending", "orphans", "pins")


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def check_database(checkup: Checkup) -> bool:
    """Check what must be right before the exNode store can be opened at all. False when it cannot be."""
    before = checkup.outcome.left
    with closing(connect(checkup.paths.store, read_only=checkup.read_only)) as connection:
        try:
            _refuse_unknown_format(connection, checkup.paths.store)
            for check in (_pages, _tables, _state, _format):
                checkup.handle_all(check(connection))
                if checkup.outcome.left > before:
                    return False
        except sqlite3.DatabaseError as error:
            what = f"{checkup.paths.store.name}: is no readable database ({error})"
            checkup.handle(Fault(what, "cannot be repaired; bring the volume back: ibpfs recover NEWVOLUME"))
            return False
    return True


def check_rows(checkup: Checkup) -> None:
    """What the other checks do not know of: rows that the tables' own rules forbid."""
    for (line,) in checkup.db.rows("PRAGMA integrity_check"):
        if line != "ok":
            checkup.handle(Fault(f"exNode store: {line}"))


def _refuse_unknown_format(connection: sqlite3.Connection, path: Path) -> None:
    if not _has_table(connection, "volume"):
        return
    facts = dict(connection.execute("SELECT key, value FROM volume"))
    if "format" in facts:
        check_format(facts, path)


def _pages(connection: sqlite3.Connection) -> Iterator[Fault]:
    lines = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
    lines = [line for line in lines if not _OF_ROW.match(line)]
    of_index = [line for line in lines if _OF_INDEX.match(line)]
    if of_index and of_index == lines:
        yield Fault(
            f"exNode store: {len(lines)} index entries differ from their tables ({lines[0]})",
            "indexes made anew",
            lambda: _run(connection, "REINDEX"),
        )
        return
    for line in lines:
        yield Fault(f"exNode store: damaged database: {line}")


def _tables(connection: sqlite3.Connection) -> Iterator[Fault]:
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for kind, name, sql in _schema():
        if name in there:
            continue
        is_table = kind == "table"
        yield Fault(
            f"exNode store: {kind} {name} is missing",
            f"made {'anew, empty' if is_table else 'anew'}",
            _runner(connection, sql),
            safe=not is_table,
        )


def _schema() -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(TABLES)
        return model.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
            " ORDER BY type DESC"
        ).fetchall()


def _state(connection: sqlite3.Connection) -> Iterator[Fault]:
    if connection.execute("SELECT 1 FROM state").fetchone() is None:
        # seq, next_ino and files are put right by the checks that follow.
        yield Fault(
            "exNode store: its row of state is missing",
            "made anew",
            lambda: _run(
                connection,
                "INSERT INTO state (id, seq, next_ino, files, clean)"
                " SELECT 1, 0, coalesce(max(ino), 0) + 1, count(*), 0 FROM inodes",
            ),
        )


def _format(connection: sqlite3.Connection) -> Iterator[Fault]:
    if connection.execute("SELECT 1 FROM volume WHERE key = 'format'").fetchone() is None:
        yield Fault(
            "exNode store: fact format is missing",
            f"set to {FORMAT}, whose tables it has",
            lambda: _run(connection, f"INSERT INTO volume (key, value) VALUES ('format', '{FORMAT}')"),
        )


def numbers(checkup: Checkup) -> Iterator[Fault]:
    """Counters that only grow: what they would hand out next must be new."""
    yield from _sequences(checkup)
    db = checkup.db
    highest = db.value("SELECT max(ino) FROM inodes") or 0
    if db.next_ino <= highest:
        yield Fault(
            f"state: next inode number is {db.next_ino}, though {highest} is in use",
            f"set to {highest + 1}",
            lambda: setattr(db, "next_ino", highest + 1),
        )
    latest = max(db.value(f"SELECT max(seq) FROM {table}") or 0 for table in _written())
    if db.seq < latest:
        yield Fault(
            f"state: last transaction is {db.seq}, though a row was written by {latest}",
            f"set to {latest + 1}",
            lambda: setattr(db, "seq", latest + 1),
        )


def _written() -> list[str]:
    """Tables whose rows carry the number of the transaction that wrote them."""
    tables = {name for kind, name, sql in _schema() if kind == "table" and "seq " in sql}
    return sorted(tables - {"state", "commits"})


def _sequences(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    for table in _NUMBERED:
        floor = _RESERVED.get(table, 0)
        given = db.value("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (table,)) or 0
        least = max(db.value(f"SELECT max(id) FROM {table}") or 0, floor)
        if given < least:
            yield Fault(
                f"table {table}: would give out id {given + 1} again",
                f"goes on behind {least}",
                _sequence_setter(checkup, table, least),
            )


def _sequence_setter(checkup: Checkup, table: str, least: int) -> Callable[[], None]:
    def repair() -> None:
        checkup.db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        checkup.db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, least))

    return repair


def files(checkup: Checkup) -> Iterator[Fault]:
    """The count of files; last, since other repairs change it."""
    db = checkup.db
    count = db.value("SELECT count(*) FROM inodes WHERE nlink > 0")
    if db.files != count:
        yield Fault(
            f"state: counts {db.files} files, there are {count}",
            "count corrected",
            lambda: setattr(db, "files", count),
        )


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
    return found.fetchone() is not None


def _run(connection: sqlite3.Connection, sql: str) -> None:
    connection.execute(sql)


def _runner(connection: sqlite3.Connection, sql: str) -> Callable[[], None]:
    return lambda: _run(connection, sql)
