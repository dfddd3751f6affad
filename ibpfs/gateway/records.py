"""Records of shares as a gateway sees them: entries to hand out, and which depots a share's bytes lie on."""

import time
from collections import OrderedDict
from functools import partial

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, NoRoom
from ibpfs.exnode_store.sharing.links import Locator
from ibpfs.exnode_store.sharing.reading import ShareGone, read_log
from ibpfs.exnode_store.sharing.record_log import BadRecord, LogEntry
from ibpfs.gateway.relay import NotPermitted, Relay

#: Seconds that what a record says is believed: a revoked share's bytes are gone from the depots at once, anyway.
_BELIEVED = 30.0
_MOST_KNOWN = 1000
#: Records may have 64 MiB: this many are in memory at once.
_AT_ONCE = 4


class NoShare(Exception):
    """`reason`: one word for the page: revoked, expired, unknown, unreachable, refused, damaged."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Records:
    """Reads records through the relay; remembers for a while which depots each names."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._slots = trio.Semaphore(_AT_ONCE)
        self._known: OrderedDict[str, tuple[float, frozenset[Address]]] = OrderedDict()

    async def depots(self, locator: Locator) -> frozenset[Address]:
        """The depots that the share's signed public part names. Raises NoShare."""
        until, found = self._known.get(locator.render(), (0.0, frozenset()))
        if until > trio.current_time():
            return found
        return frozenset((await self.newest(locator)).public.depots)

    async def newest(self, locator: Locator) -> LogEntry:
        """The last valid entry, from the first place that has one. Raises NoShare."""
        reasons: list[str] = []
        async with self._slots:
            for place in locator.places:
                try:
                    entry = await read_log(partial(self._relay.load, place.address, place.read), locator.share)
                except ShareGone:
                    raise NoShare("revoked") from None
                except (CapabilityNotFound, NoRoom):  # ended; or it holds nothing
                    reasons.append("gone")
                except NotPermitted:
                    reasons.append("refused")
                except BadRecord:
                    reasons.append("damaged")
                except (DepotError, DepotUnreachable):
                    reasons.append("unreachable")
                else:
                    return self._noted(locator, entry)
        raise NoShare(_reason(reasons, locator.expires < time.time()))

    def _noted(self, locator: Locator, entry: LogEntry) -> LogEntry:
        self._known[locator.render()] = trio.current_time() + _BELIEVED, frozenset(entry.public.depots)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return entry


def _reason(reasons: list[str], is_past: bool) -> str:
    """One word for all places: what is worth trying again comes first, as the others may be no more than old."""
    for reason in ("unreachable", "damaged", "refused"):
        if reason in reasons:
            return reason
    return "expired" if is_past else "unknown"
