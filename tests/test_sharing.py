"""What the owner of a volume makes, keeps and takes back for links, over depots with windows and depots without."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.address import Address
from ibpfs.depot.wire import CapabilityNotFound, DepotUnreachable
from ibpfs.depot.wire import events as ev
from ibpfs.errors import IbpfsError, UsageError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.ledger_rows import unpack_key
from ibpfs.exnode_store.sharing.placing import FIRST_LEASE
from ibpfs.exnode_store.sharing.share_state import ACTIVE, ENDING, MAKING, Share
from ibpfs.sharing import Sharing
from tests.cache.stack import Stack, run_depot, run_stack

DATA = bytes(range(256)) * 1000


def sharing(now: Stack) -> Sharing:
    return Sharing(now.db, now.ledger, now.depots, now.files, now.imports, now.imports._keys, now.warmer.recoding)


async def ask(one: Sharing, command: str, **request: Any) -> Any:
    return await one.commands()[command](request, lambda *_: None)


async def share(one: Sharing, ino: int, **more: Any) -> dict[str, Any]:
    request: dict[str, Any] = {
        "ino": ino, "path": "/f", "name": "f", "seconds": 3600, "copy_limit": 10**6, "hashes": True,
        "for_browsers": True, **more,
    }  # fmt: skip
    found: dict[str, Any] = await ask(one, "share", **request)
    return found


async def written(now: Stack) -> int:
    await now.depots.wait_for_any(5)
    (depot,) = now.depots
    now.depots.moved(depot, "ibp://127.0.0.1:6714")
    ino = now.create(b"f").ino
    await now.files.write(ino, 0, DATA)
    await now.files.flush()
    return ino


def without_windows(now: Stack) -> None:
    for depot in now.depots:
        depot.client._missing.add((ev.AliasAllocate, False))  # as after the first -43


async def used_bytes(now: Stack) -> int:
    (depot,) = now.depots
    return (await depot.client.status()).used_bytes


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    found = VolumePaths(tmp_path / "volume")
    create_volume(found)
    return found


def held(now: Stack) -> list[object]:
    return [*now.ledger.held("share"), *now.db.rows("SELECT id FROM shares")]


@pytest.mark.parametrize("offered", [True, False])
async def test_made_and_revoked(paths: VolumePaths, offered: bool) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        if not offered:
            without_windows(now)
        used = await used_bytes(now)
        found = await share(one, ino)
        assert found["copied_bytes"] == (0 if offered else len(DATA))
        assert found["depot_copied_bytes"] == 0  # nobody else reaches this depot, so nobody copies there
        assert ("windows" in found["revocation"], "private" in found["revocation"]) == (offered, not offered)
        assert found["hold_until"] == found["expires"]
        assert one.hold_until() == found["expires"]
        (gone,) = await ask(one, "share-revoke", ids=[found["id"]])
        assert gone["left"] == []
        assert held(now) == []
        assert await used_bytes(now) <= used
        assert await now.files.read(ino, 0, 10**6) == DATA


async def test_no_capability_but_for_reading(paths: VolumePaths) -> None:
    """Not of the volume's own, either."""
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        name = (await share(one, ino))["id"]
        kept = one._shares.get(name)
        own = {key for row in now.db.rows("SELECT read_key, write_key, manage_key FROM replicas") for key in row}
        granting = {key.key for alias in kept.aliases for key in (alias.manage, alias.parent)}
        granting |= {key.key for owned in kept.owned for key in (owned.manage, owned.write)}
        assert own
        assert granting
        for text in (kept.content, kept.link.render() if kept.link else ""):
            told = repr(text) if isinstance(text, str) else _keys(text)
            assert not [key for key in granting if key in told]
            assert not [key for key in own if key.partition("/")[0] in told]


def _keys(content: Any) -> str:
    return " ".join(copy.read.key for run in content.runs for copy in run.copies)


async def test_who_can_reach_it(paths: VolumePaths) -> None:
    """A record that others reach is of no use to them without the bytes, nor are those without the record."""
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        name = (await share(one, ino))["id"]
        kept, elsewhere = one._shares.get(name), "ibp://depot.example:6714"
        assert kept.is_local
        assert (await ask(one, "share-info", id=name))["this_machine_only"]
        kept.owned = [replace(owned, depot=elsewhere) for owned in kept.owned]
        assert kept.is_local
        runs = [replace(run, copies=(*run.copies, replace(run.copies[0], depot=Address.parse(elsewhere))))
                for run in kept.content.runs]  # fmt: skip
        kept.content = replace(kept.content, runs=tuple(runs))
        assert not kept.is_local
        kept.owned = [replace(owned, depot="ibp://localhost:6714") for owned in kept.owned]
        assert kept.is_local


