"""A depot with a shard that swallows what it is sent: reads go on from the other shards."""

from pathlib import Path
from random import Random

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.exnode_store import recoding
from ibpfs.exnode_store.creation import create_volume
from tests.cache.stack import run_stack

from .relay import relayed_depots

DATA = Random(2).randbytes(300_000)


async def test_a_stuck_shard_is_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recoding, "LARGE", 1000)
    async with relayed_depots(tmp_path, 4) as relays:
        paths = VolumePaths(tmp_path / "volume")
        create_volume(paths, depots=[relay.address for relay in relays], copies=2, code="3+1")
        async with run_stack(paths, warming=False) as now:
            await now.depots.wait_for_all(10)
            ino = now.create(b"file").ino
            await now.files.write(ino, 0, DATA)
            await now.files.flush()
            assert await now.flusher.finish(10)
            await now.transfer.close_old(every=True)
            assert await now.warmer.recoding.code_some(10) == 1
            (segment,) = [row for (row,) in now.db.rows("SELECT segment FROM coded")]
            right = (await now.transfer.load(segment, 0, 1000)).data
            for _ in range(40):  # by now it is known how long a load takes
                await now.transfer.load(segment, 0, 1000)
            first = next(one for one in now.ledger.replicas(segment) if one.shard == 0)
            relay = next(one for one in relays if one.address == now.depots.get(first.depot).address)
            relay.stick()
            with trio.fail_after(30):
                loaded = await now.transfer.load(segment, 0, 1000)
            assert loaded.data == right
            assert first.id not in loaded.givers
            assert len(loaded.givers) == 3
            await now.files.drop()
            with trio.fail_after(60):
                assert await now.files.read(ino, 0, 1 << 20) == DATA
            relay.go_on()
