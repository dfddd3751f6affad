"""A file as a person asks for it: which slices, in which segments, on which depots, until when. Names no secret.

And what the volume as a whole can count on.
"""

from typing import Any

from ibpfs.exnode_store.coded_rows import survivors
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica


def describe(db: Database, ledger: Ledger, ino: int) -> dict[str, Any]:
    """Return the file's mappings, and the segments they lie in with their replicas. Grows with the file."""
    extents = ledger.extents(ino)
    mappings = [
        {
            "start": piece.start,
            "stop": piece.stop,
            "slice": piece.source.row,
            "slice_offset": piece.offset,
            "segment": piece.source.segment,
        }
        for piece in extents
    ]
    addresses = _addresses(db)
    segments = sorted({piece.source.segment for piece in extents})
    return {
        "slices": len({piece.source.row for piece in extents}),
        "mappings": mappings,
        "segments": [
            {
                "id": segment,
                "length": ledger.segment_length(segment),
                "code": _code(ledger, segment),
                "replicas": [_replica(replica, addresses) for replica in ledger.replicas(segment)],
            }
            for segment in segments
        ],
    }


def summarize(db: Database, ledger: Ledger, ino: int) -> dict[str, Any]:
    """The same in a few hundred bytes, however large the file."""
    extents = ledger.extents(ino)
    segments = {piece.source.segment for piece in extents}
    copies = (survivors(ledger.replicas(segment), ledger.coded(segment)) + 1 for segment in segments)
    replicas = [replica for segment in segments for replica in ledger.replicas(segment)]
    addresses = _addresses(db)
    ends = [replica.lease_end for replica in replicas if replica.lease_end is not None]
    return {
        "slices": len({piece.source.row for piece in extents}),
        "segments": len(segments),
        "fewest_copies": min(copies, default=0),  # of shards: how many may be lost, and one
        "depots": sorted({addresses.get(replica.depot, "") for replica in replicas})[:100],
        "earliest_lease_end": min(ends, default=None),
    }


def earliest_lease_end(db: Database) -> float | None:
    """Unix seconds at which the first lease ends; None when every one is permanent."""
    end: float | None = db.value(
        "SELECT min(lease_end) FROM (SELECT lease_end FROM replicas UNION ALL SELECT lease_end FROM record_logs)"
    )
    return end


def at_risk_bytes(db: Database, now: float) -> int:
    """Stored bytes with fewer sound leased replicas than min_copies, or with one only where there should be more.

    Where K shards are needed, K and one more count as two copies.
    """
    endangered: int = db.value(
        "SELECT coalesce(sum(length), 0) FROM (SELECT s.length FROM segments s JOIN policies p ON p.id = s.policy"
        " LEFT JOIN coded c ON c.segment = s.id"
        " LEFT JOIN replicas r ON r.segment = s.id AND r.suspect = 0 AND (r.lease_end IS NULL OR r.lease_end > ?)"
        " WHERE s.length > 0 AND s.id NOT IN (SELECT segment FROM imported) GROUP BY s.id"
        " HAVING CASE WHEN c.k IS NULL THEN count(r.id) < max(p.min_copies, min(p.copies, 2))"
        " ELSE count(DISTINCT r.shard) - c.k + 1 < max(p.min_copies, 2) END)",
        (now,),
    )
    return endangered


def survives_until(db: Database, now: float) -> float | None:
    """Unix seconds until which every segment keeps a sound replica, or enough shards, and the checkpoint and its root a
    copy, if nothing is renewed; None: for good. `now` where one has too few already.
    """
    end: float | None = db.value(
        "SELECT min(CASE WHEN sound = 0 THEN ? WHEN permanent THEN NULL ELSE end END)"
        " FROM (SELECT count(r.id) AS sound, count(r.id) > count(r.lease_end) AS permanent, max(r.lease_end) AS end"
        " FROM segments s LEFT JOIN replicas r ON r.segment = s.id AND r.suspect = 0 WHERE s.length > 0"
        " AND s.id NOT IN (SELECT segment FROM coded) GROUP BY s.id"
        f" UNION ALL {_SHARDS_END}"
        " UNION ALL SELECT 1, count(*) > count(lease_end), max(lease_end) FROM record_logs GROUP BY kind)",
        (now,),
    )
    return end


#: As above, of each coded segment: its Kth different shard, in the order of how long they last, is what it lasts for.
_SHARDS_END = (
    "SELECT there >= k, permanent, end FROM (SELECT k, permanent, end, count(*) OVER (PARTITION BY segment) AS there,"
    " row_number() OVER (PARTITION BY segment ORDER BY permanent DESC, end DESC) AS place"
    " FROM (SELECT r.segment, c.k, count(*) > count(r.lease_end) AS permanent, max(r.lease_end) AS end"
    " FROM coded c JOIN replicas r ON r.segment = c.segment WHERE r.suspect = 0 GROUP BY r.segment, r.shard))"
    " WHERE place = min(k, there) UNION ALL SELECT 0, 0, NULL FROM coded"
    " WHERE segment NOT IN (SELECT segment FROM replicas WHERE suspect = 0)"
)


def _code(ledger: Ledger, segment: int) -> str | None:
    coded = ledger.coded(segment)
    return None if coded is None else str(coded.code)


def _addresses(db: Database) -> dict[int, str]:
    return dict(db.rows("SELECT id, address FROM depots"))


def _replica(replica: Replica, addresses: dict[int, str]) -> dict[str, Any]:
    return {
        "depot": addresses.get(replica.depot, ""),
        "allocation": replica.read.label,
        "lease_end": replica.lease_end,
        "suspect": replica.suspect,
        "shard": replica.shard,
    }
