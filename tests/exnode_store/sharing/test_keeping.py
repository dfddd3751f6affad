"""What a link has on depots, and what its owner knows of it, agree again whatever happened in between."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, ErrorCode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.lors.work import connected
from ibpfs.exnode_store.sharing.links import Link
from ibpfs.exnode_store.sharing.reading import read_record
from ibpfs.exnode_store.sharing.record_log import LogEntry
from ibpfs.exnode_store.sharing.share_state import RECORD, STALE, Alias, Owned, Share
from ibpfs.sharing import Sharing
from tests.cache.stack import Stack
from tests.depot.conftest import DepotProcess
from tests.test_sharing import ask, share

from .test_lease_renewal import DATA, change, opened

StartDepot = Callable[..., DepotProcess]
WARNING = "is not looked after"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartDepot]:
    started: list[DepotProcess] = []

    def one(name: str, at: str = "ibp://127.0.0.1:0") -> DepotProcess:
        started.append(DepotProcess(tmp_path / name, "--listen", at.removeprefix("ibp://"), "--max-lease", "7200s"))
        return started[-1]

    yield one
    for depot in started:
        depot.stop()


async def shared(now: Stack, one: Sharing, seconds: int = 600) -> dict[str, Any]:
    ino = now.create(f"f{seconds}".encode()).ino
    await now.files.write(ino, 0, DATA)
    await now.files.flush()
    return await share(one, ino, seconds=seconds)


async def record_of(found: dict[str, Any]) -> LogEntry:
    async with connected() as depots:
        return await read_record(depots, Link.parse(found["ibpfs_link"]).locator)


def forget_replica(now: Stack, alias: Alias) -> None:
    """As when another has taken its place; its depot has not given it back yet."""
    (replica,) = [one for one in now.ledger.replicas(alias.segment) if one.manage == alias.parent]
    now.ledger.drop_replica(replica)


async def gone(alias: Alias) -> bool:
    try:
        await change(alias.depot, lambda client: client.load(alias.read, 0, 100))
    except CapabilityNotFound:
        return True
    return False


async def until_it(now: Stack, address: str, answers: bool) -> None:
    depot = now.depots.at(address)
    assert depot is not None
    with trio.fail_after(30):
        while depot.answers != answers:
            with suppress(DepotUnreachable):
                await depot.look()


# Windows that the record does not name any more


async def dropped(now: Stack, one: Sharing, away: DepotProcess) -> tuple[str, Alias]:
    """A link that has lost its window on a depot which does not answer; its id, and the window."""
    found = await shared(now, one)
    (old,) = [alias for alias in one._shares.get(found["id"]).aliases if alias.depot == away.address]
    away.stop()
    await until_it(now, away.address, False)
    forget_replica(now, old)
    await one._keeper.tend()
    kept = one._shares.get(found["id"])
    assert (kept.dropped, kept.behind) == ([old], False)
    assert (await record_of(found)).number == 2
    return found["id"], old


async def test_a_lost_window_is_revoked_too(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        name, old = await dropped(now, one, a)
        (told,) = await ask(one, "share-revoke", ids=[name])
        assert ("window", a.address) in [(row["what"], row["depot"]) for row in told["left"]]
        start("a", a.address)
        await until_it(now, a.address, True)
        assert not await gone(old)
        await one._keeper.tend()
        assert await gone(old)
        assert one._shares.names() == []
    caplog.clear()  # on a slow machine the depot is told of as away


async def test_a_lost_window_is_closed_as_soon_as_its_depot_answers(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        name, old = await dropped(now, one, a)
        assert await one._keeper.keep(one._shares.get(name), one._shares.get(name).expires) == []
        start("a", a.address)
        await until_it(now, a.address, True)
        await one._keeper.tend()
        assert await gone(old)
        kept = one._shares.get(name)
        assert [alias.depot for alias in kept.aliases] == [b.address]
        assert {(owned.kind, owned.depot) for owned in kept.owned} == {(RECORD, a.address), (RECORD, b.address)}
    caplog.clear()


def killed(_: Share) -> None:
    raise KeyboardInterrupt


async def test_killed_before_new_windows_were_written_down(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are closed, as the record does not name them."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[start("a").address])
    async with opened(paths) as (now, one):
        name = (await shared(now, one))["id"]
        kept = one._shares.get(name)
        kept.aliases = [replace(alias, parent=Key("gone", "1")) for alias in kept.aliases]
        one._shares.save(kept)
        known = {alias.manage for alias in kept.aliases}
        with monkeypatch.context() as patched:
            patched.setattr(one._shares, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                await one._keeper.mend(one._shares.get(name))
    async with opened(paths) as (_, one):
        one._shares.note_leases()
        (lost,) = [alias for alias in one._shares.get(name).aliases if alias.manage not in known]
        assert (await change(lost.depot, lambda client: client.probe_alias(lost.manage))).seconds_left > 500
        await one._keeper.tend()
        with pytest.raises(CapabilityNotFound):
            await change(lost.depot, lambda client: client.probe_alias(lost.manage))
        assert lost.manage not in [alias.manage for alias in one._shares.get(name).aliases]


# Records


class Appending:
    """The store's own way to append, with a trouble before or behind it."""

    def __init__(self, one: Sharing, trouble: Exception, *, done: bool, only: str = "") -> None:
        self._real, self._trouble, self._done, self._only = one._placing.append, trouble, done, only

    async def __call__(self, owned: Owned, data: bytes, behind: int) -> Owned:
        if self._only not in owned.depot:
            return await self._real(owned, data, behind)
        if self._done:
            await self._real(owned, data, behind)
        raise self._trouble


