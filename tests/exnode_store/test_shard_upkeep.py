"""Keeping shards alive: repair, drains, leases, policies, and what is said of how safe the bytes are."""

import math
from pathlib import Path

import pytest
import trio

from ibpfs.errors import UsageError
from ibpfs.exnode_store import scrub_plan, scrubbing
from ibpfs.exnode_store.description import at_risk_bytes, describe, summarize, survives_until
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.erasure import Code
from ibpfs.exnode_store.policy_walks import PolicyWalks
from ibpfs.exnode_store.recoding import LARGE
from ibpfs.exnode_store.settling import Settling
from ibpfs.exnode_store.upkeep import Upkeep
from tests.cache.stack import Stack, run_stack
from tests.exnode_store.coded import DATA, coded_segments, coded_stack, read, six_depots, write
from tests.exnode_store.test_shards import flip, shards_of


def upkeep_of(now: Stack) -> tuple[Upkeep, Draining]:
    draining = Draining(now.db, now.ledger, now.depots, now.transfer, now.warmer)
    return Upkeep(now.db, now.ledger, now.depots, now.transfer, now.warmer, draining), draining


async def repair(now: Stack) -> dict[str, object]:
    await now.depots.wait_for_all(10)
    return await upkeep_of(now)[0].repair(lambda *_: None)


def assert_whole(now: Stack) -> None:
    """Every coded segment has six shards, on six depots."""
    for segment in coded_segments(now):
        assert sorted(shards_of(now, segment)) == list(range(6))
        assert len(now.ledger.replicas(segment)) == len({one.depot for one in now.ledger.replicas(segment)}) == 6
    assert now.ledger.under_replicated_bytes() == 0
    assert not now.ledger.suspects()


async def test_shards_on_wiped_depots_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        shards = shards_of(now, segment)
        for number in (1, 5):
            await six.wipe(shards[number].depot)
        found = await repair(now)
        assert found["bad"]
        assert found["under_replicated_bytes"] == 0
        assert_whole(now)
        for number in (0, 2):  # two others now
            await six.wipe(shards[number].depot)
        assert await read(now) == DATA


async def test_a_flipped_bit_is_found_without_a_key_and_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        bad = shards_of(now, coded_segments(now)[0])[4]  # which no healthy read looks at
        flip(six, bad.depot)
        assert (await repair(now))["bad"]
        assert now.ledger.replica(bad.id) is None
        assert_whole(now)
        assert (await repair(now))["bad"] == 0


async def test_scrubbing_looks_at_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scrubbing, scrub_plan):
        monkeypatch.setattr(module, "FASTEST", 1 << 40)
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        bad = shards_of(now, coded_segments(now)[0])[5]
        flip(six, bad.depot)
        await now.warmer.scrubbing.set_period(1.0)
        with trio.fail_after(60):
            while bad.id not in {one.id for one in now.ledger.suspects()}:
                await now.warmer.scrubbing.catch_up()
                await trio.sleep(0.05)
        total = now.warmer.scrubbing.state()["total_bytes"]
        whole = sum(now.ledger.segment_length(segment) for segment in coded_segments(now))
        assert total < 3 * whole  # of shards their own bytes are counted


