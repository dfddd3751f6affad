"""What a volume says that it can count on."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.description import at_risk_bytes, survives_until

from .volumes import small_volume

NOW = time.time()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """Two segments of two copies each, one before fsync returns, leased for a while."""
    with Database(small_volume(tmp_path / "volume").store) as found:
        yield found


def change(db: Database, sql: str) -> None:
    with db.transaction():
        db.execute(sql)


def lengths(db: Database) -> tuple[int, int]:
    (first,), (second,) = db.rows("SELECT length FROM segments ORDER BY id")
    return first, second


def test_the_last_copy_is_at_risk_where_there_should_be_two(db: Database) -> None:
    first, second = lengths(db)
    assert at_risk_bytes(db, NOW) == 0
    change(db, "UPDATE replicas SET suspect = 1 WHERE segment = 1 AND depot = 1")
    assert at_risk_bytes(db, NOW) == first
    change(db, "UPDATE replicas SET lease_end = 1 WHERE segment = 2 AND depot = 2")
    assert at_risk_bytes(db, NOW) == first + second
    change(db, "UPDATE policies SET copies = 1")
    assert at_risk_bytes(db, NOW) == 0
    change(db, "DELETE FROM replicas WHERE segment = 1")
    assert at_risk_bytes(db, NOW) == first


def test_less_than_min_copies_is_at_risk(db: Database) -> None:
    change(db, "UPDATE policies SET copies = 4, min_copies = 2")
    assert at_risk_bytes(db, NOW) == 0
    change(db, "UPDATE policies SET min_copies = 3")
    assert at_risk_bytes(db, NOW) == sum(lengths(db))


def test_a_segment_survives_as_long_as_its_longest_sound_lease(db: Database) -> None:
    change(db, "UPDATE replicas SET lease_end = 1000 * segment + depot")
    assert survives_until(db, 5) == 1002
    change(db, "UPDATE replicas SET suspect = 1 WHERE segment = 1 AND depot = 2")
    assert survives_until(db, 5) == 1001
    change(db, "UPDATE replicas SET lease_end = NULL WHERE segment = 1 AND depot = 1")
    assert survives_until(db, 5) == 2002
    change(db, "UPDATE replicas SET lease_end = NULL WHERE segment = 2 AND depot = 1")
    assert survives_until(db, 5) is None
    change(db, "UPDATE replicas SET suspect = 1 WHERE segment = 2")
    assert survives_until(db, 5) == 5


def test_an_empty_volume_survives(db: Database) -> None:
    change(db, "UPDATE segments SET length = 0")
    assert survives_until(db, 5) is None
    assert at_risk_bytes(db, NOW) == 0
