"""A warm capability for a volume with shards: another machine makes lost ones anew, and they are taken home."""

from pathlib import Path

import pytest

from ibpfs.exnode_store import upkeep
from ibpfs.exnode_store.warm_capability import Merge, write_warm_capability
from ibpfs.keyless import open_warm
from tests.exnode_store.coded import DATA, coded_segments, coded_stack, read, six_depots
from tests.exnode_store.test_shard_upkeep import assert_whole
from tests.exnode_store.test_shards import shards_of


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume's own depot answers nobody else."""
    monkeypatch.setattr(upkeep, "_ANSWER", 1.0)


async def test_another_machine_makes_shards_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        write_warm_capability(six.paths.store, tmp_path / "warm", dict(now.db.facts))
        lost = next(one for one in now.ledger.replicas(segment) if one.depot != 1)
        await six.wipe(lost.depot)
        async with open_warm(tmp_path / "warm") as elsewhere:
            told = await elsewhere.warm(lambda *_: None, every=True)
            assert told["under_replicated_bytes"] == 0
            again = await elsewhere.repair(lambda *_: None)
            assert (again["bad"], again["under_replicated_bytes"]) == (0, 0)
        merged = Merge(now.db, now.ledger, now.depots).take(tmp_path / "warm")
        assert merged.added >= 1
        assert merged.unusable == 0
        await now.warmer.renew(every=True)
        await now.warmer.verify()
        assert_whole(now)
        assert await read(now) == DATA


async def test_shards_of_a_segment_that_is_whole_again_are_given_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with six_depots(tmp_path) as six, coded_stack(six) as now:
        segment = coded_segments(now)[0]
        write_warm_capability(six.paths.store, tmp_path / "warm", dict(now.db.facts))
        await six.wipe(next(one for one in now.ledger.replicas(segment) if one.depot != 1).depot)
        async with open_warm(tmp_path / "warm") as elsewhere:
            await elsewhere.warm(lambda *_: None, every=True)
        for one in coded_segments(now):
            await now.warmer.recoding.uncode(one)
        merged = Merge(now.db, now.ledger, now.depots).take(tmp_path / "warm")
        assert merged.surplus >= 1
        assert {one.shard for one in now.ledger.replicas(segment)} == {None}
        assert not shards_of(now, segment)
        assert await read(now) == DATA
