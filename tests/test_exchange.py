"""What the owner of a volume gives away and takes in, over depots that have windows and depots that have none."""

import time
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.depot.wire import events as ev
from ibpfs.errors import UsageError
from ibpfs.exchange import Exchange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.lors.exporting import uncovered, windows
from ibpfs.exnode_store.merging import Merging
from tests.cache.stack import Stack, run_depot, run_stack

DATA = bytes(range(256)) * 1000


def exchange(now: Stack) -> Exchange:
    return Exchange(now.db, now.ledger, now.depots, now.files, now.imports, now.warmer.recoding)


async def export(now: Stack, ino: int, *, sealed: bool) -> list[dict[str, object]]:
    request = {"ino": ino, "sealed": sealed, "keys": False, "seconds": 600}
    found: list[dict[str, object]] = await exchange(now).commands()["export"](request, lambda *_: None)
    return found


async def written(now: Stack) -> int:
    await now.depots.wait_for_any(5)
    (depot,) = now.depots
    now.depots.moved(depot, "ibp://127.0.0.1:6714")
    before, ino = now.create(b"before").ino, now.create(b"f").ino
    await now.files.write(before, 0, b"beside")
    await now.files.write(ino, 0, DATA)
    await now.files.write(ino, len(DATA) + 10, b"behind a hole")
    return ino


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("offered", [True, False])
async def test_windows(tmp_path: Path, plain: bool, offered: bool) -> None:
    """A depot without aliases: bytes in clear are left to be copied, sealed ones named where they lie."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, plain=plain)
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino = await written(now)
        if not offered:
            for depot in now.depots:
                depot.client._missing.add((ev.AliasAllocate, False))  # as after the first -43
        parts = await export(now, ino, sealed=not plain)
        size = now.files.inode(ino).size
        found = windows(parts, 0)
        if plain:
            hole = (len(DATA), len(DATA) + 10)
            assert uncovered(parts, size) == ([hole] if offered else [(0, size)])
        else:
            with pytest.raises(UsageError, match="are sealed; --decrypt"):
                uncovered(parts, size)
        assert len(found) == (2 if offered or not plain else 0)
        assert any(one.alloc_offset for one in found) == (not offered and not plain)
        for one in found if plain else []:
            assert one.read is not None
            (depot,) = now.depots
            data = await depot.client.load(one.read.wire_key, 0, one.length)
            assert data == (await now.files.read(ino, one.offset, one.length))


async def test_what_a_window_is_on_stays_where_it_is(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, plain=True)
    async with run_depot(paths.depot), run_stack(paths) as now:
        now.ledger.now = time.time
        ino = await written(now)
        await now.files.flush()
        assert await now.flusher.finish(5)
        (segment,) = {piece.source.segment for piece in now.ledger.extents(ino)}
        merging = Merging(now.db, now.ledger)
        assert segment in [row[0] for row in now.ledger.packing()]
        assert merging.extents(ino, 0)
        await export(now, ino, sealed=False)
        assert segment not in [row[0] for row in now.ledger.packing()]
        assert not merging.extents(ino, 0)
        with now.db.transaction() as db:
            db.execute("UPDATE windows SET until = until - 601")
        assert segment in [row[0] for row in now.ledger.packing()]
        assert merging.extents(ino, 0)
        now.ledger.forget_windows()
        assert now.db.value("SELECT count(*) FROM windows") == 0


async def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    async with run_depot(paths.depot), run_stack(paths) as now:
        await now.depots.wait_for_any(5)
        adopt = exchange(now).commands()["import"]
        replica = {"address": "ibp://127.0.0.1:1", "base": 0, "read": "k/1"}
        good = {"ino": 1, "size": 1, "own": False, "parts": [{"start": 0, "stop": 1, "replicas": [replica]}]}
        wrong: list[dict[str, object]] = [
            {"ino": "x"}, {"parts": 5}, {"parts": [{}]}, {"parts": [{"start": 0, "stop": 1, "replicas": [{}]}]}
        ]  # fmt: skip
        for bad in wrong:
            with pytest.raises(UsageError, match="not a request"):
                await adopt(good | bad, lambda *_: None)
