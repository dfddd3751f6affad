"""The leases of links are renewed by whoever has the volume, or a warm capability, open; with no key at hand."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import CapabilityNotFound
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.sharing.lease_rows import REMEMBERED
from ibpfs.exnode_store.sharing.share_state import Share
from ibpfs.exnode_store.warm_capability import write_warm_capability
from ibpfs.keyless import open_for_upkeep, open_warm
from ibpfs.sharing import Sharing
from tests.cache.stack import Stack, run_stack
from tests.depot.conftest import DepotProcess
from tests.test_sharing import share, sharing

LEASE = 600
#: As others left it on the depots, in seconds.
LEFT = 50
DATA = bytes(range(256)) * 1000

StartDepot = Callable[..., DepotProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartDepot]:
    started: list[DepotProcess] = []

    def one(name: str, listen: str = "127.0.0.1:0") -> DepotProcess:
        started.append(DepotProcess(tmp_path / name, "--listen", listen, "--max-lease", f"{LEASE}s"))
        return started[-1]

    yield one
    for depot in started:
        depot.stop()


@pytest.fixture
def paths(tmp_path: Path, start: StartDepot) -> VolumePaths:
    found = VolumePaths(tmp_path / "volume")
    create_volume(found, depots=[start("depot").address])
    return found


@asynccontextmanager
async def opened(paths: VolumePaths) -> AsyncIterator[tuple[Stack, Sharing]]:
    async with run_stack(paths, warming=False) as now:
        await now.depots.wait_for_all(10)
        one = sharing(now)
        yield now, one
        await one._placing.aclose()


async def shared(paths: VolumePaths, seconds: int = 3600, **more: Any) -> str:
    """A link whose leases have nearly run; return the id."""
    async with opened(paths) as (now, one):
        ino = now.create(b"f").ino
        await now.files.write(ino, 0, DATA)
        await now.files.flush()
        found = await share(one, ino, seconds=seconds, **more)
        assert found["copied_bytes"] == 0
        kept = one._shares.get(found["id"])
        for alias in kept.aliases:
            await change(alias.depot, lambda client, alias=alias: client.change_alias(
                alias.manage, alias.parent, alias.offset, alias.length, LEFT))  # type: ignore[misc]  # fmt: skip
        for owned in kept.owned:
            await change(owned.depot, lambda client, owned=owned: client.change(owned.manage, duration=LEFT))  # type: ignore[misc]
        (replica,) = now.ledger.own_replicas(1)
        await change(kept.aliases[0].depot, lambda client: client.change(replica.manage, duration=LEFT))
    with Database(paths.store) as db, db.transaction():
        for table in ("replicas", "share_leases"):
            db.execute(f"UPDATE {table} SET told_at = told_at - ?, lease_end = lease_end - ?", (LEASE - LEFT,) * 2)
    return str(found["id"])


async def change(address: str, command: Callable[[DepotClient], Any]) -> Any:
    async with DepotClient(Address.parse(address)) as client:
        return await command(client)


async def seconds_left(kept: Share, *, without: str = "") -> list[float]:
    """Of all that the link has, as the depots have it: windows, their replicas, its own allocations."""
    windows = [await change(one.depot, lambda client, one=one: client.probe_alias(one.manage)) for one in kept.aliases]  # type: ignore[misc]
    keys = [(one.depot, one.parent) for one in kept.aliases]
    keys += [(one.depot, one.manage) for one in kept.owned if one.depot != without]
    others = [await change(depot, lambda client, key=key: client.probe(key)) for depot, key in keys]  # type: ignore[misc]
    assert len(others) >= 2
    return [one.seconds_left for one in (*windows, *others)]


async def state_of(paths: VolumePaths, name: str) -> Share:
    async with opened(paths) as (_, one):
        return one._shares.get(name)


async def warmed(paths: VolumePaths) -> dict[str, Any]:
    """As the timer does it, with the keys elsewhere."""
    aside = paths.key.rename(paths.root.with_name("key"))
    try:
        async with open_for_upkeep(paths) as found:
            result: dict[str, Any] = await found.commands()["warm"]({}, lambda *_: None)
            return result
    finally:
        aside.rename(paths.key)


async def test_without_the_keys(paths: VolumePaths) -> None:
    name = await shared(paths)
    assert max(await seconds_left(await state_of(paths, name))) <= LEFT
    found = await warmed(paths)
    assert found["renewed"] == 3  # the replica, its window, the record
    assert found["not_renewed"] == 0
    kept = await state_of(paths, name)
    assert min(await seconds_left(kept)) > LEASE - 60
    async with opened(paths) as (_, one):
        assert one.hold_until() == pytest.approx(time.time() + LEASE, abs=60)
    assert (await warmed(paths))["renewed"] == 0


async def test_not_beyond_the_end_of_the_link(paths: VolumePaths) -> None:
    name = await shared(paths, seconds=LEASE + 60)
    with Database(paths.store) as db, db.transaction():
        db.execute("UPDATE share_leases SET expires = ?", (time.time() + 200,))
    await warmed(paths)
    left = await seconds_left(await state_of(paths, name))
    assert sorted(200 - 30 < one <= 201 for one in left) == [False, True, True]  # the replica is the volume's


async def test_what_has_expired_is_ended(paths: VolumePaths) -> None:
    """Though the depot would have kept it for longer."""
    name = await shared(paths)
    kept = await state_of(paths, name)
    with Database(paths.store) as db, db.transaction():
        db.execute("UPDATE share_leases SET expires = ?", (time.time() - 1,))
    assert (await warmed(paths))["renewed"] == 1
    for one in (*kept.aliases, *kept.owned):
        with pytest.raises(CapabilityNotFound):
            await change(one.depot, lambda client, one=one: client.load(one.read, 0, 20))  # type: ignore[misc]
    async with opened(paths) as (now, _):
        assert now.db.rows("SELECT * FROM share_leases") == []
        await now.files.drop()
        assert await now.files.read(now.names.lookup(1, b"f").ino, 0, 1 << 20) == DATA


async def test_shares_of_before_are_noted_by_whoever_has_the_keys(paths: VolumePaths) -> None:
    name = await shared(paths)
    with Database(paths.store) as db, db.transaction():
        db.execute("DELETE FROM share_leases")
    assert (await warmed(paths))["renewed"] == 1
    async with opened(paths) as (now, one), trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        while not now.db.value("SELECT count(*) FROM share_leases"):
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (await warmed(paths))["renewed"] == 2
    assert min(await seconds_left(await state_of(paths, name))) > LEASE - 60


async def test_with_a_warm_capability(paths: VolumePaths, tmp_path: Path) -> None:
    name = await shared(paths)
    async with opened(paths) as (now, _):
        facts = dict(now.db.facts)
    counts = write_warm_capability(paths.store, tmp_path / "file", facts)
    assert counts["share_leases"] == 2
    with Database(tmp_path / "file") as db:
        assert db.rows("SELECT * FROM shares") == []
    async with open_warm(tmp_path / "file") as upkeep:
        assert (await upkeep.warm(lambda *_: None))["renewed"] == 3
    assert min(await seconds_left(await state_of(paths, name))) > LEASE - 60


@pytest.mark.parametrize("expires_in", [-1, 100])
async def test_with_a_warm_capability_from_before_it_was_extended(
    paths: VolumePaths, tmp_path: Path, expires_in: int
) -> None:
    """It neither ends it nor shortens a lease: neither before nor after the time that the file knows."""
    async with opened(paths) as (now, one):
        ino = now.create(b"f").ino
        await now.files.write(ino, 0, DATA)
        await now.files.flush()
        name = (await share(one, ino, seconds=20))["id"]
        now.ledger.close_all_segments()
        write_warm_capability(paths.store, tmp_path / "file", dict(now.db.facts))
        await extended(one, name, 3600)
    with Database(tmp_path / "file") as db, db.transaction():
        db.execute("UPDATE share_leases SET expires = ?", (time.time() + expires_in,))
        for table in ("replicas", "share_leases"):
            db.execute(f"UPDATE {table} SET lease_end = ?", (time.time() + 10,))
        assert db.value("SELECT count(*) FROM share_leases") == 2
    for every in (False, True):
        async with open_warm(tmp_path / "file") as upkeep:
            await upkeep.warm(lambda *_: None, every=every)
            await upkeep._warmer.links.renew(every=every)
    assert min(await seconds_left(await state_of(paths, name))) > LEASE - 60


async def test_revoked_links_are_not_renewed(paths: VolumePaths) -> None:
    name = await shared(paths)
    async with opened(paths) as (now, one):
        await one.commands()["share-revoke"]({"ids": [name]}, lambda *_: None)
        assert now.db.rows("SELECT * FROM share_leases") == []


async def test_one_depot_does_not_answer(
    paths: VolumePaths, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is none of the volume's."""
    caplog.set_level(logging.INFO)
    near = start("near")
    name = await shared(paths, near=near.address)
    near.stop()
    found = await warmed(paths)
    assert found["not_renewed"] == 1
    assert f"{near.address} allocation" in caplog.text
    kept = await state_of(paths, name)
    assert min(await seconds_left(kept, without=near.address)) > LEASE - 60


