"""Segments as shards on six depots: what is stored, and what is read when shards are lost, wrong or too few."""

from pathlib import Path

import pytest
import trio

from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.copying import Copying
from ibpfs.exnode_store.depots import Depot
from ibpfs.exnode_store.findings import Findings
from ibpfs.exnode_store.ledger_rows import NewReplica, Replica
from ibpfs.exnode_store.recoding import LARGE
from ibpfs.exnode_store.sealing import Buffer
from tests.cache.stack import Stack, run_stack
from tests.exnode_store.coded import DATA, Six, coded_segments, coded_stack, read, six_depots, write


def shards_of(now: Stack, segment: int) -> dict[int, Replica]:
    return {one.shard: one for one in now.ledger.replicas(segment) if one.shard is not None}


def flip(six: Six, depot: int) -> None:
    """One bit in the middle of each large allocation of a depot."""
    for file in six.allocations(depot):
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            byte = opened.read(1)
            opened.seek(-1, 1)
            opened.write(bytes([byte[0] ^ 4]))


async def test_large_segments_become_shards_on_distinct_depots(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        assert "shards" in now.db.facts["features"].split()
        for segment in coded_segments(now):
            replicas = now.ledger.replicas(segment)
            assert sorted(shards_of(now, segment)) == list(range(6))
            assert len({one.depot for one in replicas}) == 6
            assert not now.ledger.is_short(segment)
        assert now.ledger.under_replicated_bytes() == 0
        assert not now.db.value("SELECT count(*) FROM pending")
        assert await read(now) == DATA


async def test_a_healthy_read_asks_the_shards_that_hold_the_bytes_alone(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        shards = shards_of(now, segment)
        size = now.ledger.stored_length(shards[0])
        loaded = await now.transfer.load(segment, size + 10, size + 1000)
        assert loaded.givers == (shards[1].id,)
        across = await now.transfer.load(segment, size - 10, size + 1000)
        assert across.givers == (shards[0].id, shards[1].id)
        assert across.data[20:] == loaded.data


async def test_the_two_shards_with_the_bytes_may_be_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        length = now.ledger.segment_length(segment)
        before = await now.transfer.load(segment, 0, length)
        shards = shards_of(now, segment)
        await six.wipe(shards[0].depot)
        await six.wipe(shards[1].depot)
        assert (await now.transfer.load(segment, 0, length)).data == before.data
        assert await read(now) == DATA
        await six.wipe(shards[4].depot)
        with pytest.raises(DataError, match="of the 4 shards"):
            await now.transfer.load(segment, 0, length)


async def test_a_flipped_bit_in_a_shard_is_seen_and_the_shard_is_blamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        bad = shards_of(now, segment)[2]
        flip(six, bad.depot)
        assert await read(now) == DATA
        assert bad.id in {one.id for one in now.ledger.suspects()}
        assert {one.depot for one in now.ledger.suspects()} == {bad.depot}


async def test_a_wrong_shard_among_those_that_make_up_for_a_lost_one_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        shards = shards_of(now, segment)
        length = now.ledger.stored_length(shards[0])
        right = (await now.transfer.load(segment, 0, length)).data
        await six.wipe(shards[0].depot)
        flip(six, shards[4].depot)
        loaded = await now.transfer.load(segment, 0, length, avoid=frozenset({shards[5].id}))
        assert loaded.data != right
        assert await now.transfer.blame(loaded.givers, "it is wrong") == {shards[4].id}
        assert (await now.transfer.load(segment, 0, length, avoid=frozenset({shards[4].id}))).data == right
        assert await read(now) == DATA


async def test_small_segments_and_those_of_other_policies_stay_whole(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        assert all(now.ledger.segment_length(segment) >= LARGE for segment in coded_segments(now))
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET code = NULL")
        coded = coded_segments(now)
        await write(now, b"other")
        assert await now.warmer.recoding.code_some(100) == 0
        assert coded_segments(now) == coded


async def test_with_too_few_depots_the_copies_stay(tmp_path: Path) -> None:
    async with six_depots(tmp_path, code="5+2") as six, run_stack(six.paths, warming=False) as now:
        await write(now)
        assert await now.warmer.recoding.code_some(100) == 0
        assert "5+2 needs 7 depots that answer and have room, and there are 6" in now.warmer.recoding.trouble()
        found = await Findings(now.db, now.ledger, now.depots, now.warmer, "volume").collect()
        assert [one.code for one in found if one.code == "code-waits"]
        assert coded_segments(now) == []
        assert await read(now) == DATA
        assert not now.db.value("SELECT count(*) FROM pending")


async def test_whole_copies_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        await six.kill(3)
        for segment in coded_segments(now):
            await now.warmer.recoding.uncode(segment)
            assert {one.shard for one in now.ledger.replicas(segment)} == {None}
            assert len(now.ledger.replicas(segment)) >= 2
        with trio.fail_after(30):
            while now.ledger.under_replicated_bytes():
                await now.warmer.repair()
                await trio.sleep(0.01)
        assert coded_segments(now) == []
        assert not now.db.value("SELECT count(*) FROM shards")
        assert await read(now) == DATA


async def test_no_shards_are_given_up_for_fewer_copies_than_they_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though fsync would be content with fewer."""
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        coded, real = coded_segments(now), Copying.put
        policy = now.transfer.policy(now.ledger.policy_of(coded[0]))
        assert policy.min_copies < policy.copies
        refused: list[int] = []

        async def full(self: Copying, depot: Depot, data: Buffer, shard: int | None = None) -> NewReplica:
            if not refused or depot.id in refused:
                refused.append(depot.id)
                raise NoSpace("there is no room")
            return await real(self, depot, data, shard)

        with monkeypatch.context() as patched:
            patched.setattr(Copying, "put", full)
            with pytest.raises(DepotUnreachable, match="there is no room"):
                await now.warmer.recoding.uncode(coded[0])
        assert coded_segments(now) == coded
        await now.warmer.recoding.uncode(coded[0])
        assert len(now.ledger.replicas(coded[0])) == policy.copies
        assert await read(now) == DATA


async def test_what_is_deleted_frees_all_shards(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        now.files.unlinked(now.names.unlink(1, b"file"))
        with trio.fail_after(30):
            while now.db.value("SELECT count(*) FROM slices"):
                await now.warmer.release_dead()
                await trio.sleep(0.01)
        await now.transfer.trim()
        while now.ledger.orphans_waiting:
            await now.warmer.release_orphans()
            now.ledger.orphans(1)
        assert not now.db.value("SELECT count(*) FROM coded") + now.db.value("SELECT count(*) FROM shards")
        assert not now.db.value("SELECT count(*) FROM replicas")
        assert [six.allocations(number) for number in range(1, 7)] == [[]] * 6
