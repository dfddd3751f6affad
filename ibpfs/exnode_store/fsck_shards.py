"""The check of segments that are stored as shards: their rows, and the shards' bytes against their digests."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, NoRoom
from ibpfs.exnode_store.fsck_faults import SEQ, Checkup, Fault
from ibpfs.exnode_store.fsck_stored import GONE, READ, SILENT
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica

#: How it went with a shard whose bytes came and differ.
BAD = "bad"


def coded_segments(checkup: Checkup) -> Iterator[Fault]:
    """Rows of codes against those of segments and replicas."""
    db = checkup.db
    for table in ("shards", "coded"):
        stray = f"SELECT DISTINCT segment FROM {table} WHERE segment NOT IN (SELECT id FROM segments)"
        for (segment,) in db.rows(stray):
            repair = checkup.statement(f"DELETE FROM {table} WHERE segment = ?", segment)
            yield Fault(f"segment {segment}: is noted as coded ({table}) and does not exist", "note removed", repair)
    for (segment,) in db.rows("SELECT DISTINCT segment FROM shards WHERE segment NOT IN (SELECT segment FROM coded)"):
        repair = checkup.statement("DELETE FROM shards WHERE segment = ?", segment)
        yield Fault(f"segment {segment}: has digests of shards and is not coded", "digests removed", repair)
    for segment, size, right in db.rows(
        "SELECT c.segment, c.shard_length, (s.length + c.k - 1) / c.k AS right FROM coded c"
        " JOIN segments s ON s.id = c.segment WHERE c.shard_length != right"
    ):
        repair = checkup.statement("UPDATE coded SET shard_length = ?, seq = ? WHERE segment = ?", right, SEQ, segment)
        yield Fault(f"segment {segment}: its shards count {size} bytes, they have {right}", "length corrected", repair)
    for segment, count, right in db.rows(
        "SELECT c.segment, (SELECT count(*) FROM shards h WHERE h.segment = c.segment AND h.shard < c.k + c.m)"
        " AS there, c.k + c.m AS right FROM coded c WHERE there != right AND c.segment IN (SELECT id FROM segments)"
    ):
        yield Fault(f"segment {segment}: {count} of its {right} shards have a digest; as whole copies it can be stored"
                    " again: ibpfs policy set -R DIR code=none")  # fmt: skip


def mixed_replicas(checkup: Checkup) -> Iterator[Fault]:
    """Shards of segments that are not coded, and whole copies of those that are: who reads them reads nonsense."""
    yield from _whole_after_all(checkup)
    db = checkup.db
    for row, segment in db.rows(
        "SELECT r.id, r.segment FROM replicas r JOIN coded c ON c.segment = r.segment WHERE r.shard IS NULL"
        f" AND {_SHARDS} >= c.k"
    ):
        repair = partial(_release, checkup, row)
        yield Fault(f"replica {row} of segment {segment}: is a whole copy of a coded segment", "to be released", repair)
    for row, segment, is_last in db.rows(
        "SELECT r.id, r.segment, NOT EXISTS (SELECT 1 FROM replicas w WHERE w.segment = r.segment AND w.shard IS NULL)"
        " FROM replicas r JOIN segments s ON s.id = r.segment WHERE r.shard IS NOT NULL"
        " AND r.segment NOT IN (SELECT segment FROM coded)"
    ):
        what = f"replica {row} of segment {segment}: is a shard of a segment that is not coded"
        if is_last:
            yield Fault(f"{what}, and there is no copy")
        else:
            yield Fault(what, "to be released", partial(_release, checkup, row))


#: How many different shards of coded segment `c` are known.
_SHARDS = "(SELECT count(DISTINCT x.shard) FROM replicas x WHERE x.segment = c.segment)"


def _whole_after_all(checkup: Checkup) -> Iterator[Fault]:
    for (segment,) in checkup.db.rows(
        f"SELECT c.segment FROM coded c WHERE {_SHARDS} < c.k"
        " AND EXISTS (SELECT 1 FROM replicas w WHERE w.segment = c.segment AND w.shard IS NULL)"
    ):
        what = f"segment {segment}: is noted as coded, has too few shards and a whole copy"
        yield Fault(what, "note removed", partial(_note_whole, checkup, segment))


def _note_whole(checkup: Checkup, segment: int) -> None:
    for table in ("shards", "coded"):
        checkup.db.execute(f"DELETE FROM {table} WHERE segment = ?", (segment,))


def _release(checkup: Checkup, row: int) -> None:
    ledger = Ledger(checkup.db, time.time)
    replica = ledger.replica(row)
    assert replica is not None
    ledger.drop_replica(replica)


@dataclass
class Shards:
    """What came of looking at a segment's shards: how it went with each, and the sound ones, by number."""

    states: dict[int, str] = field(default_factory=dict)
    sound: dict[int, bytes] = field(default_factory=dict)


async def look_at(
    ledger: Ledger, replicas: Sequence[Replica], load: Callable[[Replica, int, int], Awaitable[bytearray]]
) -> Shards:
    """Load every shard of a segment, side by side, and compare it with its digest."""
    found = Shards()

    async def look(replica: Replica) -> None:
        if replica.shard is None:
            return
        try:
            data = await load(replica, 0, ledger.stored_length(replica))
        except CapabilityNotFound:
            found.states[replica.id] = GONE
        except NoRoom:
            found.states[replica.id] = BAD
        except (DepotError, DepotUnreachable):
            found.states[replica.id] = SILENT
        else:
            is_sound = ledger.is_sound_shard(replica.segment, replica.shard, data)
            found.states[replica.id] = READ if is_sound else BAD
            if is_sound:
                found.sound[replica.shard] = bytes(data)

    async with trio.open_nursery() as nursery:
        for replica in replicas:
            nursery.start_soon(look, replica)
    return found
