"""What a share has on depots: windows on the volume's own replicas, private copies, copies of its record.

Every window and allocation begins with a short lease; it is noted in the store before it gets a longer one.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import trio

from ibpfs.depot.address import Address, BadAddress
from ibpfs.depot.capability import Capability, CapabilityKind, Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, LeaseTooLong, NotOffered
from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.depots import COMMAND_LIMIT, Depot, DepotSet
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.placement import FAILED
from ibpfs.exnode_store.sealing import Buffer
from ibpfs.exnode_store.sharing.lease_rows import SLACK
from ibpfs.exnode_store.sharing.share_state import COPY, Alias, Lease, Owned, Term

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds of the first lease, until the store knows of an allocation, and that is filled.
FIRST_LEASE: Final = 600
#: The part of a depot's longest lease that is as good as the whole: many windows may lie on one replica.
_NEARLY: Final = 0.9
#: A depot moves bytes to another one, at 1 MiB/s or better.
_LEAST_RATE: Final = 1024 * 1024



@dataclass
class _Asking:
    """`silent`: depots that did not answer, and what was said of them."""

    skips_stuttering: bool
    silent: dict[str, str] = field(default_factory=dict)


#: Of a task and those that it starts.
_asking: ContextVar[_Asking | None] = ContextVar("asking once", default=None)


@contextmanager
def asking_once(*, skips_stuttering: bool = False) -> Iterator[None]:
    """Of this task: a depot that did not answer is not asked again meanwhile, nor one of the volume's that is known to
    be away. Else each of a link's many calls would wait for it. `skips_stuttering`: nor one that failed just now."""
    token = _asking.set(_Asking(skips_stuttering))
    try:
        yield
    finally:
        _asking.reset(token)


