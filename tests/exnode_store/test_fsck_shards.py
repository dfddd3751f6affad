"""The check of segments that are stored as shards: rows and bytes, without a reader."""

from pathlib import Path

import pytest

from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck_faults import Outcome
from tests.cache.stack import run_stack
from tests.exnode_store.coded import DATA, Six, coded_segments, coded_stack, read, six_depots
from tests.exnode_store.test_fsck_data import check
from tests.exnode_store.test_shard_upkeep import assert_whole
from tests.exnode_store.test_shards import flip, shards_of


async def made(six: Six) -> list[int]:
    """Which depots hold shards 0 to 5 of the first coded segment, once all is settled."""
    async with coded_stack(six) as now:
        shards = shards_of(now, coded_segments(now)[0])
    await check(six.paths)  # releases what it was made of
    return [shards[number].depot for number in range(6)]


async def assert_mended(six: Six) -> None:
    assert await check(six.paths) == ([], Outcome())
    async with run_stack(six.paths, warming=False) as now:
        assert_whole(now)
        assert await read(now) == DATA


async def test_a_sound_volume_has_no_faults(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six:
        await made(six)
        assert await check(six.paths) == ([], Outcome())
        assert await check(six.paths, keys=False) == ([], Outcome())


async def test_wrong_and_lost_shards_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with six_depots(tmp_path) as six:
        depots = await made(six)
        flip(six, depots[4])
        await six.wipe(depots[1])
        lines, outcome = await check(six.paths, keys=False)
        text = "\n".join(lines)
        assert "its bytes are not those of shard 4: dropped, to be made anew" in text
        assert "the depot does not have it any more: dropped" in text
        assert outcome.left == 0
        assert outcome.corrected > 1
        await assert_mended(six)


async def test_too_few_shards_are_named_with_the_file_they_are_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path, copies=4) as six:
        depots = await made(six)
        for number in (0, 2, 5):
            flip(six, depots[number])
        lines, outcome = await check(six.paths, read_only=True)
        assert any("(/file) bytes" in line and "lost, segment" in line for line in lines)
        assert any("has 3 of the 4 shards that are needed" in line for line in lines)
        assert outcome.left


ROWS = [
    ("INSERT INTO coded (segment, k, m, shard_length, seq) VALUES (999, 4, 2, 1, 1)", "segment 999: is noted as coded"),
    ("INSERT INTO shards (segment, shard, digest, seq) VALUES (999, 0, x'00', 1)", "segment 999: is noted as coded"),
    ("UPDATE coded SET shard_length = 17", "its shards count 17 bytes"),
    ("INSERT INTO replicas SELECT 999, segment, depot, 'k/1', 'k/1', 'k/1', NULL, NULL, 0, NULL, 0, 1 FROM replicas"
     " WHERE shard = 0 LIMIT 1", "is a whole copy of a coded segment"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "words"), ROWS, ids=range(len(ROWS)))
async def test_rows_are_corrected(tmp_path: Path, caplog: pytest.LogCaptureFixture, sql: str, words: str) -> None:
    async with six_depots(tmp_path) as six:
        await made(six)
        with Database(six.paths.store) as db, db.transaction():
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute(sql)
        lines, outcome = await check(six.paths)
        assert words in "\n".join(lines)
        assert outcome.left == 0
        await assert_mended(six)


async def test_a_shard_of_a_segment_that_is_not_coded_is_never_read_or_let_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path) as six:
        await made(six)
        with Database(six.paths.store) as db, db.transaction():
            db.execute("DELETE FROM coded")
            before = db.value("SELECT count(*) FROM replicas WHERE shard IS NOT NULL")
        lines, outcome = await check(six.paths, read_only=True)
        assert "is a shard of a segment that is not coded, and there is no copy" in "\n".join(lines)
        assert outcome.left
        with Database(six.paths.store) as db:
            assert db.value("SELECT count(*) FROM replicas WHERE shard IS NOT NULL") == before
