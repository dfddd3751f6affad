"""Draining a depot: what is waited for, what has to be elsewhere first. Whole drains are in tests/test_upkeep.py."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.depots import Depot
from ibpfs.exnode_store.ledger_rows import NewSlice
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm, digest

from .checkpoints.places import Owner, Site, owner, site


def new_slice(now: Owner) -> tuple[NewSlice, bytes]:
    """A slice of a new file of 100 bytes, for the begin of a segment, and its stored bytes."""
    ino = now.names.create(1, b"file", NewInode(stat.S_IFREG | 0o644, 0, 0)).ino
    form = SliceForm(os.urandom(16), bytes.fromhex(now.db.facts["uuid"]), 1, AES_256_GCM, 65536, 100)
    stored = os.urandom(form.stored_length)
    return NewSlice(ino, 0, 100, 2, form, digest(int(now.db.facts["digest_seed"], 16), [stored]), 0), stored


async def store(now: Owner) -> int:
    """A closed segment that a file lies in."""
    new, stored = new_slice(now)
    segment, offset = await now.transfer.append(now.transfer.policy(1), [stored], len(stored))
    with now.transfer.committing(segment) as row:
        now.ledger.commit(row, len(stored), [replace(new, segment_offset=offset)], dict)
    await now.transfer.release(segment)
    await now.transfer.close_old(every=True)
    return row


async def drain(now: Owner, depot: int) -> None:
    await now.draining().drain(now.depots.get(depot).address, lambda *_: None)


async def test_an_append_that_is_under_way_is_waited_for(tmp_path: Path) -> None:
    """Its allocations are pending until its first commit makes a segment of them, which is moved then."""
    async with site(tmp_path) as place, owner(place.paths) as now, trio.open_nursery() as nursery:
        new, stored = new_slice(now)
        segment, offset = await now.transfer.append(now.transfer.policy(1), [stored], len(stored))
        leaving = segment.replicas[0][0]
        waits, drained = trio.Event(), trio.Event()

        async def begin() -> None:
            await now.draining().drain(leaving.address, lambda *said: waits.set())
            drained.set()

        nursery.start_soon(begin)
        with trio.fail_after(30):
            await waits.wait()
        assert not drained.is_set()
        with now.transfer.committing(segment) as row:
            now.ledger.commit(row, len(stored), [replace(new, segment_offset=offset)], dict)
        await now.transfer.release(segment)
        with trio.fail_after(30):
            await drained.wait()
        held = now.ledger.holdings(leaving.id)
        assert (held.own, held.pending) == (0, 0)
        assert len(now.ledger.replicas(row)) == 2


async def test_segments_that_were_made_beforehand_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Depot, "is_far", property(lambda _: True))
    async with site(tmp_path) as place, owner(place.paths) as now:
        await store(now)
        await now.transfer.prepare()
        counts = {depot.id: now.ledger.holdings(depot.id).pending for depot in now.depots}
        leaving = next(number for number, count in counts.items() if count)
        with trio.fail_after(30):
            await drain(now, leaving)
        assert now.ledger.holdings(leaving).pending == 0
        await now.transfer.prepare()  # elsewhere
        assert now.ledger.holdings(leaving).pending == 0
        assert sum(now.ledger.holdings(depot.id).pending for depot in now.depots) == 2


async def fails(place: Site, now: Owner, number: int) -> None:
    await place.stop(number)
    depot = now.depots.at(place.addresses[number])
    assert depot is not None
    with pytest.raises(DepotUnreachable):
        await depot.look()
    assert depot.state == "failed"


@pytest.mark.parametrize("trouble", ["failed", "lost what it had"])
async def test_the_last_copy_that_lives_is_not_let_go(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One copy is asked for, and there are two: the other is on a depot that is away, or has nothing any more."""
    async with site(tmp_path) as place, owner(place.paths) as now:
        row = await store(now)
        first, second = (replica.depot for replica in now.ledger.replicas(row))
        (spare,) = {1, 2, 3} - {first, second}
        with now.db.transaction() as db:
            db.execute("UPDATE policies SET copies = 1, min_copies = 1")
        if trouble == "failed":
            await fails(place, now, second - 1)
        else:
            other = next(one for one in now.ledger.replicas(row) if one.depot == second)
            await now.depots.get(second).client.decr(other.manage)
        await fails(place, now, spare - 1)
        with pytest.raises(VolumeError, match="1 segments cannot be moved off it now"):
            await drain(now, first)
        assert first in {replica.depot for replica in now.ledger.replicas(row)}
        await place.start(spare - 1, place.addresses[spare - 1])
        await now.depots.get(spare).look()
        await drain(now, first)
        left = {replica.depot for replica in now.ledger.replicas(row) if not replica.suspect}
        assert spare in left
        assert first not in left
    assert "does not answer" in caplog.text