async def test_what_a_depot_has_that_is_away_when_a_link_expires(paths: VolumePaths, start: StartDepot) -> None:
    """It is asked again when it is back, but not for ever, and not all the time."""
    near = start("near")
    name = await shared(paths, near=near.address)
    near.stop()
    async with opened(paths) as (now, one):
        kept = one._shares.get(name)
        ours = [found for found in kept.owned if found.depot == near.address]
        assert ours
        kept.content = replace(kept.content, expires=int(time.time()) - 1)
        one._shares.save(kept)
        await one._keeper.tend()
        left = one._shares.get(name)
        assert (left.owned, left.aliases, now.ledger.held("share")) == (ours, [], [])
        assert (one._described(left)["state"], one._next_look()) == ("ending", 300.0)
        near = start("near", near.address.removeprefix("ibp://"))
        await change(near.address, lambda client: client.probe(ours[0].manage))
        await one._keeper.tend()
        with pytest.raises(CapabilityNotFound):
            await change(near.address, lambda client: client.probe(ours[0].manage))
        assert one._shares.names() == []
        near.stop()
        kept.content = replace(kept.content, expires=int(time.time() - REMEMBERED) - 1)
        one._shares.save(kept)
        await one._keeper.tend()
        assert one._shares.names() == []


async def test_a_window_that_is_gone_is_opened_anew_by_a_mount(paths: VolumePaths) -> None:
    """On the same replica; and it is not asked for again before."""
    name = await shared(paths)
    (alias,) = (await state_of(paths, name)).aliases
    await change(alias.depot, lambda client: client.revoke_alias(alias.manage, alias.parent))
    found = await warmed(paths)
    assert (found["renewed"], found["not_renewed"]) == (2, 0)
    assert (await warmed(paths))["renewed"] == 0
    async with opened(paths) as (_, one):
        one._shares.note_leases()
        assert one.hold_until() == 0
        await one._keeper.tend()
        kept = one._shares.get(name)
        (new,) = kept.aliases
        assert (new.parent, new.read != alias.read) == (alias.parent, True)
        assert [copy.read for run in kept.content.runs for copy in run.copies] == [new.read]
        assert min(await seconds_left(kept)) > LEASE - 60
        assert one._keeper.hold_until(kept) > time.time() + LEASE - 60


