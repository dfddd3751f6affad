"""A fresh exNode store with a root directory, and a clock that moves on by itself."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from ibpfs.exnode_store.database import Database, create_database
from ibpfs.exnode_store.inodes import create_root
from ibpfs.exnode_store.namespace import Namespace


class Clock:
    """Nanoseconds, one more at each question."""

    def __init__(self) -> None:
        self._ticks = count(1_000)
        self.last = 0

    def __call__(self) -> int:
        self.last = next(self._ticks)
        return self.last


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(tmp_path: Path, clock: Clock) -> Iterator[Database]:
    path = tmp_path / "exnode_store.sqlite"
    create_database(path, {"format": "1", "features": ""})
    with Database(path) as database:
        with database.transaction():
            create_root(database, clock, 0, 0)
        yield database


@pytest.fixture
def names(db: Database, clock: Clock) -> Namespace:
    return Namespace(db, clock, lambda ino, limit: 0)