class Placing:
    """Of one open volume. Depots that are none of the volume's get a client of their own."""

    def __init__(self, depots: DepotSet) -> None:
        self._depots = depots
        self._others: dict[str, DepotClient] = {}
        self._pins: dict[str, bytes] = {}  # of these
        self.without_aliases: set[str] = set()  # depots that refused one as unknown

    async def aclose(self) -> None:
        while self._others:
            await self._others.popitem()[1].aclose()

    # Which depots

    def places(self) -> list[Depot]:
        """The volume's depots that take what is made for links, best first; those of this machine alone last."""
        usable = [one for one in self._depots if one.role == "active" and one.answers and place_of(one)]
        return sorted(usable, key=lambda one: (one.embedded, one.is_slow, -one.free_bytes))

    def addresses(self) -> list[str]:
        """Of these, as others reach them."""
        return [place for depot in self.places() if (place := place_of(depot))]

    def trust(self, pins: Mapping[Address, bytes]) -> None:
        """Depots that are none of the volume's are known by these certificates, as a record has them, from now on."""
        for address, pin in pins.items():
            self._pins.setdefault(str(address), pin)

    def pin(self, address: Address, noted: bytes | None = None) -> bytes | None:
        """The certificate by which a depot is known: by the volume, else as `noted`, else as it showed in this run.

        None without TLS, or before it was spoken to.
        """
        known = self._depots.at(str(address)) if address.secure else None
        other = self._others.get(str(address))
        return (known.client.fingerprint if known else None) or noted or (other.fingerprint if other else None)

    def answers(self, address: str) -> bool:
        """Whether one of the volume's depots does so now."""
        known = self._depots.at(address)
        return known is not None and known.status is not None and known.answers

    def is_away(self, address: str) -> bool:
        """As far as is known: only the volume's depots are looked at all the time. Or it is not asked again."""
        known, asking = self._depots.at(address), _asking.get()
        if known is not None and not known.answers:
            return True
        return asking is not None and (known.address if known else address) in asking.silent

    async def call(
        self, address: str, command: Callable[[DepotClient], Awaitable[T]], limit: float = COMMAND_LIMIT
    ) -> T:
        """Raises DepotError, DepotUnreachable; see `asking_once`."""
        known = self._depots.at(address)
        asking, place = _asking.get(), known.address if known else address
        if asking is None:
            return await self._call(known, address, command, limit)
        silent = asking.silent
        stutters = known is not None and bool(known.trouble) and not known.answers  # not if late
        if known is not None and (known.state == FAILED or (stutters and asking.skips_stuttering)):
            silent.setdefault(place, known.trouble or f"{place}: does not answer")
        if place in silent:
            raise DepotUnreachable(silent[place])
        try:
            return await self._call(known, address, command, limit)
        except DepotUnreachable as error:
            silent[place] = str(error)
            raise

    async def _call(
        self, known: Depot | None, address: str, command: Callable[[DepotClient], Awaitable[T]], limit: float
    ) -> T:
        if known is not None:
            return await known.call(lambda: command(known.client), limit)
        if address not in self._others:
            self._others[address] = DepotClient(Address.parse(address), fingerprint=self._pins.get(address))
        try:
            with trio.fail_after(limit):
                return await command(self._others[address])
        except trio.TooSlowError:
            raise DepotUnreachable(f"{address}: no answer for {limit:.0f} s") from None

    async def lease(
        self, address: str, seconds: float, ask: Callable[[DepotClient, int], Awaitable[T]]
    ) -> tuple[T, float]:
        """Ask for so many seconds, or as many as the depot gives; return its answer and the lease's end."""
        wanted = max(1, int(seconds))
        try:
            return await self.call(address, lambda client: ask(client, wanted)), time.time() + wanted
        except LeaseTooLong:
            longest = (await self.call(address, lambda client: client.status())).max_lease
            if not longest or longest >= wanted:
                raise
        return await self.call(address, lambda client: ask(client, longest)), time.time() + longest

    async def extend(self, lease: Lease, until: float, *, never_shorter: bool = False) -> float:
        """Lease it until then, or as long as its depot does; return the lease's end. Raises DepotError,
        DepotUnreachable. `never_shorter`: what its depot has leased for longer stays so."""

        async def ask(client: DepotClient, seconds: int) -> float:
            if never_shorter and (left := await _seconds_left(client, lease)) >= seconds:
                return left
            if lease.parent is None:
                await client.change(lease.manage, duration=seconds)  # a record may have grown meanwhile
            else:
                await client.change_alias(lease.manage, lease.parent, lease.start, lease.length, seconds)
            return seconds

        seconds, end = await self.lease(lease.depot, until - time.time(), ask)
        return end if math.isinf(seconds) else max(end, time.time() + seconds)

    async def seconds_left(self, lease: Lease) -> float:
        """0: its depot does not know it; inf: it is permanent. Raises DepotError, DepotUnreachable."""
        return await self.call(lease.depot, lambda client: _seconds_left(client, lease))

    async def end(self, lease: Lease) -> None:
        """The window closes, the allocation goes, at once. Raises DepotError, DepotUnreachable."""

        async def ask(client: DepotClient) -> None:
            if lease.parent is None:
                await client.decr(lease.manage)
            else:
                await client.revoke_alias(lease.manage, lease.parent)

        try:
            await self.call(lease.depot, ask)
        except CapabilityNotFound:
            _log.debug("depot %s: what a link had there had ended already", lease.depot)

    # Windows

    async def alias(self, replica: Replica, offset: int, length: int, term: Term) -> Alias | None:
        """A window on a replica that closes when the share expires; None where its depot gives none now."""
        depot = self._depots.find(replica.depot)
        address = None if depot is None or not depot.answers else place_of(depot)
        if address is None or address in self.without_aliases:
            return None
        if not replica.is_managed or replica.imported or replica.suspect:
            return None
        # No longer than the replica: some depots refuse that. Both are leased for longer later.
        until = term.expires if replica.lease_end is None else min(term.expires, replica.lease_end)
        first = min(until - time.time(), FIRST_LEASE)
        try:
            caps, end = await self.lease(address, first, lambda client, seconds: client.alias(
                replica.manage, replica.base + offset, length, seconds))  # fmt: skip
        except NotOffered:
            self.without_aliases.add(address)
            return None
        except (DepotError, DepotUnreachable) as error:
            _log.info("depot %s allocation %s: no window on it: %s", address, replica.read.label, error)
            return None
        read, manage = caps.read.wire_key, caps.manage.wire_key
        at = replica.base + offset
        alias = Alias(replica.segment, address, read, manage, replica.manage, at, length, end)
        term.note(alias.lease, end)
        await term.sync()
        return replace(alias, lease_end=await self._lengthen(alias.lease, end, until, term))

    async def _lengthen(self, lease: Lease, end: float, until: float, term: Term) -> float:
        """What was noted, for as long as it is to last; return the lease's end. Who keeps it tries again."""
        if until - end <= SLACK:
            return end
        try:
            end = await self.extend(lease, until)
        except (DepotError, DepotUnreachable) as error:
            _log.info("depot %s allocation %s: has a short lease: %s", lease.depot, lease.manage.label, error)
        else:
            term.note(lease, end)
        return end

    # Allocations of the share's own

    async def store(self, address: str, kind: str, pieces: Sequence[Buffer], room: int, term: Term) -> Owned:
        """Store `pieces` in a new allocation with so much room. Raises DepotError, DepotUnreachable."""
        length = sum(map(len, pieces))

        async def fill(owned: Owned) -> None:
            await self.call(address, lambda client: client.store(owned.write, pieces), _patience(length))

        return await self._make(address, kind, max(room, length), term, fill)

    async def _make(
        self, address: str, kind: str, size: int, term: Term, fill: Callable[[Owned], Awaitable[None]]
    ) -> Owned:
        """An allocation that is noted first, then filled, then leased until the share expires."""
        caps, end = await self.lease(address, FIRST_LEASE, lambda client, seconds: client.allocate(size, seconds))
        owned = Owned(kind, address, caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key, size, end)
        term.note(owned.lease, end)
        await term.sync()
        try:
            await fill(owned)
        except (DepotError, DepotUnreachable):
            with suppress(DepotError, DepotUnreachable):  # it ends by itself, too
                await self.end(owned.lease)
            raise
        return replace(owned, lease_end=await self._lengthen(owned.lease, end, term.expires, term))

    async def append(self, owned: Owned, data: bytes, behind: int) -> Owned:
        """Append to an allocation that holds `behind` bytes, making it larger if it must be."""
        size = behind + len(data)
        if size > owned.size:
            await self.call(owned.depot, lambda client: client.change(owned.manage, max_size=2 * size))
            owned = replace(owned, size=2 * size)
        await self.call(owned.depot, lambda client: client.store(owned.write, [data]), _patience(len(data)))
        return owned

    async def copy(self, source: str, read: Key, base: int, length: int, address: str, term: Term) -> Owned:
        """Have depot `source` copy bytes to a new allocation on another. Raises DepotError, DepotUnreachable."""
        limit = _patience(length)

        async def fill(owned: Owned) -> None:
            target = capability(address, owned.write, CapabilityKind.WRITE)
            sent = await self.call(
                source, lambda client: client.copy(read, target, base, length, seconds=int(limit)), limit
            )
            if sent != length:
                raise DepotUnreachable(f"{source} copied {sent} of {length} bytes")

        return await self._make(address, COPY, length, term, fill)

    async def copy_replica(
        self, replicas: Sequence[Replica], offset: int, length: int, target: Depot, term: Term
    ) -> Owned | None:
        """Have a depot copy bytes of a segment to a new allocation, inside itself where it can; None: none does."""
        address = place_of(target)
        whole = [one for one in replicas if one.shard is None and not (one.imported or one.suspect)]
        for one in sorted(whole, key=lambda one: one.depot != target.id):
            depot = self._depots.find(one.depot)
            source = None if depot is None or not depot.answers else place_of(depot)
            if source is None or address is None:
                continue
            try:
                return await self.copy(source, one.read, one.base + offset, length, address, term)
            except (DepotError, DepotUnreachable) as error:
                _log.info("depot %s allocation %s: not copied to %s: %s", source, one.read.label, address, error)
        return None

    async def keep_replica(self, replica: Replica, expires: float) -> float | None:
        """Lease a replica until then, or about as long as its depot does; return until when it is leased now."""
        depot = self._depots.get(replica.depot)
        longest = depot.status.max_lease if depot.status else None
        enough = min(expires, time.time() + _NEARLY * longest) if longest else expires
        if replica.lease_end is None or replica.lease_end >= enough or not replica.is_managed:
            return replica.lease_end
        # The address is how `call` finds it, also the embedded one's, whose socket it then goes to.
        lease = Lease(depot.address, replica.manage, 0)
        return max(await self.extend(lease, expires, never_shorter=True), replica.lease_end)


