"""Renewal: when a lease is due, what a clock that jumps does to it, and what is done when a depot refuses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.depot.clock import SteadyClock
from ibpfs.depot.server import commands
from ibpfs.depot.wire import ErrorCode, error_for
from ibpfs.depot.wire import events as ev
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.description import at_risk_bytes
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, Replica
from ibpfs.exnode_store.renewal import is_longer, next_try, renewal_due, renewal_share
from tests.cache.stack import Stack, run_depot, run_stack

KEY = Key("key", "1")
DAY = 86400.0


def replica(number: int, told_at: float, lease_end: float | None) -> Replica:
    return Replica(number, 1, 1, KEY, KEY, KEY, lease_end, told_at, False)


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


@pytest.mark.parametrize("number", range(1, 50))
def test_a_lease_is_renewed_between_50_and_70_percent_of_its_time(number: int) -> None:
    assert not renewal_due(replica(number, 1000.0, 2000.0), 1499.0)
    assert renewal_due(replica(number, 1000.0, 2000.0), 1701.0)


def test_leases_taken_together_are_not_renewed_together() -> None:
    due = [renewal_due(replica(number, 0.0, 1000.0), 600.0) for number in range(100)]
    assert 20 < sum(due) < 80


@pytest.mark.parametrize("other", [2, 3, 988, 1598])
def test_two_replicas_do_not_stay_in_step(other: int) -> None:
    apart = [abs(renewal_share(replica(1, told, 0)) - renewal_share(replica(other, told, 0))) for told in range(100)]
    assert sum(one > 0.02 for one in apart) > 60
    assert max(apart) > 0.1


def test_the_share_is_the_same_whoever_asks() -> None:
    assert renewal_share(replica(7, 12345.678, 2e9)) == renewal_share(replica(7, 12345.678, None))


def test_a_permanent_lease_is_never_due() -> None:
    assert not renewal_due(replica(1, 0.0, None), 1e12)


def test_what_another_clock_told_is_due() -> None:
    assert renewal_due(replica(1, 1000.0, 1e9), 999.0)
    assert renewal_due(replica(1, 1000.0, 1e9), 1100.0, told_before=1001.0)
    assert not renewal_due(replica(1, 1000.0, 1e9), 1100.0, told_before=1000.0)


@given(st.floats(0, 1e6), st.floats(1, 1e6), st.floats(0, 2))
def test_a_refused_renewal_is_asked_for_again_before_the_lease_ends(told: float, length: float, share: float) -> None:
    now = told + share * length
    again = next_try(replica(1, told, told + length), now)
    assert again > now
    if share < 0.79:
        assert again < told + length


def test_what_a_renewal_is() -> None:
    assert is_longer(10, 3600, 3600)
    assert is_longer(2, 2, 3)  # all of three seconds, told in whole ones
    assert not is_longer(1000, 1000, 3600)
    assert not is_longer(1000, 999, 3600)


def test_every_lease_that_is_due_has_run_half(volume: VolumePaths) -> None:
    with Database(volume.store) as db:
        ledger = Ledger(db, lambda: 0.0)
        leases = [(-100.0, 100.0), (0.0, 100.0), (1.0, 2000.0), (-50.0, 49.0)]
        segment = ledger.add_segment(1, [NewReplica(0, 1, KEY, KEY, KEY, end, told) for told, end in leases])
        assert len(ledger.leased_replicas(1)) == len(ledger.replicas(segment)) == len(leases)
        for now in range(-10, 1500, 7):
            due = [one.id for one in ledger.replicas(segment) if renewal_due(one, now)]
            half = ledger.leased_replicas(1, now)
            assert set(due) <= {one.id for one in half}
            assert all(now >= (one.told_at + (one.lease_end or 0.0)) / 2 or one.told_at > now for one in half)


async def test_a_lease_that_ends_is_renewed_in_time(volume: VolumePaths) -> None:
    async with run_depot(volume.depot, max_lease=600), run_stack(volume) as now:
        with now.db.transaction() as db:
            db.execute("UPDATE depots SET embedded = 0, address = ?", (f"unix:{volume.depot}/depot.sock",))
    async with run_depot(volume.depot, max_lease=600), run_stack(volume) as now:
        ino = now.create(b"leased").ino
        await now.files.write(ino, 0, b"x")
        await now.files.flush()
        (before,) = now.ledger.leased_replicas(1)
        assert before.lease_end is not None
        with now.db.transaction() as db:  # as if most of the lease had passed
            db.execute("UPDATE replicas SET told_at = told_at - 500, lease_end = lease_end - 500")
        await now.warmer.renew()
        (after,) = now.ledger.leased_replicas(1)
        assert after.lease_end is not None
        assert after.lease_end >= before.lease_end


@asynccontextmanager
async def leased(paths: VolumePaths, max_lease: int = 600) -> AsyncIterator[Stack]:
    """A volume on a depot that leases for a while, with one byte on it; nothing is renewed by itself."""
    async with run_depot(paths.depot, max_lease=max_lease), run_stack(paths, warming=False) as now:
        ino = now.create(b"leased").ino
        await now.files.write(ino, 0, b"x")
        await now.files.flush()
        yield now


def told(stack: Stack) -> tuple[float, float | None]:
    (one,) = stack.ledger.leased_replicas(1)
    return one.told_at, one.lease_end


async def test_a_clock_that_jumps_a_day_loses_and_skips_nothing(volume: VolumePaths) -> None:
    wall, even = [1e9], [0.0]
    async with leased(volume) as now:
        now.ledger.now = clock = SteadyClock(lambda: wall[0], lambda: even[0])
        await now.warmer.renew(every=True)
        assert told(now) == pytest.approx((1e9, 1e9 + 600), abs=2)
        for jump in (DAY, -2 * DAY):
            wall[0] += jump
            before = clock()
            assert at_risk_bytes(now.db, before) == 0  # the jump alone ends no lease
            assert await renewed(now)
            assert told(now) == pytest.approx((wall[0], wall[0] + 600), abs=2)
            assert not await renewed(now)
            even[0] += 430
            wall[0] += 430
            assert await renewed(now)  # at 70 % at the latest
        assert not now.ledger.suspects()


async def test_what_was_told_before_a_restart_with_another_clock_is_asked_anew(volume: VolumePaths) -> None:
    async with leased(volume) as now:
        now.ledger.now = SteadyClock(lambda: 2e9, lambda: 0.0)
        await now.warmer.renew(every=True)
        now.ledger.now = SteadyClock(lambda: 2e9 - DAY, lambda: 0.0)
        assert await renewed(now)
        now.ledger.now = SteadyClock(lambda: 2e9 + DAY, lambda: 0.0)
        assert at_risk_bytes(now.db, 2e9 + DAY) > 0  # as far as anybody knows
        assert await renewed(now)
        assert at_risk_bytes(now.db, 2e9 + DAY) == 0


async def renewed(stack: Stack) -> bool:
    before = told(stack)
    await stack.warmer.renew()
    return told(stack) != before


async def test_an_ended_allocation_is_renewed_within_its_grace(volume: VolumePaths) -> None:
    async with leased(volume, max_lease=1) as now:
        await now.depots.wait_for_any(5)
        until = now.ledger.leased_replicas(1)[0].lease_end
        assert until is not None
        while now.ledger.now() <= until:
            await trio.sleep(0.05)
        assert at_risk_bytes(now.db, now.ledger.now()) > 0
        await now.warmer.renew()
        assert at_risk_bytes(now.db, now.ledger.now()) == 0
        assert not now.ledger.suspects()


async def test_what_answers_no_probe_may_still_be_renewed(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with leased(volume) as now:
        await now.depots.wait_for_any(5)
        probe, asked = commands._HANDLERS[ev.Probe], [0]

        def silent_at_first(desk: commands.Desk, request: ev.Probe) -> ev.Reply:
            asked[0] += 1
            if asked[0] == 1:
                raise error_for(ErrorCode.CAP_NOT_FOUND)
            return probe(desk, request)

        monkeypatch.setitem(commands._HANDLERS, ev.Probe, silent_at_first)
        await now.warmer.renew(every=True)
        assert asked == [2]
        assert not now.ledger.suspects()


@pytest.mark.parametrize("manner", ["refuses", "says yes and does not"])
async def test_a_segment_moves_before_a_lease_that_is_not_renewed_ends(
    volume: VolumePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    async with run_depot(tmp_path / "second", max_lease=600), leased(volume) as now:
        await now.depots.wait_for_any(5)
        await now.transfer.close_old(every=True)
        (old,) = now.ledger.replicas(1)
        with now.db.transaction() as db:  # as if most of the lease had passed
            db.execute("UPDATE replicas SET told_at = told_at - 500, lease_end = lease_end - 500")
        change = commands._HANDLERS[ev.Change]

        def not_at_the_first(desk: commands.Desk, request: ev.Change) -> ev.Reply:
            if request.key.key != old.manage.key:
                return change(desk, request)
            if manner == "refuses":
                raise error_for(ErrorCode.LONG_DURATION)
            return ev.Done()

        with monkeypatch.context() as patched:
            patched.setitem(commands._HANDLERS, ev.Change, not_at_the_first)
            if manner != "refuses":
                patched.setitem(commands._HANDLERS, ev.Probe, in_the_midst(commands._HANDLERS[ev.Probe], old))
            await now.warmer.renew()
            assert list(now.warmer.renewal.refusals) == [old.depot]
            second = now.depots.add(f"unix:{tmp_path}/second/depot.sock", {})
            with trio.fail_after(10):
                while second.status is None:
                    await trio.sleep(0.01)
            await now.warmer.repair()
            assert [one.depot for one in now.ledger.replicas(1)] == [1, second.id]
            assert await now.files.read(now.names.lookup(1, b"leased").ino, 0, 1) == b"x"
            with now.db.transaction() as db:  # and the rest of it
                db.execute("UPDATE replicas SET told_at = told_at - 500, lease_end = lease_end - 500 WHERE depot = 1")
                now.ledger._replicas.clear()
            now.warmer.renewal.refused[old.id] = 0.0
            await now.warmer.renew()
        assert [one.depot for one in now.ledger.replicas(1)] == [second.id]
        assert now.warmer.under_replicated_bytes == 0


def in_the_midst(probe, old: Replica):  # type: ignore[no-untyped-def]
    """A lease of which 100 of 600 seconds are left, and stay."""

    def answer(desk: commands.Desk, request: ev.Probe) -> ev.Reply:
        told = probe(desk, request)
        if request.key.key != old.manage.key:
            return told
        return ev.Probed(told.read_count, told.write_count, told.size, told.max_size, 100, told.reliability, told.kind)

    return answer


async def test_a_depot_that_leases_for_less_than_it_says_is_asked(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = commands._HANDLERS[ev.Change]

    def curt(desk: commands.Desk, request: ev.Change) -> ev.Reply:
        return change(desk, ev.Change(request.key, request.max_size, 50, request.reliability, version=request.version))

    monkeypatch.setitem(commands._HANDLERS, ev.Change, curt)
    async with leased(volume) as now:
        (one,) = now.ledger.leased_replicas(1)
        assert one.lease_end is not None
        assert one.lease_end - one.told_at <= 50
