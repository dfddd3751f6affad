"""Ending a share: all that it has on depots is given back. What was not is named, kept, and asked for again."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.sharing.lease_rows import REMEMBERED
from ibpfs.exnode_store.sharing.links import share_name
from ibpfs.exnode_store.sharing.placing import Placing
from ibpfs.exnode_store.sharing.share_state import COPY, ENDING, RECORD, Alias, Owned, Share
from ibpfs.exnode_store.sharing.shares import Shares
from ibpfs.quantities import format_size

_log = logging.getLogger(__name__)

#: Beside RECORD and COPY.
WINDOW: Final = "window"


@dataclass
class Ended:
    """What depots said is gone, and what is left, with why. `silent`: depots that are not waited for again."""

    done: list[Alias | Owned] = field(default_factory=list)
    left: list[tuple[Alias | Owned, str]] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)


class Ender:
    """One per open volume."""

    def __init__(self, shares: Shares, placing: Placing) -> None:
        self._shares = shares
        self._placing = placing
        self._silent: dict[str, set[str]] = {}  # of a share, depots that did not answer when it was ended last

    def has_more(self) -> bool:
        """Whether a depot that was silent, and has something of what was ended, answers again."""
        return any(self._placing.answers(one) for some in self._silent.values() for one in some)

    async def end(self, share: Share) -> Ended:
        """Give everything back; what is left is known, and asked for again, until long after it should have ended."""
        share.stage = ENDING
        self._shares.save(share)
        if share.expires <= time.time():
            self._shares.let_go(share_name(share.share))
        ended, name = Ended(), share_name(share.share)
        # The record first: whoever has the link learns nothing new from then on.
        for owned in sorted(share.owned, key=lambda one: one.kind == COPY):
            if await self._gone(owned, ended):
                share.owned.remove(owned)
        for alias in list(share.aliases):
            if await self._gone(alias, ended):
                share.aliases.remove(alias)
        if ended.left and time.time() < share.expires + REMEMBERED:
            self._shares.save(share)
            self._silent[name] = set(ended.silent)
        else:
            self._shares.forget(name)
            self._silent.pop(name, None)
        return ended

    async def give_back(self, share: Share, some: Iterable[Owned]) -> None:
        """Some of what a share that goes on has."""
        ended = Ended()
        for owned in some:
            if await self._gone(owned, ended):
                share.owned.remove(owned)
        if ended.done:
            self._shares.save(share)

    async def _gone(self, one: Alias | Owned, ended: Ended) -> bool:
        """Whether its depot ended it, or did not know it any more."""
        said = ended.silent.get(one.depot)
        if said is None:
            try:
                await self._placing.end(one.lease)
            except DepotUnreachable as error:
                said = ended.silent[one.depot] = str(error)
            except DepotError as error:
                said = str(error)
            else:
                ended.done.append(one)
                return True
        _log.info("depot %s allocation %s: what a link has there is not ended: %s", one.depot, one.read.label, said)
        ended.left.append((one, said))
        return False


# What is told of it


def rows_of(things: Iterable[tuple[Alias | Owned, str]], expires: int) -> list[dict[str, Any]]:
    """By depot, kind and reason; `until`: when the last of it ends by itself."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one, why in things:
        end = min(one.lease_end or float(expires), float(expires))  # a 0 says nothing
        row = rows.setdefault(
            (one.depot, kind_of(one), why),
            {"depot": one.depot, "what": kind_of(one), "count": 0, "bytes": 0, "until": 0, "why": why},
        )
        row["count"] += 1
        row["bytes"] += one.length if isinstance(one, Alias) else one.size
        row["until"] = max(row["until"], int(end))
    return list(rows.values())


def kind_of(one: Alias | Owned) -> str:
    return WINDOW if isinstance(one, Alias) else COPY if one.kind == COPY else RECORD


def intended(share: Share) -> str:
    """One sentence: what revoking a share asks of which depots; of one that was revoked, of those that are left."""
    things: list[Alias | Owned] = [*share.aliases, *share.owned]
    rows = rows_of([(one, "") for one in things], share.expires)
    parts = [text.format(size=format_size(sum(row["bytes"] for row in rows if row["what"] == what)),
                         depots=", ".join(row["depot"] for row in rows if row["what"] == what))
             for what, text in _INTENDED.items() if any(row["what"] == what for row in rows)]  # fmt: skip
    what = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "has nothing to end"
    if share.stage == ENDING:
        how = "was revoked, and is" if time.time() < share.expires else "has expired, and has"
        return f"it {how} not yet everywhere: a mount {what}, as soon as it can"
    return f"revoking it {what}; who has fetched it keeps what was fetched"


_INTENDED: Final = {
    WINDOW: "closes windows on the volume's allocations at {depots}",
    COPY: "deletes private copies of {size} at {depots}",
    RECORD: "deletes its record at {depots}",
}
