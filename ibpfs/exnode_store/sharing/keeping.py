"""Keeping a share's promise: its leases last until it expires, and nothing of it lasts longer."""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.wire import DepotBusy, DepotError, DepotUnreachable
from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.sharing.catching_up import CatchingUp
from ibpfs.exnode_store.sharing.contents import Content, Run, depots_of
from ibpfs.exnode_store.sharing.ending import Ender
from ibpfs.exnode_store.sharing.lease_renewal import keep_lease, keep_replica
from ibpfs.exnode_store.sharing.lease_rows import GONE, REMEMBERED, SLACK
from ibpfs.exnode_store.sharing.links import MAX_PLACES, share_name
from ibpfs.exnode_store.sharing.making import copy_of, store_on
from ibpfs.exnode_store.sharing.notation import to_json
from ibpfs.exnode_store.sharing.placing import Placing, asking_once
from ibpfs.exnode_store.sharing.record_log import BadRecord, Public, make_entry, public_bytes
from ibpfs.exnode_store.sharing.share_state import ACTIVE, RECORD, STALE, Alias, Owned, Share
from ibpfs.exnode_store.sharing.shares import Shares

_log = logging.getLogger(__name__)

#: Seconds that an expired link waits for depots which may know that it was extended: as long as its segments are held.
_OVER_FOR: Final = 86400.0
#: And from then on for so long in which one mount could ask them: it may begin, or wake, before its network does.
_ASKED_FOR: Final = 3600.0
#: Room beside the first entry of a record, for those that extending it appends.
_SPARE: Final = 4096