@pytest.mark.parametrize("done", [True, False])
async def test_extended_after_a_lost_answer(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[start("a").address])
    async with opened(paths) as (now, one):
        found = await shared(now, one, 300)
        with monkeypatch.context() as patched:
            patched.setattr(one._placing, "append", Appending(one, DepotUnreachable("lost"), done=done))
            with pytest.raises(DepotUnreachable):
                await ask(one, "share-extend", id=found["id"], seconds=600)
        kept = one._shares.get(found["id"])
        assert (kept.expires, kept.behind) == (found["expires"], True)
        await one._keeper.tend()
        assert (await record_of(found)).public.expires == found["expires"]
        for seconds in (1200, 1800):
            longer = await ask(one, "share-extend", id=found["id"], seconds=seconds)
            assert (await record_of(found)).public.expires == longer["expires"]
        assert not one._shares.get(found["id"]).behind


async def test_killed_before_the_answer_was_noted(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[start("a").address])
    async with opened(paths) as (now, one):
        found = await shared(now, one, 300)
        with monkeypatch.context() as patched:
            patched.setattr(one._placing, "append", Appending(one, KeyboardInterrupt(), done=True))
            with pytest.raises(KeyboardInterrupt):
                await one._keeper.extend(one._shares.get(found["id"]), found["expires"] + 300)
    async with opened(paths) as (now, one):
        assert one._shares.get(found["id"]).expires == found["expires"]
        longer = await ask(one, "share-extend", id=found["id"], seconds=1200)
        assert (await record_of(found)).public.expires == longer["expires"]