async def test_more_is_said_to_be_at_risk_the_fewer_shards_are_left(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        length, shards = now.ledger.segment_length(segment), shards_of(now, segment)
        clock = now.ledger.now()
        assert (now.ledger.spare(segment), at_risk_bytes(now.db, clock)) == (2, 0)
        now.ledger.suspect(shards[0])
        assert (now.ledger.spare(segment), at_risk_bytes(now.db, clock)) == (1, 0)
        assert now.ledger.under_replicated_bytes() == length
        assert now.ledger.shortages() == [(segment, length, 1, 1)]
        now.ledger.suspect(shards[5])
        assert (now.ledger.spare(segment), at_risk_bytes(now.db, clock)) == (0, length)
        assert (survives_until(now.db, clock) or math.inf) > clock
        now.ledger.suspect(shards[1])
        assert now.ledger.spare(segment) == -1
        assert survives_until(now.db, clock) == clock


async def test_bytes_last_as_long_as_the_shard_that_is_lost_first_of_those_needed(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        clock = now.ledger.now()
        with now.db.transaction() as db:
            db.execute("UPDATE replicas SET lease_end = NULL WHERE shard IS NULL")
            for number in range(6):
                db.execute("UPDATE replicas SET lease_end = ? WHERE shard = ?", (clock + 100 + number, number))
        assert survives_until(now.db, clock) == clock + 102
        with now.db.transaction() as db:
            db.execute("UPDATE replicas SET lease_end = NULL WHERE shard < 3")
        assert survives_until(now.db, clock) == clock + 105
        with now.db.transaction() as db:
            db.execute("UPDATE replicas SET lease_end = NULL WHERE shard = 4")
        assert survives_until(now.db, clock) is None


async def test_shards_move_off_a_depot_that_is_drained(tmp_path: Path) -> None:
    async with six_depots(tmp_path, code="3+2", copies=2) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        depot = shards_of(now, segment)[1].depot
        _, draining = upkeep_of(now)
        address = now.depots.get(depot).address
        assert await draining.drain(address, lambda *_: None) == 0
        assert now.ledger.holdings(depot).own == 0
        for segment in coded_segments(now):
            assert sorted(shards_of(now, segment)) == list(range(5))
            assert len(now.ledger.replicas(segment)) == 5
        assert six.allocations(depot) == []
        assert await read(now) == DATA
        other = next(one.address for one in now.depots if one.role == "active" and not one.embedded)
        with pytest.raises(UsageError, match="4 depots for 5 shards"):
            draining.begin(other)


async def test_leases_of_shards_are_renewed_and_refused_ones_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path, code="3+2", copies=2) as six, coded_stack(six) as now:
        one = shards_of(now, coded_segments(now)[0])[0]
        with now.db.transaction() as db:
            db.execute("UPDATE replicas SET lease_end = ?, told_at = ? WHERE depot = ?",
                       (now.ledger.now() + 10, now.ledger.now() - 90, one.depot))  # fmt: skip
        await now.warmer.renew()
        assert (now.ledger.replica(one.id) or one).lease_end is None  # the depot leases permanently
        now.ledger.renewed(one, now.ledger.now() + 100, now.ledger.now() - 900)
        now.warmer.renewal.refused[one.id] = math.inf
        await now.warmer.repair()
        alike = [each for each in now.ledger.replicas(one.segment) if each.shard == 0]
        assert len(alike) == 2
        assert len({each.depot for each in alike}) == 2
        assert not now.warmer.has_ending


async def test_what_stat_says_of_shards(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        ino = now.names.lookup(1, b"file").ino
        coded = [one for one in describe(now.db, now.ledger, ino)["segments"] if one["code"]]
        assert {one["code"] for one in coded} == {"4+2"}
        assert sorted(each["shard"] for each in coded[0]["replicas"]) == list(range(6))
        assert summarize(now.db, now.ledger, ino)["fewest_copies"] == 3


async def test_a_tree_is_put_under_a_code_and_out_of_it(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, run_stack(six.paths, warming=False) as now:
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET code = NULL")
        await write(now)
        upkeep, _ = upkeep_of(now)
        walks = PolicyWalks(now.db, now.transfer.policies)
        settling = Settling(walks, now.ledger, now.depots, now.transfer, now.warmer)
        large = [row[0] for row in now.ledger.packing() if row[2] >= LARGE]
        for code, expected in ((Code(4, 2), large), (Code(3, 1), large), (None, [])):
            with now.db.transaction() as db:
                number = db.execute(
                    "INSERT INTO policies (copies, min_copies, labels, code, seq) VALUES (2, 1, '[]', ?, 1)",
                    (code and str(code),),
                ).lastrowid
                db.execute("UPDATE inodes SET policy = ?", (number,))
                db.execute("INSERT INTO policy_settling (id, after, seq) VALUES (1, 0, 1)")
            assert await upkeep.settle(settling, lambda *_: None)
            assert coded_segments(now) == expected
            assert {now.db.value("SELECT k FROM coded WHERE segment = ?", (segment,)) for segment in expected} == (
                {code.k} if code else set()
            )
            assert await read(now) == DATA


async def test_labels_keep_more_than_m_shards_out_of_one_domain(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six:
        async with run_stack(six.paths, warming=False) as now:
            with now.db.transaction() as db:
                db.execute("UPDATE policies SET labels = '[\"site\"]'")
                db.execute("UPDATE depots SET labels = json_object('site', CASE WHEN id <= 3 THEN 'here' ELSE id END)")
        async with run_stack(six.paths, warming=False) as now:
            await write(now)
            assert await now.warmer.recoding.code_some(100) == 0
            assert "3 would share a site" in now.warmer.recoding.obstacle(Code(4, 2), ["site"])
            assert not now.warmer.recoding.obstacle(Code(3, 2), ["site"])


async def test_whoever_asks_for_it_sees_how_far_coding_is(tmp_path: Path) -> None:
    async with six_depots(tmp_path) as six, run_stack(six.paths, warming=False) as now:
        await write(now)
        told: list[tuple[int, int, str]] = []
        await upkeep_of(now)[0].warm(lambda *step: told.append(step))
        count = len(coded_segments(now))
        assert count >= 1
        steps = [step[:2] for step in told if step[2] == "making shards"]
        assert (steps[0], steps[-1]) == ((min(count, 4), count), (count, count))
