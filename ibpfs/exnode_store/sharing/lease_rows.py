"""Table share_leases: the leases of links that are in force, in the clear for whoever renews them without keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger_rows import pack_key, unpack_key
from ibpfs.exnode_store.sharing.share_state import ENDING, STALE, Alias, Lease, Owned, Share

#: Seconds by which a lease, which is asked for in whole ones, may end before its link and yet be long enough.
SLACK: Final = 2.0
#: Seconds after the end of a link for which its depots are asked to end what it has there.
REMEMBERED: Final = 30 * 86400.0
#: The end of a lease of what its depot does not know any more.
GONE: Final = 0.0
#: Rows of one transaction.
_ROWS: Final = 500
#: As the index share_leases_due has it.
_SHORT: Final = "lease_end < expires - 2"
_KEY: Final = "share = ? AND depot = ? AND manage_key = ?"


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A row; times in Unix seconds."""

    share: str
    lease: Lease
    expires: float
    end: float
    told_at: float


class LeaseRows:
    """Of one store."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def note(self, share: str, state: Share, told_at: float) -> None:
        """From now on the rows of a share are what its state says: none of one that is to end."""
        self._delete([(share, *key) for key in self.add(share, state, told_at)])

    def add(self, share: str, state: Share, told_at: float) -> list[tuple[str, str]]:
        """There are rows of all that the state of a share says; return the depots and keys of others."""
        rows = self._db.rows(
            "SELECT depot, manage_key, lease_end, expires, length FROM share_leases WHERE share = ?", (share,)
        )
        there = {row[:2]: row[2:] for row in rows}
        wanted = {(one.depot, pack_key(one.manage)): (one, end) for one, end in _leases(state)}
        expires = float(state.expires)
        changed = [
            (share, one.depot, manage, one.segment, one.parent and pack_key(one.parent), one.start, one.length,
             expires, end, told_at)
            for (depot, manage), (one, end) in wanted.items()
            if there.get((depot, manage)) != (end, expires, one.length)
        ]  # fmt: skip
        for at in range(0, len(changed), _ROWS):
            with self._db.transaction() as db:
                db.executemany(
                    "INSERT INTO share_leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                    " told_at = CASE WHEN lease_end = excluded.lease_end THEN told_at ELSE excluded.told_at END,"
                    " lease_end = excluded.lease_end, expires = excluded.expires, length = excluded.length,"
                    " seq = excluded.seq",
                    [(*row, db.seq) for row in changed[at : at + _ROWS]],
                )
        return [key for key in there if key not in wanted]

    def note_one(self, share: str, lease: Lease, end: float, expires: float, now: float) -> None:
        """What was just made for a share, or has a longer lease now; its state may not name it yet."""
        parent = lease.parent and pack_key(lease.parent)
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO share_leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " lease_end = excluded.lease_end, told_at = excluded.told_at, seq = excluded.seq",
                (share, lease.depot, pack_key(lease.manage), lease.segment, parent, lease.start, lease.length,
                 expires, end, now, db.seq),
            )  # fmt: skip

    def forget(self, share: str) -> None:
        rows = self._db.rows("SELECT share, depot, manage_key FROM share_leases WHERE share = ?", (share,))
        self._delete(rows)

    def strays(self) -> list[str]:
        """Shares that are none any more."""
        rows = self._db.rows("SELECT DISTINCT share FROM share_leases WHERE share NOT IN (SELECT id FROM shares)")
        return [share for (share,) in rows]

    def _delete(self, keys: Sequence[tuple[str, ...]]) -> None:
        for at in range(0, len(keys), _ROWS):
            with self._db.transaction() as db:
                db.executemany(f"DELETE FROM share_leases WHERE {_KEY}", list(keys[at : at + _ROWS]))

    def of(self, share: str) -> list[LeaseRow]:
        return self._rows("share = ?", (share,))

    def due(self, now: float, *, every: bool = False) -> list[LeaseRow]:
        """Those that have half run (or `every` one), of links that hold for longer."""
        half_run = "" if every else " AND told_at + lease_end <= ?"
        which = f"{_SHORT} AND lease_end > {GONE} AND expires > ?{half_run}"
        return self._rows(which, (now,) if every else (now, 2 * now))

    def expired(self, now: float) -> list[LeaseRow]:
        """Those of links that have ended; not for ever: a depot that does not answer for so long is gone."""
        return self._rows("expires <= ? AND expires > ?", (now, now - REMEMBERED))

    def _rows(self, which: str, parameters: tuple[float | str, ...]) -> list[LeaseRow]:
        rows = self._db.rows(
            "SELECT share, depot, manage_key, length, segment, parent_key, start, expires, lease_end, told_at"
            f" FROM share_leases WHERE {which}", parameters
        )  # fmt: skip
        return [_row(*row) for row in rows]

    def again(self, row: LeaseRow) -> LeaseRow | None:
        """As it is now; None: it is gone."""
        return next(iter(self._rows(_KEY, _key(row))), None)

    def renewed(self, row: LeaseRow, end: float, now: float) -> None:
        with self._db.transaction() as db:
            db.execute(
                f"UPDATE share_leases SET lease_end = ?, told_at = ?, seq = ? WHERE {_KEY}",
                (end, now, db.seq, *_key(row)),
            )

    def gone(self, row: LeaseRow) -> None:
        """Its depot does not know it any more; a mount makes up for it."""
        with self._db.transaction() as db:
            db.execute(f"UPDATE share_leases SET lease_end = ?, seq = ? WHERE {_KEY}", (GONE, db.seq, *_key(row)))

    def drop(self, row: LeaseRow) -> None:
        self._delete([_key(row)])


def _row(
    share: str, depot: str, manage: str, length: int, segment: int | None, parent: str | None, start: int,
    *times: float,
) -> LeaseRow:  # fmt: skip
    lease = Lease(depot, unpack_key(manage), length, segment, None if parent is None else unpack_key(parent), start)
    return LeaseRow(share, lease, *times)


def _key(row: LeaseRow) -> tuple[str, str, str]:
    return row.share, row.lease.depot, pack_key(row.lease.manage)


def _leases(state: Share) -> Iterator[tuple[Lease, float]]:
    """With their ends. A copy of the record that missed an entry is not kept."""
    if state.stage != ENDING:
        kept: list[Alias | Owned] = [*state.aliases, *(one for one in state.owned if one.kind != STALE)]
        yield from ((one.lease, one.lease_end) for one in kept if one.lease_end is not None)
