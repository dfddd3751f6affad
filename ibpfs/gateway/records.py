"""Records of shares as a gateway sees them: entries to hand out, and which depots a share's bytes lie on."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, NoRoom
from ibpfs.exnode_store.sharing.links import Locator, Place
from ibpfs.exnode_store.sharing.reading import ShareGone, read_log
from ibpfs.exnode_store.sharing.record_log import BadRecord, LogEntry
from ibpfs.gateway.limits import Limits
from ibpfs.gateway.relay import LIMIT, NotPermitted, Relay, TooBusy

#: Seconds that what a record says is believed: a revoked share's bytes are gone from the depots at once, anyway.
_BELIEVED = 30.0
_MOST_KNOWN = 1000
#: Records that are read at once: each at a depot that may be slow on purpose. No less than all loads, which are shared
#: out among those who ask: else who has some addresses has all of these.
_AT_ONCE = Limits().loads
#: Seconds after which the next place is asked, too.
_SLOW = 2.0
_TROUBLES = (ShareGone, NotPermitted, BadRecord, TooBusy, DepotError, DepotUnreachable)
#: Records may have 64 MiB: this many bytes of them are read at once.
_BYTES_AT_ONCE = 256 * 1024 * 1024


class NoShare(Exception):
    """`reason`: one word for the page: revoked, expired, unknown, unreachable, refused, damaged, busy."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class _Reading:
    """One record on its way, and all who wait for it."""

    done: trio.Event = field(default_factory=trio.Event)
    found: LogEntry | NoShare = field(default_factory=lambda: NoShare("unreachable"))


class Records:
    """Reads records through the relay; remembers for a while which depots each names."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._bytes = 0
        self._readings: dict[str, _Reading] = {}
        self._known: OrderedDict[str, tuple[float, Mapping[Address, bytes | None]]] = OrderedDict()

    async def depots(self, locator: Locator) -> Mapping[Address, bytes | None]:
        """The depots that the share's signed public part names, with their pins. Raises NoShare."""
        until, found = self._known.get(locator.render(), (0.0, {}))
        if until > trio.current_time():
            return found
        return _depots(await self.newest(locator))

    async def newest(self, locator: Locator) -> LogEntry:
        """The last valid entry, from whichever place gives one first; all who ask meanwhile get it. Raises NoShare."""
        name = locator.render()
        reading = self._readings.get(name)
        if reading is not None:
            await reading.done.wait()
        elif len(self._readings) >= _AT_ONCE:
            raise NoShare("busy")
        else:
            reading = self._readings[name] = _Reading()
            try:
                reading.found = await self._read(locator)
            except NoShare as error:
                reading.found = error
            finally:
                del self._readings[name]
                reading.done.set()
        if isinstance(reading.found, NoShare):
            raise NoShare(reading.found.reason)
        return reading.found

    async def _read(self, locator: Locator) -> LogEntry:
        found: list[LogEntry] = []
        expired: list[LogEntry] = []
        reasons: list[str] = []

        async def one(place: Place, before: trio.Event, failed: trio.Event) -> None:
            with trio.move_on_after(_SLOW):
                await before.wait()
            try:
                entry = await self._copy(place, locator.share)
                # Others may know that it was extended; and depots keep some things longer than was agreed.
                (found if entry.public.expires > time.time() else expired).append(entry)
            except _TROUBLES as error:
                reasons.append(_word(error))
            failed.set()
            if found or "revoked" in reasons:
                nursery.cancel_scope.cancel()

        with trio.move_on_after(LIMIT) as scope:
            async with trio.open_nursery() as nursery:
                before = trio.Event()
                before.set()
                for place in locator.places:
                    failed = trio.Event()
                    nursery.start_soon(one, place, before, failed)
                    before = failed
        if found:
            return self._noted(locator, found[0])
        if scope.cancelled_caught:
            reasons.append("unreachable")
        raise NoShare(_reason(reasons, bool(expired) or locator.expires < time.time()))

    async def _copy(self, place: Place, share: bytes) -> LogEntry:
        """What lies in one place. Its bytes are counted as they are asked for: a depot's word for a length is none."""
        load, taken = partial(self._relay.load, place.address, place.read), 0

        async def counted(offset: int, length: int) -> bytearray:
            nonlocal taken
            if self._bytes + length > _BYTES_AT_ONCE:
                raise TooBusy("too many large records at once")
            self._bytes += length
            taken += length
            return await load(offset, length)

        try:
            return await read_log(counted, share)
        finally:
            self._bytes -= taken

    def _noted(self, locator: Locator, entry: LogEntry) -> LogEntry:
        self._known[locator.render()] = trio.current_time() + _BELIEVED, _depots(entry)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return entry


def _depots(entry: LogEntry) -> dict[Address, bytes | None]:
    return {one: entry.public.pins.get(one) for one in entry.public.depots}


def _word(error: Exception) -> str:
    match error:
        case ShareGone():
            return "revoked"
        case CapabilityNotFound() | NoRoom():  # ended; or it holds nothing
            return "gone"
        case NotPermitted():
            return "refused"
        case BadRecord():
            return "damaged"
        case TooBusy():
            return "busy"
    return "unreachable"


def _reason(reasons: list[str], is_past: bool) -> str:
    """One word for all places: what is worth trying again comes first, as the others may be no more than old."""
    for reason in ("revoked", "busy", "unreachable", "damaged", "refused"):
        if reason in reasons:
            return reason
    return "expired" if is_past else "unknown"
