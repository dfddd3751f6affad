"""What a link's record on depots says, for a store that may know less of it: it was put back from a backup.

The newest entry counts. So no link ends at the time that it was to end before it was extended, and none is extended by
an entry that readers take for an old one.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, NoRoom
from ibpfs.errors import WrongKey
from ibpfs.exnode_store.sharing.contents import BadContent, Copy, Run
from ibpfs.exnode_store.sharing.links import Place, share_name
from ibpfs.exnode_store.sharing.making import copy_of
from ibpfs.exnode_store.sharing.notation import from_json
from ibpfs.exnode_store.sharing.placing import Placing
from ibpfs.exnode_store.sharing.reading import ShareGone, read_log
from ibpfs.exnode_store.sharing.record_log import BadRecord, LogEntry
from ibpfs.exnode_store.sharing.share_state import RECORD, Owned, Share
from ibpfs.exnode_store.sharing.shares import Shares

_log = logging.getLogger(__name__)


class CatchingUp:
    """One per open volume."""

    def __init__(self, shares: Shares, placing: Placing) -> None:
        self._shares = shares
        self._placing = placing

    async def catch_up(self, share: Share) -> bool:
        """The share is what the newest entry says that is to be had; return whether no depot may have a newer one."""
        self._placing.trust(share.pins)
        entries: list[LogEntry] = []
        all_told = True
        for place in _places(share):
            try:
                entries.append(await read_log(partial(self._load, place), share.share))
            except (CapabilityNotFound, NoRoom, ShareGone, BadRecord) as error:
                _log.debug("depot %s: has no record of link %s: %s", place.address, share_name(share.share), error)
            except (DepotError, DepotUnreachable):
                all_told = False
        newest = max(entries, key=lambda one: one.number, default=None)
        if newest is not None and newest.number > share.number:
            await self._take(share, newest)
        return all_told

    async def number_on(self, owned: Owned, share: Share) -> int:
        """Of the last entry of one copy. Raises DepotError, DepotUnreachable, BadRecord."""
        place = Place(Address.parse(owned.depot), owned.read)
        return (await read_log(partial(self._load, place), share.share)).number

    async def _load(self, place: Place, offset: int, length: int) -> bytearray:
        return await self._placing.call(str(place.address), lambda client: client.load(place.read, offset, length))

    async def _take(self, share: Share, entry: LogEntry) -> None:
        try:
            content = from_json(entry.open(share.key))
        except (WrongKey, BadContent) as error:
            _log.warning("link %s: its newest record is of no use: %s", share_name(share.share), error)
            return
        runs = _with_ours(content.runs, share)
        share.behind = runs != content.runs
        share.content = replace(content, runs=runs)
        share.number, share.pins, share.over_since = entry.number, dict(entry.public.pins), 0.0
        share.owned = [await self._sized(one, share) if one.kind == RECORD else one for one in share.owned]
        self._shares.hold_again(share)
        self._shares.save(share)
        _log.warning(
            "link %s: its record is newer than what this volume knew of it, as after a backup was put back; it holds"
            " until what the record says", share_name(share.share),
        )  # fmt: skip

    async def _sized(self, owned: Owned, share: Share) -> Owned:
        """As its depot has it: it may have grown."""

        async def ask(client: DepotClient) -> tuple[int, int]:
            found = await client.probe(owned.manage)
            return found.size, found.max_size

        try:
            size, room = await self._placing.call(owned.depot, ask)
        except (DepotError, DepotUnreachable):
            return owned
        share.log_length = max(share.log_length, size)
        return replace(owned, size=room)


def _places(share: Share) -> Iterator[Place]:
    """Of the copies of its record: those that its link names, as far as they are known."""
    if share.link is not None:
        yield from share.link.locator.places
    else:
        yield from (Place(Address.parse(one.depot), one.read) for one in share.owned if one.kind == RECORD)


def _with_ours(runs: Sequence[Run], share: Share) -> tuple[Run, ...]:
    """Where the record names only windows that were opened since, those that are known here, too: so they are looked
    after, and made up for."""
    ours = {*map(copy_of, share.aliases), *map(copy_of, share.owned)}

    def known(run: Run) -> list[Copy]:
        return [copy for copy in run.copies if copy in ours]

    if len(runs) != len(share.content.runs):
        return tuple(runs)
    return tuple(
        run if known(run) else replace(run, copies=(*run.copies, *known(old)))
        for run, old in zip(runs, share.content.runs, strict=True)
    )


