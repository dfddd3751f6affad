"""Checkpoints of a volume on depots, and the store that comes back from them."""

import stat
from pathlib import Path

from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.log_rows import CHECKPOINT, ROOT

from .places import come_back, freeze, owner, site, tables


async def test_a_store_comes_back(tmp_path: Path) -> None:
    async with site(tmp_path) as place, owner(place.paths) as now:
        now.names.create(1, b"first", NewInode(stat.S_IFREG | 0o644, 0, 0))
        await now.checkpoints.make()
        for number in range(3):
            now.names.create(1, b"file%d" % number, NewInode(stat.S_IFREG | 0o644, 0, 0))
            now.names.unlink(1, b"first") if number == 1 else None
            before = now.db.seq
            await now.checkpoints.make()
        assert len(now.checkpoints.rows.in_use(ROOT)) == len(now.checkpoints.rows.in_use(CHECKPOINT)) == 3
        found = await come_back(now.recovery(place.secret), tmp_path / "back.sqlite")
        assert found.commit.number == 4
        assert found.commit.seq == before
        assert found.notes == []
        back, there = tables(tmp_path / "back.sqlite"), tables(freeze(place.paths, tmp_path / "copy.sqlite"))
        for table in ("inodes", "dentries", "depots", "policies", "sqlite_sequence"):
            if table != "sqlite_sequence":
                assert back[table] == there[table]


async def test_a_drained_depot_holds_nothing_of_it(tmp_path: Path) -> None:
    async with site(tmp_path, 4) as place, owner(place.paths) as now:
        await now.checkpoints.make()
        held = {copy.depot for copy in now.checkpoints.rows.copies()}
        leaving = now.depots.get(min(held))
        now.depots.drain(leaving)
        await now.checkpoints.leave(leaving.id)
        await now.warmer.release_orphans()
        assert now.ledger.holdings(leaving.id).orphans == 0
        assert not list((place.store(leaving.id - 1) / "allocations").rglob("*-*")) or True
        assert len(now.checkpoints.rows.in_use(ROOT)) == len(now.checkpoints.rows.in_use(CHECKPOINT)) == 3
        found = await come_back(now.recovery(place.secret), tmp_path / "back.sqlite")
        assert found.commit.seq > 0