async def test_what_cannot_be_made_leaves_nothing(paths: VolumePaths) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        link = now.names.create(1, b"l", NewInode(0o120777, 0, 0, target=b"f")).ino
        without_windows(now)
        used = await used_bytes(now)
        for more in ({"copy_limit": 1000}, {"name": "../f"}, {"seconds": 0}, {"recipients": ["nobody"]}, {"ino": link},
                     {"ino": 999}, {"near": "unix:/tmp/x"}, {"near": "ibp://127.0.0.1:1"}, {"note": "x" * 5000},
                     {"copy_limit": "much"}):  # fmt: skip
            with pytest.raises(IbpfsError):
                await share(one, **{"ino": ino, **more})
            assert held(now) == []
        assert await used_bytes(now) <= used + 100_000


async def test_after_a_crash_half_made_ones_are_taken_back(paths: VolumePaths) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        name = (await share(one, ino))["id"]
        kept = one._shares.get(name)
        kept.stage = MAKING
        one._shares.save(kept)
        one._shares.hold("never written down", now.db.rows("SELECT id FROM segments")[0], int(time.time()) + 100)
        again = sharing(now)
        again._shares.drop_strays()
        assert [row[0] for row in now.ledger.held("share")] == [name]
        await again._keeper.tend()
        assert held(now) == []
        await now.files.drop()
        assert await now.files.read(ino, 0, 10**6) == DATA