async def test_records_that_have_grown(paths: VolumePaths) -> None:
    """Also where nobody noted it."""
    async with opened(paths) as (now, one):
        ino = now.create(b"f").ino
        await now.files.write(ino, 0, DATA)
        await now.files.flush()
        name = (await share(one, ino, seconds=2000))["id"]
        (before,) = one._shares.get(name).owned
        number = 0
        while one._shares.get(name).owned[0].size == before.size:
            number += 1
            await extended(one, name, 2000 + number * 1000)
        (record,) = one._shares.get(name).owned
        await change(record.depot, lambda client: client.change(record.manage, duration=LEFT))
        with now.db.transaction() as db:
            db.execute("UPDATE share_leases SET told_at = told_at - ?, lease_end = lease_end - ?", (LEASE - LEFT,) * 2)
            assert now.db.value("SELECT length FROM share_leases WHERE segment IS NULL") == record.size
            db.execute("UPDATE share_leases SET length = ? WHERE segment IS NULL", (before.size,))
    assert (await warmed(paths))["not_renewed"] == 0
    status = await change(record.depot, lambda client: client.probe(record.manage))
    assert (status.max_size, status.seconds_left > LEASE - 60) == (record.size, True)


async def test_links_that_were_extended_during_a_pass(paths: VolumePaths) -> None:
    """Nor any that were revoked."""
    async with opened(paths) as (now, one):
        ino = now.create(b"f").ino
        await now.files.write(ino, 0, DATA)
        await now.files.flush()
        name = (await share(one, ino, seconds=200))["id"]
        links = now.warmer.links
        read = links._rows.expired(time.time() + 300)
        assert len(read) == 2
        await extended(one, name, 3600)
        await links._renew_on(read, True)
        await links._renew_on([replace(row, expires=time.time() - 1) for row in read], True)
        assert min(await seconds_left(one._shares.get(name))) > LEASE - 60
        await one.commands()["share-revoke"]({"ids": [name]}, lambda *_: None)
        await links._renew_on(read, True)
        assert now.db.rows("SELECT * FROM share_leases") == []


async def extended(one: Sharing, name: str, seconds: int) -> Any:
    return await one.commands()["share-extend"]({"id": name, "seconds": seconds}, lambda *_: None)
