"""Checkpoints of a volume on depots, and the store that comes back from them."""

import random
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import UsageError, VolumeError, WrongKey
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.log_rows import CHECKPOINT, ROOT
from ibpfs.exnode_store.checkpoints.recovery_key import advice, is_last_named, printed_holders
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.depots import Depot

from .places import Owner, Site, come_back, freeze, log_files, owner, site, tables

#: Tables that a checkpoint writes itself, in part after what it holds.
OWN = {"volume", "state", "commits", "record_logs", "sqlite_sequence", "orphans", "pending"}


def touch(now: Owner, name: str) -> None:
    now.names.create(1, name.encode(), NewInode(stat.S_IFREG | 0o644, 0, 0))


async def names_of(place: Site, recovery: Recovery) -> set[str]:
    """The names in the store that comes back."""
    target = place.base / "back.sqlite"
    await come_back(recovery, target)
    return {row[2].decode() for row in tables(target)["dentries"]}


async def test_a_store_comes_back(tmp_path: Path) -> None:
    async with site(tmp_path) as place, owner(place.paths) as now:
        touch(now, "first")
        await now.checkpoints.make()
        for number in range(3):
            touch(now, f"file{number}")
            if number == 1:
                now.names.unlink(1, b"first")
            before = now.db.seq
            await now.checkpoints.make()
        assert len(now.checkpoints.rows.in_use(ROOT)) == len(now.checkpoints.rows.in_use(CHECKPOINT)) == 3
        found = await come_back(now.recovery(place.secret), tmp_path / "back.sqlite")
        assert (found.commit.number, found.commit.seq, found.notes) == (4, before, [])
        back, there = tables(tmp_path / "back.sqlite"), tables(freeze(place.paths, tmp_path / "copy.sqlite"))
        assert back.keys() == there.keys()
        assert all(back[table] == there[table] for table in back.keys() - OWN)
        assert now.checkpoints.at == pytest.approx(time.time(), abs=60)
        assert now.checkpoints.behind == 0


async def test_what_a_killed_owner_has_left_is_not_said_to_be_in_the_checkpoint(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            await now.checkpoints.make()
            touch(now, "late")
        async with owner(place.paths) as now:
            assert now.checkpoints.behind is None
            await now.checkpoints.make()
            assert now.checkpoints.behind == 0


async def test_slow_depots_hold_checkpoints_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Depot, "is_slow", property(lambda _: True))
    async with site(tmp_path) as place, owner(place.paths) as now:
        assert {depot.state for depot in now.depots} == {"stuttering"}
        touch(now, "file")
        await now.checkpoints.make()
        assert len(now.checkpoints.rows.in_use(ROOT)) == 3
        assert await names_of(place, now.recovery(place.secret)) >= {"file"}


async def test_another_secret_opens_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, 1) as place, owner(place.paths) as now:
        await now.checkpoints.make()
        with pytest.raises(WrongKey):
            await come_back(now.recovery(b"x" * 24), tmp_path / "back.sqlite")


async def test_a_log_that_is_full_is_followed_by_another(tmp_path: Path) -> None:
    """And nothing of the one before stays, once a further checkpoint has said so."""
    dice = random.Random(1)
    async with site(tmp_path) as place, owner(place.paths) as now:
        logs = set()
        for number in range(12):
            touch(now, f"file{number}")
            now.names.setxattr(now.names.lookup(1, b"file%d" % number).ino, b"user.x", dice.randbytes(60_000))
            await now.checkpoints.make()
            logs.add(now.checkpoints.rows.in_use(CHECKPOINT)[0].log)
        assert len(logs) > 1
        assert await names_of(place, now.recovery(place.secret)) >= {f"file{number}" for number in range(12)}
        await now.checkpoints.make()
        await now.warmer.release_orphans()
        assert now.ledger.orphans() == []
        assert [len(log_files(place.store(number))) for number in range(3)] == [2, 2, 2]  # a root and a checkpoint log