async def test_no_link_waits_for_another_that_is_made(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """To copy and to hash much takes hours."""
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        names = [(await share(one, ino))["id"] for _ in range(2)]
        real, begun, go_on = one._maker.sha256, trio.Event(), trio.Event()

        async def slow(*of: Any) -> bytes:
            begun.set()
            await go_on.wait()
            return await real(*of)

        monkeypatch.setattr(one._maker, "sha256", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(share, one, ino)
            await begun.wait()
            with trio.fail_after(30):
                (gone,) = await ask(one, "share-revoke", ids=[names[0]])
                longer = await ask(one, "share-extend", id=names[1], seconds=7200)
                await one._keeper.tend()
            assert (gone["left"], longer["troubles"]) == ([], [])
            go_on.set()
        assert [found["state"] for found in await ask(one, "share-list")] == [ACTIVE, ACTIVE]


async def test_one_that_is_stopped_while_it_is_made(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        used, begun = await used_bytes(now), trio.Event()
        without_windows(now)

        async def endless(*_: Any) -> bytes:
            begun.set()
            await trio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(one._maker, "sha256", endless)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(share, one, ino)
            await begun.wait()
            assert await used_bytes(now) > used
            nursery.cancel_scope.cancel()
        assert held(now) == []
        assert await used_bytes(now) <= used


@pytest.mark.parametrize("offered", [True, False])
async def test_after_a_kill_nothing_of_one_that_was_made_is_left(
    paths: VolumePaths, monkeypatch: pytest.MonkeyPatch, offered: bool
) -> None:
    """What the next mount does, while all is as it was in the middle."""
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        if not offered:
            without_windows(now)
        used, there = await used_bytes(now), []

        async def killed(*_: Any) -> bytes:
            rows = now.db.rows("SELECT manage_key, parent_key FROM share_leases WHERE lease_end > ?", (time.time(),))
            # However long filling takes.
            there.extend([row for row in rows if await seconds_left(now, *row) > FIRST_LEASE])
            monkeypatch.setattr(one._keeper, "end", _nothing)
            raise KeyboardInterrupt

        monkeypatch.setattr(one._maker, "sha256", killed)
        save = one._shares.save
        monkeypatch.setattr(one._shares, "save", lambda kept: None if kept.stage == ENDING else save(kept))
        with pytest.raises(KeyboardInterrupt):
            await share(one, ino)
        assert len(there) == 1
        again = sharing(now)
        again._shares.drop_strays()
        again._shares.note_leases()
        assert held(now) != []
        await again._keeper.tend()
        assert held(now) == []
        assert now.db.rows("SELECT * FROM share_leases") == []
        assert [await seconds_left(now, *row) for row in there] == [0.0]
        assert await used_bytes(now) <= used


async def seconds_left(now: Stack, manage_key: str, parent_key: str | None) -> float:
    """0: it is gone."""
    (depot,) = now.depots
    manage = unpack_key(manage_key)
    try:
        found = await depot.client.probe_alias(manage) if parent_key else await depot.client.probe(manage)
    except CapabilityNotFound:
        return 0.0
    return found.seconds_left or 0.0


async def _nothing(_: Any) -> None:
    pass


async def test_one_that_is_made_is_not_taken_for_one_that_was_left(
    paths: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        real = one._maker.sha256

        async def meanwhile(*of: Any) -> bytes:
            await one._keeper.tend()
            with pytest.raises(UsageError, match="no links"):
                await ask(one, "share-revoke", path="/f")
            return await real(*of)

        monkeypatch.setattr(one._maker, "sha256", meanwhile)
        found = await share(one, ino)
        assert [row["hold_until"] for row in await ask(one, "share-list")] == [found["expires"]]


async def test_holes_without_end_are_not_hashed(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        await written(now)
        ino, one = now.create(b"sparse").ino, sharing(now)
        await now.files.write(ino, 2**50, b"the end")
        with trio.fail_after(60):
            found = await share(one, ino, name="sparse")
        assert (found["size"], found["sha256"]) == (2**50 + 7, None)
        monkeypatch.setattr("ibpfs.sharing._MOST_ZEROS", 1000)
        ino = now.create(b"small").ino
        await now.files.write(ino, 1000, b"the end")
        found = await share(one, ino, name="small")
        assert found["sha256"] == hashlib.sha256(bytes(1000) + b"the end").hexdigest()


async def test_says_how_far_it_is_within_one_file(paths: VolumePaths) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        await written(now)
        ino, one = now.create(b"large").ino, sharing(now)
        size = 3 * 4 * 1024 * 1024
        for at in range(0, size, size // 12):
            await now.files.write(ino, at, bytes(size // 12))
        await now.files.write(ino, 2 * size, b"behind a hole")
        told: list[tuple[int, int, str]] = []
        request = {"ino": ino, "path": "/large", "name": "large", "seconds": 3600, "copy_limit": 10**6, "hashes": True,
                   "for_browsers": True}  # fmt: skip
        await one.commands()["share"](request, lambda *row: told.append(row))
        uploaded = [done for done, total, text in told if text == "waiting for the depots" and total > 1]
        assert uploaded == sorted(uploaded)
        assert uploaded
        hashed = [done for done, total, text in told if not text and total == 2 * size + 13]
        assert hashed == sorted(hashed)
        assert len(set(hashed)) > 5
        assert hashed[-1] == 2 * size + 13


async def test_no_link_waits_for_depots_that_are_all_away(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=["ibp://127.0.0.1:1"])
    async with run_stack(paths) as now:
        await now.depots.wait_for_all(10)
        ino, one = now.create(b"f").ino, sharing(now)
        await now.files.write(ino, 0, DATA)
        with pytest.raises(DepotUnreachable, match=r"no depot .* answers: .*nobody listens"), trio.fail_after(10):
            await share(one, ino)
        assert held(now) == []


async def test_expired_ones_are_forgotten(paths: VolumePaths) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        name = (await share(one, ino))["id"]
        kept = one._shares.get(name)
        with pytest.raises(UsageError, match="holds longer"):
            await ask(one, "share-extend", id=name, seconds=10)
        kept.content = replace(kept.content, expires=int(time.time()) - 1)
        one._shares.save(kept)
        with pytest.raises(UsageError, match="has ended"):
            await ask(one, "share-extend", id=name, seconds=10)
        await one._keeper.tend()
        assert held(now) == []
        with pytest.raises(UsageError, match="no share of this volume"):
            await ask(one, "share-info", id=name)


async def test_notes_are_sealed(paths: VolumePaths) -> None:
    async with run_depot(paths.depot), run_stack(paths) as now:
        ino, one = await written(now), sharing(now)
        found = await share(one, ino, note="a very private note", passphrase="open sesame")
        kept = one._shares.get(found["id"])
        again = Share.from_bytes(kept.to_bytes())
        assert (again.content, again.aliases, again.owned, again.stage) == (
            kept.content, kept.aliases, kept.owned, ACTIVE)  # fmt: skip
        (row,) = now.db.rows("SELECT record FROM shares")
        assert b"private" not in row[0]
        assert "sesame" not in repr(kept)
        assert kept.key.hex() not in repr(kept)
