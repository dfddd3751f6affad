"""Draining a depot: what is waited for, what has to be elsewhere first. Whole drains are in tests/test_upkeep.py."""

import os
import stat
from pathlib import Path

import pytest

from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.ledger_rows import NewSlice
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm, digest

from .checkpoints.places import Owner, Site, owner, site


async def store(now: Owner) -> int:
    """A closed segment that a file of 100 bytes lies in."""
    ino = now.names.create(1, b"file", NewInode(stat.S_IFREG | 0o644, 0, 0)).ino
    form = SliceForm(os.urandom(16), bytes.fromhex(now.db.facts["uuid"]), 1, AES_256_GCM, 65536, 100)
    stored = os.urandom(form.stored_length)
    segment, offset = await now.transfer.append(now.transfer.policy(1), [stored], len(stored))
    check = digest(int(now.db.facts["digest_seed"], 16), [stored])
    with now.transfer.committing(segment) as row:
        now.ledger.commit(row, len(stored), [NewSlice(ino, 0, 100, 2, form, check, offset)], dict)
    await now.transfer.release(segment)
    await now.transfer.close_old(every=True)
    return row


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
            await now.draining().drain(now.depots.get(first).address, lambda *_: None)
        assert first in {replica.depot for replica in now.ledger.replicas(row)}
        await place.start(spare - 1, place.addresses[spare - 1])
        await now.depots.get(spare).look()
        await now.draining().drain(now.depots.get(first).address, lambda *_: None)
        left = {replica.depot for replica in now.ledger.replicas(row) if not replica.suspect}
        assert spare in left
        assert first not in left
    assert "does not answer" in caplog.text