class Keeper:
    """One per open volume."""

    def __init__(self, shares: Shares, ledger: Ledger, placing: Placing) -> None:
        self._shares = shares
        self._ledger = ledger
        self._placing = placing
        ender = Ender(shares, placing)
        self.end, self._give_back, self.has_more_to_end = ender.end, ender.give_back, ender.has_more
        self._catching_up = CatchingUp(shares, placing)
        self.catch_up = self._catching_up.catch_up
        self.making: set[str] = set()  # shares that are not to be looked after yet
        self._said: dict[str, str] = {}  # of a share, why it could not be looked after
        self._asked_since: dict[str, float] = {}  # of one that has waited long enough, by the clock of this run

    # Records

    async def write_record(self, share: Share, copies: int) -> None:
        """Store the first entry on up to so many depots. Raises DepotError, DepotUnreachable."""
        depots = self._placing.places()
        entry = self._entry(share, share.content, 1, self._placing.addresses()[:MAX_PLACES])
        term = self._shares.term(share)
        share.owned += await store_on(self._placing, depots, RECORD, [entry], copies, 2 * len(entry) + _SPARE, term)
        share.number, share.log_length = 1, len(entry)

    def _entry(self, share: Share, content: Content, number: int, places: Sequence[str]) -> bytes:
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

    async def keep(self, share: Share, expires: int) -> list[str]:
        """Lease all of it until then, or as long as depots do; return what some of them said."""
        troubles: list[str] = []
        for segment in self._shares.held(share_name(share.share)):
            await self._keep_segment(segment, expires, troubles)
        dropped = share.dropped
        share.aliases = [one if one in dropped else await self._keep_alias(one, expires, troubles)
                         for one in share.aliases]  # fmt: skip
        share.owned = [await self._keep_owned(one, expires, troubles) for one in share.owned]
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
        name = share_name(share.share)
        self._shares.hold(name, self._shares.held(name), expires)
        troubles = await self.keep(share, expires)
        await self._append_entry(share, replace(share.content, expires=expires), troubles)
        return troubles

    async def _append_entry(self, share: Share, content: Content, troubles: list[str]) -> None:
        """Write this, and make it what the share is. Raises DepotUnreachable when no depot takes it."""
        records = [one for one in share.owned if one.kind == RECORD]
        entry = self._entry(share, content, share.number + 1, [one.depot for one in records])
        length = share.log_length
        # Noted first: whatever becomes of the answers, no number is used twice.
        share.number, share.log_length, share.behind = share.number + 1, length + len(entry), True
        self._shares.save(share)
        await self._shares.sync()
        told: dict[Owned, Owned] = {}
        refused = 0
        for one in records:
            try:
                told[one] = await self._placing.append(one, entry, length)
            except (DepotError, DepotUnreachable) as error:
                troubles.append(f"{one.depot}: {error}")
                told[one] = replace(one, kind=STALE)
                refused += isinstance(error, DepotError)
        if all(one.kind == STALE for one in told.values()):
            if refused == len(records):
                share.log_length = length
                self._shares.save(share)
            raise DepotUnreachable(f"no depot took the new record: {troubles[-1] if troubles else 'there is none'}")
        share.owned = [told.get(one, one) for one in share.owned]
        share.content, share.behind = content, False
        self._shares.save(share)
        await self._bring_up(share)

    async def _bring_up(self, share: Share) -> None:
        """Copies of the record that missed an entry tell what was: they get the newest one. Those that refuse it go."""
        useless: list[Owned] = []
        for one in [one for one in share.owned if one.kind == STALE and not self._placing.is_away(one.depot)]:
            try:
                if one.is_stray:
                    useless.append(one)
                elif not share.behind:  # else the newest entry is yet to be written
                    share.owned[share.owned.index(one)] = await self._with_newest(one, share)
                    self._shares.save(share)
            except (DepotUnreachable, DepotBusy) as error:
                _log.info("depot %s allocation %s: a link's record is old there: %s", one.depot, one.read.label, error)
            except (DepotError, BadRecord) as error:
                _log.info("depot %s allocation %s: no more of a link's record: %s", one.depot, one.read.label, error)
                useless.append(one)
        await self._give_back(share, useless)

    async def _with_newest(self, one: Owned, share: Share) -> Owned:
        if await self._catching_up.number_on(one, share) < share.number:
            places = [owned.depot for owned in share.owned if owned.kind == RECORD]
            pins = share.pins  # those that the other copies tell
            entry = self._entry(share, share.content, share.number, [*places, one.depot])
            share.pins = pins
            one = await self._placing.append(one, entry, share.log_length)
        return await self._keep_owned(replace(one, kind=RECORD), share.expires, [])

    # Mending

    async def mend(self, share: Share) -> None:
        """Windows on replicas that took the place of others: the record names them from then on; new pins, too."""
        known = {(one.depot, one.read): one for one in share.aliases}
        runs = list(share.content.runs)
        try:
            for number, run in enumerate(runs):
                runs[number] = await self._mended(run, known, share)
        finally:
            if runs != list(share.content.runs):
                share.content, share.behind = replace(share.content, runs=tuple(runs)), True
                self._shares.save(share)
        if self._is_behind(share) or self._is_pinned_anew(share):
            await self.catch_up(share)
            await self._append_entry(share, share.content, [])

    def _is_behind(self, share: Share) -> bool:
        """And a copy of the record may be to be had."""
        return share.behind and not all(self._placing.is_away(one.depot) for one in share.owned if one.kind == RECORD)

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
        alive = [one for one in windows if one.parent in manages and one.lease_end != GONE]
        opened = [one.parent for one in alive]
        term = self._shares.term(share)
        made = [await self._placing.alias(one, first.offset, first.length, term) for one in replicas
                if one.manage not in opened]  # fmt: skip
        new = [one for one in made if one is not None]
        copies = [one for one in run.copies if (str(one.depot), one.read) not in known]
        copies = [*map(copy_of, [*alive, *new]), *copies]
        if not copies or (not new and len(alive) == len(windows)):
            return run
        # Those that the record does not name any more are closed when their depots have said so.
        share.aliases = share.aliases + new
        return Run(run.length, tuple(copies))

    async def _close_dropped(self, share: Share) -> None:
        """Windows that the record does not name any more: their replicas may be there yet, on depots that were away."""
        closed: list[Alias] = []
        away: set[str] = set()
        for one in share.dropped:
            if one.depot in away or self._placing.is_away(one.depot):
                continue
            try:
                await self._placing.end(one.lease)
                closed.append(one)
            except DepotUnreachable:
                away.add(one.depot)
            except DepotError as error:
                _log.info("depot %s allocation %s: its window is not closed: %s", one.depot, one.read.label, error)
        if closed:
            share.aliases = [one for one in share.aliases if one not in closed]
            self._shares.save(share)

    # All of them

    async def tend(self) -> None:
        """End what has expired, and open the windows that are lacking. Leases are the warmer's."""
        with asking_once(skips_stuttering=True):
            await self._tend_all()

    async def _tend_all(self) -> None:
        for name in self._shares.names():
            if name in self.making:
                continue
            try:
                await self._tend(self._shares.get(name))
                self._said.pop(name, None)
            except IbpfsError as error:
                if self._said.get(name) != str(error):
                    _log.warning("link %s is not looked after: %s", name, error)
                self._said[name] = str(error)

    async def _tend(self, share: Share) -> None:
        self._placing.trust(share.pins)
        if share.stage == ACTIVE and share.expires <= time.time() and await self._may_last(share):
            return  # there is no hurry: by itself all of it has ended
        if share.stage != ACTIVE or share.expires <= time.time():
            await self.end(share)
            return
        await self._bring_up(share)
        await self.mend(share)
        if not share.behind:
            await self._close_dropped(share)

    async def _may_last(self, share: Share) -> bool:
        """Whether what has expired may have been extended, as depots know that do not answer; they get a day, and an
        hour in which they are asked."""
        name = share_name(share.share)
        if await self.catch_up(share):
            self._asked_since.pop(name, None)
            return False
        now = time.time()
        if not share.over_since:
            share.over_since = now
            self._shares.save(share)
        if now < min(share.over_since + _OVER_FOR, share.expires + REMEMBERED):
            self._asked_since.pop(name, None)
            return True
        return trio.current_time() - self._asked_since.setdefault(name, trio.current_time()) < _ASKED_FOR


def _end(lease_end: float | None, expires: int) -> float:
    return float(expires) if lease_end is None or lease_end >= expires - SLACK else lease_end
