"""Table share_leases says what the state of a share says, and the lease ends that came since."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ibpfs.depot.capability import Key
from ibpfs.exnode_store.database import Database, create_database
from ibpfs.exnode_store.schema import FORMAT
from ibpfs.exnode_store.sharing.contents import FILE, Content, Entry, Sender
from ibpfs.exnode_store.sharing.lease_rows import GONE, LeaseRows
from ibpfs.exnode_store.sharing.share_state import ACTIVE, COPY, ENDING, RECORD, STALE, Alias, Owned, Share

EXPIRES = 10_000


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[LeaseRows]:
    create_database(tmp_path / "store", {"format": str(FORMAT)})
    with Database(tmp_path / "store") as db:
        yield LeaseRows(db)


def key(number: int) -> Key:
    return Key(f"key{number}", str(number))


def owned(number: int, end: float | None, kind: str = COPY) -> Owned:
    return Owned(kind, "ibp://a:1", key(number), key(number), key(number), 100, end)


def alias(number: int, end: float) -> Alias:
    return Alias(7, "ibp://a:1", key(number), key(number), key(1000), 64, 100, end)


def state(stage: str, *leases: Alias | Owned) -> Share:
    content = Content("f", "", 1, EXPIRES, Sender(bytes(32), bytes(64)), (), (), (Entry((), FILE, 0, 0, 0, None),))
    return Share(
        "/f", Ed25519PrivateKey.generate(), b"", content, stage,
        aliases=[one for one in leases if isinstance(one, Alias)],
        owned=[one for one in leases if isinstance(one, Owned)],
    )  # fmt: skip


def ends(rows: LeaseRows) -> dict[tuple[str, Key], float]:
    return {(row.lease.depot, row.lease.manage): row.end for row in rows.of("s")}


def test_what_is_in_force_is_noted(rows: LeaseRows) -> None:
    leases = alias(1, 500.0), owned(2, 600.0, RECORD), owned(3, 700.0, STALE), owned(4, None)
    rows.note("s", state(ENDING, *leases), 0.0)
    assert ends(rows) == {}
    rows.note("s", state(ACTIVE, *leases), 100.0)
    assert ends(rows) == {("ibp://a:1", key(1)): 500.0, ("ibp://a:1", key(2)): 600.0}
    assert {row.lease for row in rows.due(400.0)} == {leases[0].lease, leases[1].lease}
    rows.note("s", state(ENDING, *leases), 100.0)
    assert ends(rows) == {}


def test_what_is_just_made_is_noted_and_due_as_all_else(rows: LeaseRows) -> None:
    one, other = alias(1, 500.0), owned(2, 600.0)
    rows.note_one("s", one.lease, 500.0, EXPIRES, 100.0)
    rows.note_one("s", other.lease, 600.0, EXPIRES, 100.0)
    assert {row.lease for row in rows.due(351.0)} == {one.lease, other.lease}
    rows.note_one("s", one.lease, EXPIRES, EXPIRES, 200.0)
    assert {row.lease for row in rows.due(351.0)} == {other.lease}
    assert [row.told_at for row in rows.of("s")] == [200.0, 100.0]


def test_due_when_half_has_run_until_the_link_ends(rows: LeaseRows) -> None:
    rows.note("s", state(ACTIVE, owned(1, 500.0), owned(2, EXPIRES - 1.0)), 100.0)
    assert [len(rows.due(now)) for now in (299.0, 301.0, 600.0, EXPIRES + 1.0)] == [0, 1, 1, 0]
    assert len(rows.due(100.0, every=True)) == 1
    assert [len(rows.expired(now)) for now in (EXPIRES - 1.0, EXPIRES, EXPIRES + 40 * 86400)] == [0, 2, 0]
    (row,) = rows.due(301.0)
    rows.renewed(row, 900.0, 301.0)
    assert rows.due(400.0) == []
    (row,) = rows.due(601.0)
    assert (row.end, row.told_at) == (900.0, 301.0)
    rows.gone(row)
    assert (rows.due(601.0), rows.due(601.0, every=True), len(rows.expired(EXPIRES))) == ([], [], 2)
    assert ends(rows)["ibp://a:1", key(1)] == GONE
    rows.drop(row)
    assert len(rows.expired(EXPIRES)) == 1


def test_what_was_told_stays_told(rows: LeaseRows) -> None:
    rows.note("s", state(ACTIVE, owned(1, 500.0)), 100.0)
    longer = state(ACTIVE, owned(1, 500.0))
    longer.content = replace(longer.content, expires=20_000)
    rows.note("s", longer, 400.0)
    (row,) = rows.due(450.0)
    assert (row.told_at, row.expires) == (100.0, 20_000.0)


def test_what_has_grown_is_noted(rows: LeaseRows) -> None:
    before = owned(1, 500.0, RECORD)
    rows.note("s", state(ACTIVE, before), 100.0)
    rows.note("s", state(ACTIVE, replace(before, size=300)), 400.0)
    (row,) = rows.due(450.0)
    assert (row.lease.length, row.told_at) == (300, 100.0)


def test_many(rows: LeaseRows) -> None:
    many = [owned(number, 500.0) for number in range(1200)]
    rows.note("s", state(ACTIVE, *many), 100.0)
    rows.note("other", state(ACTIVE, many[0]), 100.0)
    assert len(ends(rows)) == 1200
    rows.note("s", state(ACTIVE, *many[1190:]), 100.0)
    assert len(ends(rows)) == 10
    assert rows.strays() == ["other", "s"]
    rows.forget("s")
    assert rows.strays() == ["other"]