async def test_the_next_owner_goes_on_with_increments(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            touch(now, "a")
            await now.checkpoints.make()
            log = now.checkpoints.rows.in_use(CHECKPOINT)[0].log
        async with owner(place.paths) as now:
            touch(now, "b")
            await now.checkpoints.make()
            assert now.checkpoints.rows.in_use(CHECKPOINT)[0].log == log
        (place.paths.run / "checkpoint").unlink()
        async with owner(place.paths) as now:
            touch(now, "c")
            await now.checkpoints.make()
            assert now.checkpoints.rows.in_use(CHECKPOINT)[0].log != log
            assert await names_of(place, now.recovery(place.secret)) >= {"a", "b", "c"}


@pytest.mark.parametrize("seed", range(3))
async def test_killed_in_the_middle(tmp_path: Path, seed: int) -> None:
    """At any command to a depot: what a checkpoint held before is there, and the next owner makes the next."""
    dice = random.Random(seed)
    async with site(tmp_path) as place:
        safe: set[str] = set()
        recovery = None
        for step in range(8):
            async with owner(place.paths) as now:
                touch(now, f"file{step}")
                await killed_after(now, dice.randrange(1, 25))
                if now.checkpoints.at and recovery is None and now.checkpoints.behind == 0:
                    recovery = now.recovery(place.secret)
            if recovery is not None:
                assert await names_of(place, recovery) >= safe
            async with owner(place.paths) as now:
                await now.checkpoints.make()
                recovery = now.recovery(place.secret)
                safe.add(f"file{step}")
                assert await names_of(place, recovery) >= safe


async def killed_after(now: Owner, calls: int) -> None:
    """Begin a checkpoint, and stop at its so-manieth command to a depot, before or after that is carried out."""
    left = calls
    with trio.CancelScope() as scope:
        for depot in now.depots:

            async def counted(command, limit=20.0, call=depot.call):  # type: ignore[no-untyped-def]
                nonlocal left
                left -= 1
                if left < 0:
                    scope.cancel()
                answer = await call(command, limit)
                if left == 0:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                return answer

            depot.call = counted  # type: ignore[method-assign]
        await now.checkpoints.make()


async def test_two_of_three_depots_are_gone(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            touch(now, "a")
            await now.checkpoints.make()
            recovery = now.recovery(place.secret)
        await place.stop(0)
        await place.stop(2)
        assert "a" in await names_of(place, recovery)
        await place.stop(1)
        with pytest.raises(VolumeError, match="no depot that the recovery string names"):
            await come_back(recovery, tmp_path / "back.sqlite")


async def test_a_damaged_increment_is_left_out_and_told(tmp_path: Path) -> None:
    async with site(tmp_path) as place, owner(place.paths) as now:
        for name in ("a", "b"):
            touch(now, name)
            await now.checkpoints.make()
            lengths = now.checkpoints.rows.in_use(CHECKPOINT)[0].length
        recovery = now.recovery(place.secret)
        for number in range(3):
            for path in log_files(place.store(number)):
                raw, end = bytearray(path.read_bytes()), 4096 + lengths
                if len(raw) >= end and not any(raw[end:]):  # blocks that are laid out for what comes next
                    raw[end - 10] ^= 1
                    path.write_bytes(raw)
            found = await come_back(recovery, tmp_path / "back.sqlite")
            assert found.commit.number == (1 if number == 2 else 2)
        assert "what follows the last whole checkpoint is left out" in found.notes[-1]
        names = {row[2] for row in tables(tmp_path / "back.sqlite")["dentries"]}
        assert (b"a" in names, b"b" in names) == (True, False)


async def test_a_depot_that_missed_some_catches_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path) as place, owner(place.paths) as now:
        touch(now, "a")
        await now.checkpoints.make()
        gone = now.depots.at(place.addresses[0])
        assert gone is not None
        await place.stop(0)
        await noticed(gone)
        assert gone.state == "failed"
        touch(now, "b")
        await now.checkpoints.make()
        assert await names_of(place, now.recovery(place.secret)) >= {"a", "b"}
        await place.start(0, place.addresses[0])
        await noticed(gone)
        touch(now, "c")
        await now.checkpoints.make()
        assert {copy.length for copy in now.checkpoints.rows.in_use(CHECKPOINT)} == {
            now.checkpoints.rows.in_use(CHECKPOINT)[0].length
        }
        recovery = now.recovery(place.secret)
        await place.stop(1)
        await place.stop(2)
        assert await names_of(place, recovery) >= {"a", "b", "c"}
    assert "does not answer" in caplog.text


async def test_an_older_store_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            touch(now, "a")
            await now.checkpoints.make()
        shutil.copytree(place.paths.root, tmp_path / "copy")
        async with owner(place.paths) as now:
            for name in ("b", "c"):
                touch(now, name)
                await now.checkpoints.make()
        shutil.rmtree(place.paths.root)
        (tmp_path / "copy").rename(place.paths.root)
        async with owner(place.paths) as now:
            with pytest.raises(VolumeError, match="older than the depots by 2 commits: run ibpfs recover"):
                await now.checkpoints.check()
            assert now.checkpoints.releasable() == -1
            assert "older than the depots" in await now.checkpoints.try_make()
    assert "older than the depots" in caplog.text


async def test_an_older_store_notices_when_depots_answer_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            await now.checkpoints.make()
        shutil.copytree(place.paths.root, tmp_path / "copy")
        async with owner(place.paths) as now:
            touch(now, "b")
            (place.paths.run / "checkpoint").unlink()  # a full one: another log
            await now.checkpoints.make()
        shutil.rmtree(place.paths.root)
        (tmp_path / "copy").rename(place.paths.root)
        for number in range(3):
            await place.stop(number)
        async with owner(place.paths) as now:
            await now.checkpoints.check()  # nobody there: the mount goes on
            assert now.checkpoints.releasable() == -1
            for number in range(3):
                await place.start(number, place.addresses[number])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(now.checkpoints.run)
                await until(lambda: now.checkpoints.stale)
                nursery.cancel_scope.cancel()
            assert "older than the depots by 1 commit: run" in now.checkpoints.stale
    assert "older than the depots" in caplog.text


async def noticed(depot: Depot) -> None:
    """That a depot has gone, or has come back."""
    with suppress(DepotUnreachable):
        await depot.look()


async def until(true: object, seconds: float = 30.0) -> None:
    assert callable(true)
    with trio.fail_after(seconds):
        while not true():
            await trio.sleep(0.02)


async def test_nothing_is_released_before_a_checkpoint_forgets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ibpfs.exnode_store.checkpoints.keeper.RELEASE_INTERVAL", 0.2)
    async with site(tmp_path, 2) as place, owner(place.paths) as now:
        await now.checkpoints.make()
        depot = next(iter(now.depots))
        caps = await depot.client.allocate(100, 600)
        keys = caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key
        now.ledger.abandon_pending(now.ledger.add_pending([(depot.id, *keys)]))
        await now.warmer.release_orphans()
        await depot.client.probe(keys[2])  # still there
        async with trio.open_nursery() as nursery:  # and it does not take long
            nursery.start_soon(now.checkpoints.run)
            nursery.start_soon(now.warmer.run)
            await until(lambda: not now.ledger.orphans())
            nursery.cancel_scope.cancel()


async def test_a_drained_depot_holds_nothing_of_it(tmp_path: Path) -> None:
    async with site(tmp_path, 4) as place, owner(place.paths) as now:
        await now.checkpoints.make()
        leaving = now.depots.get(min(copy.depot for copy in now.checkpoints.rows.copies()))
        now.depots.drain(leaving)
        await now.checkpoints.leave(leaving.id)
        await now.warmer.release_orphans()
        assert now.ledger.holdings(leaving.id).orphans == 0
        assert log_files(place.store(leaving.id - 1)) == []
        assert len(now.checkpoints.rows.in_use(ROOT)) == len(now.checkpoints.rows.in_use(CHECKPOINT)) == 3
        assert await come_back(now.recovery(place.secret), tmp_path / "back.sqlite")


async def test_a_log_that_was_followed_is_released_before_long(tmp_path: Path) -> None:
    """Whoever releases is told that there is something."""
    async with site(tmp_path) as place:
        async with owner(place.paths) as now:
            await now.checkpoints.make()
        (place.paths.run / "checkpoint").unlink()
        async with owner(place.paths) as now:
            assert not now.ledger.orphans_waiting
            touch(now, "a")
            await now.checkpoints.make()
            assert now.ledger.orphans_waiting
            assert len(now.ledger.orphans()) == 3


async def test_a_copy_that_cannot_be_leased_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise DepotUnreachable("no lease")

    async with site(tmp_path) as place, owner(place.paths) as now:
        with monkeypatch.context() as patched:
            patched.setattr("ibpfs.exnode_store.allocator.Allocator.extend", refuse)
            with pytest.raises(DepotUnreachable):
                await now.checkpoints.make()
        assert now.db.value("SELECT count(*) FROM pending") == 0
        assert len(now.ledger.orphans()) == 3
        await now.checkpoints.make()
        await now.warmer.release_orphans()
        assert now.ledger.orphans() == []


async def test_a_volume_of_one_depot_cannot_leave_it(tmp_path: Path) -> None:
    async with site(tmp_path, 1) as place, owner(place.paths) as now:
        await now.checkpoints.make()
        now.depots.drain(now.depots.get(1))
        with pytest.raises(VolumeError, match="cannot be moved off it now"):
            await now.checkpoints.leave(1)
        assert await come_back(now.recovery(place.secret), tmp_path / "back.sqlite")


async def test_what_the_printed_string_leads_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path) as place, owner(place.paths) as now:
        assert advice(now.db, now.checkpoints, "V") == ""
        await now.checkpoints.make()
        assert "no recovery string that leads" in advice(now.db, now.checkpoints, "V")
        recovery = await now.recovery_key().tell()
        assert recovery == now.recovery(place.secret)
        assert printed_holders(now.db, now.checkpoints) == (3, 3)
        assert advice(now.db, now.checkpoints, "V") == ""
        for number in (0, 1):
            assert not is_last_named(now.db, now.checkpoints, 3)
            await place.stop(number)
            depot = now.depots.at(place.addresses[number])
            assert depot is not None
            await noticed(depot)
        assert is_last_named(now.db, now.checkpoints, 3)
        assert "leads to 1 of 3 depots: ibpfs recovery-key V prints another" in advice(now.db, now.checkpoints, "V")
        draining = now.draining()
        with pytest.raises(UsageError, match="leads to no other depot; first print another"):
            now.db.execute("UPDATE policies SET copies = 1, min_copies = 1")
            draining.begin(place.addresses[2])
    assert "does not answer" in caplog.text
