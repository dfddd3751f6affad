"""A store that is put back from a backup knows less of a link than the link's record: the record is right."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.errors import UsageError
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.sharing.share_state import ACTIVE, ENDING
from ibpfs.keyless import open_for_upkeep
from ibpfs.sharing import Sharing
from tests.cache.stack import Stack
from tests.test_sharing import ask

from .test_keeping import StartDepot, record_of, shared, start, until_it
from .test_lease_renewal import opened, seconds_left

__all__ = ["start"]


async def put_back(paths: VolumePaths, *, mended: bool = False) -> dict[str, Any]:
    """A link that was extended after the backup, and expired as far as that knows. `mended`: its windows are others."""
    backup = paths.root.with_name("backup")
    async with opened(paths) as (now, one):
        found = await shared(now, one)
    shutil.copy(paths.store, backup)
    async with opened(paths) as (_, one):
        if mended:
            kept = one._shares.get(found["id"])
            kept.aliases = [replace(alias, parent=Key("gone", "1")) for alias in kept.aliases]
            one._shares.save(kept)
            await one._keeper.tend()
        longer = await ask(one, "share-extend", id=found["id"], seconds=3600)
    for name in ("", "-wal", "-shm"):
        Path(f"{paths.store}{name}").unlink(missing_ok=True)
    shutil.copy(backup, paths.store)
    async with opened(paths) as (now, one):
        past(now, one, found["id"])
    found["longer"] = longer["expires"]
    return found


def past(now: Stack, one: Sharing, name: str) -> None:
    kept, end = one._shares.get(name), int(time.time()) - 1
    kept.content = replace(kept.content, expires=end)
    kept.aliases = [replace(alias, lease_end=float(end)) for alias in kept.aliases]
    kept.owned = [replace(owned, lease_end=float(end)) for owned in kept.owned]
    one._shares.save(kept)
    with now.db.transaction() as db:
        db.execute("UPDATE held_segments SET until = ?", (float(end),))


@pytest.mark.parametrize("mended", [False, True])
async def test_a_mount_goes_on_with_what_the_record_says(tmp_path: Path, start: StartDepot, mended: bool) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[start("a").address, start("b").address])
    found = await put_back(paths, mended=mended)
    number = 3 if mended else 2
    async with opened(paths) as (now, one):
        now.ledger.release_dead()
        assert one._shares.held(found["id"])
        await one._keeper.tend()
        await now.warmer.links.renew()
        kept = one._shares.get(found["id"])
        assert (kept.expires, kept.number) == (found["longer"], number + mended)
        assert one._keeper.hold_until(kept) == pytest.approx(found["longer"], abs=2)
        assert [until for _, until, _ in now.ledger.held("share")] == [found["longer"]]
        assert min(await seconds_left(kept)) > 3000
        longer = await ask(one, "share-extend", id=found["id"], seconds=7000)
        assert ((await record_of(found)).public.expires, longer["troubles"]) == (longer["expires"], [])


async def test_it_can_be_extended_at_once(tmp_path: Path, start: StartDepot) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[start("a").address])
    found = await put_back(paths)
    async with opened(paths) as (_, one):
        with pytest.raises(UsageError, match="holds longer"):
            await ask(one, "share-extend", id=found["id"], seconds=1000)
        longer = await ask(one, "share-extend", id=found["id"], seconds=7000)
        assert (await record_of(found)).public.expires == longer["expires"]


async def test_without_the_keys_nothing_of_it_is_ended(tmp_path: Path, start: StartDepot) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[start("a").address])
    found = await put_back(paths)
    async with open_for_upkeep(paths) as upkeep:
        await upkeep.commands()["warm"]({"every": True}, lambda *_: None)
    for _ in range(2):  # held for a day, and as long as a depot leases it
        with Database(paths.store) as db, db.transaction():
            assert db.value("SELECT count(*) FROM held_segments WHERE until > ?", (time.time() + 3000,)) == 1
            db.execute("DELETE FROM held_segments")
        async with open_for_upkeep(paths) as upkeep:
            await upkeep.commands()["warm"]({"every": True}, lambda *_: None)
    async with opened(paths) as (_, one):
        await one._keeper.tend()
        kept = one._shares.get(found["id"])
        assert (kept.expires, len(kept.aliases), len(kept.owned)) == (found["longer"], 1, 1)
        assert min(await seconds_left(kept)) > 3000


async def test_not_ended_while_a_depot_may_know_more(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    found = await put_back(paths)
    async with opened(paths) as (now, one):
        for depot in (a, b):
            depot.stop()
            await until_it(now, depot.address, False)
        await one._keeper.tend()
        assert one._described(one._shares.get(found["id"]))["state"] == "expired"
        start("a", a.address)
        await until_it(now, a.address, True)
        await one._keeper.tend()
        assert one._shares.get(found["id"]).expires == found["longer"]
    caplog.clear()


async def test_a_depot_that_stays_away_is_not_waited_for_for_long(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        past(now, one, found["id"])
        b.stop()
        await until_it(now, b.address, False)
        for _ in range(2):
            await one._keeper.tend()
            kept = one._shares.get(found["id"])
            assert (kept.stage, bool(one._shares.held(found["id"]))) == (ACTIVE, True)
        kept.over_since -= 86400
        one._shares.save(kept)
    async with opened(paths) as (now, one):  # perhaps before there is a network
        await one._keeper.tend()
        await one._keeper.tend()
        assert one._shares.get(found["id"]).stage == ACTIVE
        one._keeper._asked_since[found["id"]] -= 3600
        await one._keeper.tend()
        kept = one._shares.get(found["id"])
        assert (kept.stage, one._shares.held(found["id"])) == (ENDING, [])
        assert {owned.depot for owned in kept.owned} == {b.address}
    caplog.clear()