async def test_a_copy_that_was_not_extended_goes(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say that the link has expired."""
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        (stale,) = [owned for owned in records(one._shares.get(found["id"])) if owned.depot == a.address]
        full = DepotError(ErrorCode.WOULD_EXCEED_LIMIT)
        monkeypatch.setattr(one._placing, "append", Appending(one, full, done=False, only=a.address))
        longer = await ask(one, "share-extend", id=found["id"], seconds=1200)
        assert len(longer["troubles"]) == 1
        with pytest.raises(CapabilityNotFound):
            await change(a.address, lambda client: client.load(stale.read, 0, 20))
        kept = one._shares.get(found["id"])
        assert [(owned.kind, owned.depot) for owned in kept.owned] == [(RECORD, b.address)]
        assert (await record_of(found)).public.expires == longer["expires"]


async def test_a_copy_that_missed_an_entry_gets_the_newest_one(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    """So the link outlives the depot that has the other copy."""
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        a.stop()
        await until_it(now, a.address, False)
        for seconds in (1200, 2400):
            longer = await ask(one, "share-extend", id=found["id"], seconds=seconds)
        assert sorted(owned.kind for owned in one._shares.get(found["id"]).owned) == [RECORD, STALE]
        start("a", a.address)
        await until_it(now, a.address, True)
        await one._keeper.tend()
        assert [owned.kind for owned in one._shares.get(found["id"]).owned] == [RECORD, RECORD]
        b.stop()
        entry = await record_of(found)
        assert (entry.number, entry.public.expires) == (3, longer["expires"])
        (ours,) = [owned for owned in records(one._shares.get(found["id"])) if owned.depot == a.address]
        status = await change(a.address, lambda client: client.probe(ours.manage))
        assert status.seconds_left > 2000
        start("b", b.address)
        await until_it(now, b.address, True)
        assert (await ask(one, "share-extend", id=found["id"], seconds=3600))["troubles"] == []
    caplog.clear()


async def test_what_the_depot_had_though_its_answer_was_lost(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        with monkeypatch.context() as patched:
            lost = Appending(one, DepotUnreachable("lost"), done=True, only=a.address)
            patched.setattr(one._placing, "append", lost)
            await ask(one, "share-extend", id=found["id"], seconds=1200)
        first, second = records(one._shares.get(found["id"]))
        assert first.kind == second.kind == RECORD
        sizes = [(await change(owned.depot, lambda client, owned=owned: client.probe(owned.manage))).size  # type: ignore[misc]
                 for owned in (first, second)]  # fmt: skip
        assert sizes[0] == sizes[1]


def records(kept: Share) -> list[Owned]:
    return [owned for owned in kept.owned if owned.kind in (RECORD, STALE)]


async def test_one_link_whose_record_is_lost(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are looked after, and it gets no new windows every time."""
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        names = [(await shared(now, one, seconds))["id"] for seconds in (600, 1200)]
        for name in names:
            kept = one._shares.get(name)
            kept.aliases = [replace(alias, parent=Key("gone", "1")) for alias in kept.aliases]
            one._shares.save(kept)
        for owned in records(one._shares.get(names[0])):
            await change(owned.depot, lambda client, owned=owned: client.decr(owned.manage))  # type: ignore[misc]
        await one._keeper.tend()
        after = one._shares.get(names[0])
        length = after.log_length
        assert (len(after.aliases), after.behind) == (4, True)
        assert not one._shares.get(names[1]).behind
        await one._keeper.tend()
        again = one._shares.get(names[0])
        assert (again.aliases, again.log_length) == (after.aliases, length)
        assert caplog.text.count(f"{names[0]} {WARNING}") == 1
        assert caplog.text.count(WARNING) == 1
    caplog.clear()


async def test_a_record_that_could_not_be_written_is_written_later(
    tmp_path: Path, start: StartDepot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = start("a"), start("b")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[a.address, b.address])
    async with opened(paths) as (now, one):
        found = await shared(now, one)
        old = one._shares.get(found["id"]).aliases[0]
        forget_replica(now, old)
        with monkeypatch.context() as patched:
            patched.setattr(one._placing, "append", Appending(one, DepotUnreachable("away"), done=False))
            await one._keeper.tend()
        assert not await gone(old)  # the record names it yet
        assert (await record_of(found)).number == 1
        await one._keeper.tend()
        assert (await record_of(found)).number == 3
        assert await gone(old)
        assert one._shares.get(found["id"]).dropped == []
    assert WARNING in caplog.text
    caplog.clear()