async def _seconds_left(client: DepotClient, lease: Lease) -> float:
    """0 when its depot does not know it: some renew what has ended; inf: it is permanent."""
    try:
        if lease.parent is not None:
            return (await client.probe_alias(lease.manage)).seconds_left
        left = (await client.probe(lease.manage)).seconds_left
    except CapabilityNotFound:
        return 0.0
    return math.inf if left is None else left


def place_of(depot: Depot) -> str | None:
    """Where others reach a depot; None: nowhere."""
    try:
        place = Address.parse(depot.address)
    except BadAddress:  # an embedded one that has not told its port yet
        return None
    if place.path is not None:
        return None
    return str(replace(place, secure=True) if depot.is_pinned else place)


def capability(address: str, key: Key, kind: CapabilityKind) -> Capability:
    place = Address.parse(address)
    return Capability(place.host, place.port, key.key, key.type_key, kind, place.secure)


def _patience(length: int) -> float:
    return COMMAND_LIMIT + length / _LEAST_RATE


async def side_by_side(work: Iterable[Callable[[], Awaitable[None]]], streams: int = 8) -> None:
    """Run all, so many at a time; the first error ends them, and is raised as it is."""
    waiting = iter(list(work))
    troubles: list[IbpfsError] = []

    async def worker() -> None:
        try:
            for one in waiting:
                await one()
        except IbpfsError as error:
            troubles.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(worker)
    if troubles:
        raise troubles[0]
