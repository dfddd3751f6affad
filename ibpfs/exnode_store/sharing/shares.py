"""The shares of a volume as its store has them, and the segments that they hold. Knows no depot."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ibpfs.depot.capability import Key
from ibpfs.errors import UsageError, VolumeError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.pins import OVER
from ibpfs.exnode_store.sharing.contents import BadContent
from ibpfs.exnode_store.sharing.lease_rows import LeaseRow, LeaseRows
from ibpfs.exnode_store.sharing.links import share_name
from ibpfs.exnode_store.sharing.share_state import STALE, Alias, Lease, Owned, Share, Term

T = TypeVar("T", Alias, Owned)
_NONCE = 12
#: As table held_segments calls the reason.
_KIND = "share"


class Shares:
    """One per open volume."""

    def __init__(self, db: Database, ledger: Ledger, keys: VolumeKeys) -> None:
        self._db = db
        self._ledger = ledger
        self._keys = keys
        self._leases = LeaseRows(db)

    def names(self) -> list[str]:
        """The ids of all, those that expire first first."""
        return [name for (name,) in self._db.rows("SELECT id FROM shares ORDER BY expires, id")]

    def all(self) -> Iterator[Share]:
        for name in self.names():
            yield self.get(name)

    def get(self, name: str) -> Share:
        """UsageError when there is none of that id. It has what table share_leases says."""
        sealed = self._db.value("SELECT record FROM shares WHERE id = ?", (name,))
        if sealed is None:
            raise UsageError(f"{name[:40]}: no share of this volume (see ibpfs share list)")
        try:
            epoch = int.from_bytes(sealed[:4], "big")
            nonce, data = sealed[4 : 4 + _NONCE], sealed[4 + _NONCE :]
            share = Share.from_bytes(AESGCM(self._keys.shares_key(epoch)).decrypt(nonce, data, name.encode()))
        except (InvalidTag, BadContent, ValueError, KeyError):
            raise VolumeError(f"{name}: what is known of this share is damaged") from None
        self.complete(share)
        return share

    def complete(self, share: Share) -> None:
        """Its leases end as they were noted; what was noted and came no further is of no use, but to be ended."""
        rows = {(row.lease.depot, row.lease.manage): row for row in self._leases.of(share_name(share.share))}
        share.aliases = [_with_end(one, rows) for one in share.aliases]
        share.owned = [_with_end(one, rows) for one in share.owned]
        kept: list[Alias | Owned] = [*share.aliases, *share.owned]
        named = {(one.depot, one.manage) for one in kept}
        for row in (row for key, row in rows.items() if key not in named):
            stray = _stray(row.lease, row.end)
            share.aliases += [stray] if isinstance(stray, Alias) else []
            share.owned += [stray] if isinstance(stray, Owned) else []

    def term(self, share: Share) -> Term:
        """For what is made for it."""
        name, expires = share_name(share.share), share.expires

        def note(lease: Lease, end: float) -> None:
            self._leases.note_one(name, lease, end, float(expires), self._ledger.now())

        return Term(expires, note, self.sync)

    def save(self, share: Share) -> None:
        name, epoch, nonce = share_name(share.share), self._keys.epoch, os.urandom(_NONCE)
        data = AESGCM(self._keys.shares_key(epoch)).encrypt(nonce, share.to_bytes(), name.encode())
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO shares (id, record, expires, seq) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " record = excluded.record, expires = excluded.expires, seq = excluded.seq",
                (name, epoch.to_bytes(4, "big") + nonce + data, share.expires, db.seq),
            )
        self._leases.note(name, share, self._ledger.now())

    async def sync(self) -> None:
        """Return when all that was saved is on stable storage."""
        await self._db.sync()

    def hold(self, name: str, segments: Collection[int], until: int) -> None:
        """They stay where they are, and whole, until then."""
        self._ledger.hold_segments(_KIND, name, sorted(segments), float(until))

    def hold_again(self, share: Share) -> None:
        """What it has windows on, and what it held, for as long as it is known to last now."""
        name = share_name(share.share)
        here = {one.segment for one in share.aliases if self._ledger.replicas(one.segment)}
        self.hold(name, here | set(self.held(name)), share.expires)

    def held(self, name: str) -> list[int]:
        rows = self._db.rows(
            "SELECT DISTINCT segment FROM held_segments WHERE kind IN (?, ?) AND name = ?", (_KIND, OVER, name)
        )
        return [segment for (segment,) in rows]

    def let_go(self, name: str) -> None:
        """Nobody counts on its segments any more."""
        for kind in (_KIND, OVER):
            self._ledger.let_go_of(kind, name)

    def forget(self, name: str) -> None:
        """The share has ended, and nothing of it is left on depots that they would still end."""
        self.let_go(name)
        self._leases.forget(name)
        with self._db.transaction() as db:
            db.execute("DELETE FROM shares WHERE id = ?", (name,))

    def drop_strays(self) -> None:
        """Segments held for shares that were never written down, and leases of those that are gone."""
        known = set(self.names())
        for name, _, _ in self._ledger.held(_KIND) + self._ledger.held(OVER):
            if name not in known:
                self.let_go(name)
        for name in self._leases.strays():
            self._leases.forget(name)

    def note_leases(self) -> None:
        """Of shares of a program that did not keep table share_leases; when those were told is not known."""
        for name, share in zip(self.names(), self.all(), strict=True):
            self._leases.add(name, share, 0.0)


def _with_end(one: T, rows: Mapping[tuple[str, Key], LeaseRow]) -> T:
    row = rows.get((one.depot, one.manage))
    return one if row is None else replace(one, lease_end=row.end)


def _stray(lease: Lease, end: float) -> Alias | Owned:
    """Nobody knows a capability to read or write it, nor needs one: the record does not name it."""
    no = lease.manage
    if lease.segment is None or lease.parent is None:
        return Owned(STALE, lease.depot, no, no, lease.manage, lease.length, end)
    return Alias(lease.segment, lease.depot, no, lease.manage, lease.parent, lease.start, lease.length, end)
