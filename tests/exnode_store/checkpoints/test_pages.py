"""Pages of the store: what full and increments carry, replayed, is the database file, byte by byte and row by row."""

import io
import os
import random
import stat
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.errors import DataError, IbpfsError
from ibpfs.exnode_store import frozen
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.pages import PageDigests, apply, changed
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace
from tests.exnode_store.volumes import put, small_volume

from .places import freeze, tables


def change(dice: random.Random, db: Database, names: Namespace, ledger: Ledger) -> None:
    """One operation of many kinds, by chance; some are refused."""
    name = b"name%d" % dice.randrange(40)
    inos = [ino for (ino,) in db.rows("SELECT ino FROM inodes WHERE mode & 61440 = 32768 ORDER BY ino")]
    match dice.randrange(7):
        case 0 | 1:
            names.create(1, name, NewInode(stat.S_IFREG | 0o644, 0, 0))
        case 2:
            names.reap(ino) if (ino := names.unlink(1, name).ino) and dice.random() < 0.5 else None
        case 3:
            names.setxattr(dice.choice(inos), b"user.x", bytes(dice.randrange(5000)))
        case 4:
            put(ledger, db, [(dice.choice(inos), dice.randrange(9) * 4096, dice.randrange(1, 9000)) for _ in range(3)])
        case 5:
            ledger.truncate(dice.choice(inos), dice.randrange(20_000), db.seq, spooled=dice.random() < 0.5)
        case _:
            names.rename(1, name, 1, b"name%d" % dice.randrange(40))


@pytest.mark.parametrize("seed", range(3))
async def test_replay_gives_the_store(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was copied, or the file itself is read."""
    dice = random.Random(seed)
    paths = small_volume(tmp_path / "volume")
    target = io.BytesIO()
    with Database(paths.store) as db:
        ledger = Ledger(db, time.time)
        names = Namespace(db, time.time_ns, ledger.unmap)
        before = PageDigests(7, db.value("PRAGMA page_size"))
        for step in range(12):
            for _ in range(dice.randrange(30)):
                try:
                    change(dice, db, names, ledger)
                except IbpfsError:
                    continue
            copy = freeze(paths, tmp_path / f"copy{step}.sqlite")
            monkeypatch.setattr(frozen, "_SMALL", dice.choice((0, 1 << 30)))
            async with db.frozen() as image:
                assert image.seq == db.seq
                names.create(1, b"later%d" % step, NewInode(stat.S_IFREG | 0o644, 0, 0))  # goes on meanwhile
                after = PageDigests(before.seed, before.page_size)
                batches = list(changed(image, before, after))
                size = image.pages * image.page_size
                expected = os.pread(image.descriptor, size, 0)
            for batch in batches:
                apply(batch, before.page_size, target)
            target.truncate(size)
            assert target.getvalue() == expected
            (tmp_path / "replayed.sqlite").write_bytes(target.getvalue())
            assert tables(tmp_path / "replayed.sqlite") == tables(copy)
            before = after
            copy.unlink()


async def test_what_did_not_change_is_not_carried(tmp_path: Path) -> None:
    paths = small_volume(tmp_path / "volume")
    with Database(paths.store) as db:
        first, second, third = (PageDigests(1, 4096) for _ in range(3))
        async with db.frozen() as image:
            assert sum(map(len, changed(image, first, second))) > 1000
        async with db.frozen() as image:
            assert list(changed(image, second, third)) == []
        assert third.digests == second.digests


async def test_an_older_reader_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's read transaction keeps the file at an older commit: it is not taken for this one."""
    monkeypatch.setattr(frozen, "_SMALL", 0)
    paths = small_volume(tmp_path / "volume")
    with Database(paths.store) as db, Database(paths.store) as other:
        db.set_fact("x", "1")
        other.execute("BEGIN")
        other.rows("SELECT * FROM state")
        with db.transaction():
            db.set_fact("x", "2")
        with pytest.raises(DataError, match="not at the commit"):
            async with db.frozen():
                pass
        other.execute("COMMIT")
        async with db.frozen() as image:
            assert image.seq == db.seq


@pytest.mark.parametrize("data", [b"a" * 512 + bytes(512), b"a" * 512, b"a" * 1536])
def test_a_copy_that_may_lack_a_page_is_none(data: bytes) -> None:
    """SQLite says nothing of one that it could not read: there are zeros."""
    image = frozen.Image(-1, 512, 2, 1, 1)
    assert frozen._copy(SimpleNamespace(serialize=lambda: data), image) == b""  # type: ignore[arg-type]
    whole = b"a" * 1024
    assert frozen._copy(SimpleNamespace(serialize=lambda: whole), image) == whole  # type: ignore[arg-type]


async def test_a_store_that_may_lack_a_page_is_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = small_volume(tmp_path / "volume")
    monkeypatch.setattr(frozen, "_copy", lambda *_: b"")
    with Database(paths.store) as db:
        db.set_fact("x", "1")
        async with db.frozen() as image:
            assert os.fstat(image.descriptor).st_ino == paths.store.stat().st_ino
            assert image.seq == db.seq


async def test_a_small_store_is_copied_and_a_large_one_is_not(tmp_path: Path) -> None:
    paths = small_volume(tmp_path / "volume")
    with Database(paths.store) as db:
        async with db.frozen() as image:
            copy = os.fstat(image.descriptor)
            assert copy.st_ino != paths.store.stat().st_ino
            assert copy.st_size == image.pages * image.page_size
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(image.descriptor)
        db.execute("CREATE TABLE large AS SELECT zeroblob(3000000) AS x")
        async with db.frozen() as image:
            assert os.fstat(image.descriptor).st_ino == paths.store.stat().st_ino


@given(st.binary(max_size=3000))
def test_batches_that_are_none(data: bytes) -> None:
    with pytest.raises(DataError):
        apply(data, 4096, io.BytesIO())
    if data and len(data) % 516:
        with pytest.raises(DataError):
            apply(zlib.compress(data), 512, io.BytesIO())


@pytest.mark.parametrize("number", [0, 1 << 31])
def test_pages_that_cannot_be(number: int) -> None:
    with pytest.raises(DataError, match="unreasonable number"):
        apply(zlib.compress(number.to_bytes(4, "big") + bytes(512)), 512, io.BytesIO())


def test_a_batch_that_grows_without_end() -> None:
    with pytest.raises(DataError, match="too long"):
        apply(zlib.compress(bytes(300 * 1024 * 1024), 9), 4096, io.BytesIO())
