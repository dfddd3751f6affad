"""Keeping a share's promise: its leases last until it expires, and nothing of it lasts longer."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.sharing.contents import Run, depots_of
from ibpfs.exnode_store.sharing.ending import Ender
from ibpfs.exnode_store.sharing.lease_renewal import keep_lease, keep_replica
from ibpfs.exnode_store.sharing.lease_rows import SLACK
from ibpfs.exnode_store.sharing.links import MAX_PLACES, share_name
from ibpfs.exnode_store.sharing.making import copy_of, store_on
from ibpfs.exnode_store.sharing.notation import to_json
from ibpfs.exnode_store.sharing.placing import Placing
from ibpfs.exnode_store.sharing.record_log import Public, make_entry, public_bytes
from ibpfs.exnode_store.sharing.share_state import ACTIVE, RECORD, STALE, Alias, Owned, Share
from ibpfs.exnode_store.sharing.shares import Shares

#: Room beside the first entry of a record, for those that extending it appends.
_SPARE: Final = 4096


class Keeper:
    """One per open volume."""

    def __init__(self, shares: Shares, ledger: Ledger, depots: DepotSet, placing: Placing) -> None:
        self._shares = shares
        self._ledger = ledger
        self._depots = depots
        self._placing = placing
        ender = Ender(shares, placing)
        self.end, self._drop_stale = ender.end, ender.drop_stale

    # Records

    async def write_record(self, share: Share, copies: int) -> None:
        """Store the first entry on up to so many depots. Raises DepotError, DepotUnreachable."""
        depots = self._placing.places()
        entry = self._entry(share, 1, self._placing.addresses()[:MAX_PLACES])
        share.owned += await store_on(self._placing, depots, RECORD, [entry], copies, 2 * len(entry) + _SPARE)
        share.number, share.log_length = 1, len(entry)

    def _entry(self, share: Share, number: int, places: Sequence[str]) -> bytes:
        content = share.content
        depots = dict.fromkeys([*map(Address.parse, places), *depots_of(content.runs)])
        share.pins = self._pins(share, depots)
        public = Public(
            public_bytes(share.signer), content.created, content.expires, tuple(depots), share.stretching, share.pins
        )
        return make_entry(share.signer, number, public, to_json(content), share.key, os.urandom(12))

    def _pins(self, share: Share, depots: Iterable[Address]) -> dict[Address, bytes]:
        """By what these depots are known now; where that cannot be said, as the record had it."""
        return {one: pin for one in depots if (pin := self._placing.pin(one, share.pins.get(one)))}

    # Leases

    async def keep(self, share: Share) -> list[str]:
        """Lease all of it until it expires, or as long as depots do; return what some of them said."""
        troubles: list[str] = []
        for segment in self._shares.held(share_name(share.share)):
            await self._keep_segment(segment, share.expires, troubles)
        share.aliases = [await self._keep_alias(one, share.expires, troubles) for one in share.aliases]
        share.owned = [await self._keep_owned(one, share.expires, troubles) for one in share.owned]
        return troubles

    async def _keep_alias(self, alias: Alias, expires: int, troubles: list[str]) -> Alias:
        if alias.lease_end is None or alias.lease_end >= expires - SLACK:
            return alias
        try:
            return replace(alias, lease_end=await keep_lease(self._ledger, self._placing, alias.lease, expires))
        except (DepotError, DepotUnreachable) as error:
            troubles.append(f"{alias.depot}: {error}")
            return alias

    async def _keep_owned(self, owned: Owned, expires: int, troubles: list[str]) -> Owned:
        if owned.kind == STALE:
            return owned
        if owned.lease_end is None or abs(owned.lease_end - expires) <= SLACK:
            return owned  # also a first lease that is longer than the share's is cut
        try:
            return replace(owned, lease_end=await keep_lease(self._ledger, self._placing, owned.lease, expires))
        except (DepotError, DepotUnreachable) as error:
            troubles.append(f"{owned.depot}: {error}")
            return owned

    async def _keep_segment(self, segment: int, expires: int, troubles: list[str]) -> None:
        for replica in self._ledger.replicas(segment):
            try:
                await keep_replica(self._ledger, self._placing, replica, expires)
            except (DepotError, DepotUnreachable) as error:
                troubles.append(str(error))

    def hold_until(self, share: Share) -> float:
        """Until when all of it is to be had if nobody renews anything."""
        ends = {(one.depot, one.read): self._alias_end(one, share.expires) for one in share.aliases}
        ends |= {(one.depot, one.read): _end(one.lease_end, share.expires) for one in share.owned}
        records = [_end(one.lease_end, share.expires) for one in share.owned if one.kind == RECORD]
        runs = [max(ends.get((str(one.depot), one.read), 0.0) for one in run.copies) for run in share.content.runs]
        return min([float(share.expires), max(records, default=0.0), *runs])

    def _alias_end(self, alias: Alias, expires: int) -> float:
        parent = next((one for one in self._ledger.replicas(alias.segment) if one.manage == alias.parent), None)
        if parent is None:
            return 0.0
        return min(_end(parent.lease_end, expires), _end(alias.lease_end, expires))

    # Extending

    async def extend(self, share: Share, expires: int) -> list[str]:
        """Until then: a new entry of the record, and leases. Returns what some depots said."""
        share.content = replace(share.content, expires=expires)
        name = share_name(share.share)
        self._shares.hold(name, self._shares.held(name), expires)
        troubles = await self.keep(share)
        await self._append_entry(share, troubles)
        return troubles

    async def _append_entry(self, share: Share, troubles: list[str]) -> None:
        """Write what the share is now. Raises DepotUnreachable when no depot takes it."""
        records = [one for one in share.owned if one.kind == RECORD]
        entry = self._entry(share, share.number + 1, [one.depot for one in records])
        told: dict[Owned, Owned] = {}
        for one in records:
            try:
                told[one] = await self._placing.append(one, entry, share.log_length)
            except (DepotError, DepotUnreachable) as error:
                troubles.append(f"{one.depot}: {error}")
                told[one] = replace(one, kind=STALE)
        if all(one.kind == STALE for one in told.values()):
            raise DepotUnreachable(f"no depot took the new record: {troubles[-1] if troubles else 'there is none'}")
        share.owned = [told.get(one, one) for one in share.owned]
        share.number += 1
        share.log_length += len(entry)
        self._shares.save(share)

    # Mending

    async def mend(self, share: Share) -> None:
        """Windows on replicas that took the place of others: the record names them from then on; new pins, too."""
        known = {(one.depot, one.read): one for one in share.aliases}
        runs = [await self._mended(run, known, share) for run in share.content.runs]
        if runs != list(share.content.runs):
            share.content = replace(share.content, runs=tuple(runs))
            await self._append_entry(share, [])
        elif self._is_pinned_anew(share):
            await self._append_entry(share, [])

    def _is_pinned_anew(self, share: Share) -> bool:
        """And the record can be written wherever it lies."""
        places = [one.depot for one in share.owned if one.kind == RECORD]
        depots = [*map(Address.parse, places), *depots_of(share.content.runs)]
        now = self._pins(share, depots)
        return any(share.pins.get(one) != pin for one, pin in now.items()) and all(map(self._placing.answers, places))

    async def _mended(self, run: Run, known: Mapping[tuple[str, Key], Alias], share: Share) -> Run:
        windows = [known[key] for one in run.copies if (key := (str(one.depot), one.read)) in known]
        if not windows:
            return run
        first = windows[0]
        replicas = self._ledger.replicas(first.segment)
        manages = {one.manage for one in replicas}
        alive = [one for one in windows if one.parent in manages]
        opened = [one.parent for one in alive]
        made = [await self._placing.alias(one, first.offset, first.length, share.expires) for one in replicas
                if one.manage not in opened]  # fmt: skip
        new = [one for one in made if one is not None]
        copies = [one for one in run.copies if (str(one.depot), one.read) not in known]
        copies = [*map(copy_of, [*alive, *new]), *copies]
        if not copies or (not new and len(alive) == len(windows)):
            return run
        share.aliases = [one for one in share.aliases if one not in windows or one in alive] + new
        return Run(run.length, tuple(copies))

    # All of them

    async def tend(self) -> None:
        """End what has expired, and open the windows that are lacking. Leases are the warmer's."""
        now = time.time()
        for name in self._shares.names():
            share = self._shares.get(name)
            self._placing.trust(share.pins)
            if share.stage != ACTIVE or share.expires <= now:
                await self.end(share)
                continue
            await self._drop_stale(share)
            await self.mend(share)


def _end(lease_end: float | None, expires: int) -> float:
    return float(expires) if lease_end is None or lease_end >= expires - SLACK else lease_end
