"""What SQLite notes about a WAL, read by us, against what it says itself."""

import sqlite3
from pathlib import Path

import pytest

from ibpfs.exnode_store.wal_index import WalIndex


@pytest.mark.parametrize("page", [512, 1024, 4096, 65536])
def test_sizes(tmp_path: Path, page: int) -> None:
    path = tmp_path / "db"
    connection = sqlite3.connect(path, isolation_level=None)
    index = WalIndex(path)
    assert index.sizes() == (0, 0)
    connection.execute(f"PRAGMA page_size = {page}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 5)
    header = 32
    wal = Path(f"{path}-wal").stat().st_size - header
    assert index.sizes() == (wal, wal)
    _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    assert (frames * (page + 24), frames) == (wal, moved)
    assert index.sizes() == (wal, 0)
    connection.execute("INSERT INTO t VALUES (1)")
    size, to_move = index.sizes()
    assert 0 < size == to_move < wal
    connection.close()
    index.close()
