"""How a run works: many jobs side by side, within the caller's deadline; the depots it talks to."""

from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import asynccontextmanager, contextmanager, suppress
from types import MappingProxyType
from typing import Final, TypeVar

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability, CapabilitySet
from ibpfs.depot.client import DepotClient
from ibpfs.depot.tls import NoTls, WrongCertificate
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, LeaseTooLong, Reliability
from ibpfs.errors import DeadlineExceeded, IbpfsError

Job = TypeVar("Job")
Advance = Callable[[int, int, str], None]

#: A depot that sends and takes nothing for so long is given up, for this piece.
SILENCE: Final = 20.0
#: What a run that failed may still take to give its allocations back; what is left ends with its lease.
_CLEANUP: Final = 10.0
_NO_PINS: Final[Mapping[Address, bytes]] = MappingProxyType({})


class Depots:
    """The clients of one run; a depot that was silent once is tried last from then on.

    `pins`: certificates by which depots are known; `strangers`: depots that showed another one, or none.
    """

    def __init__(
        self, hints: Sequence[Address] = (), connections: int = 8, pins: Mapping[Address, bytes] = _NO_PINS
    ) -> None:
        self._pins = pins
        self.strangers: dict[Address, None] = {}
        self._hints = {address: number for number, address in enumerate(hints)}
        self._connections = connections
        self._clients: dict[Address, DepotClient] = {}
        self._silent: dict[Address, int] = {}
        self._loads: Tally[Address] = Tally()

    def client(self, address: Address) -> DepotClient:
        if address not in self._clients:
            self._clients[address] = DepotClient(
                address, fingerprint=self._pins.get(address), max_connections=self._connections, silence_limit=SILENCE
            )
        return self._clients[address]

    def of(self, capability: Capability) -> DepotClient:
        return self.client(Address.of(capability))

    def note(self, address: Address, error: IbpfsError) -> None:
        if isinstance(error, WrongCertificate) or (isinstance(error, NoTls) and address in self._pins):
            self.strangers[address] = None
        if isinstance(error, DepotUnreachable):
            self._silent[address] = self._silent.get(address, 0) + 1

    @contextmanager
    def loading(self, address: Address) -> Iterator[None]:
        """Counts one load for `rank`: so the depot that is done sooner gets more to do."""
        self._loads[address] += 1
        try:
            yield
        finally:
            self._loads[address] -= 1

    def rank(self, address: Address) -> tuple[int, int, int]:
        """Less is better: silent ones last, else as hinted, else whoever has the least to do."""
        return self._silent.get(address, 0), self._hints.get(address, len(self._hints)), self._loads[address]

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def allocate(
        self, address: Address, size: int, seconds: int, reliability: Reliability
    ) -> tuple[CapabilitySet, int]:
        """Lease for `seconds`, or as long as the depot does; return for how long, too."""
        client = self.client(address)
        try:
            return await client.allocate(size, seconds, reliability=reliability), seconds
        except LeaseTooLong:
            longest = await self.longest_lease(address)
            if not longest or longest >= seconds:
                raise
            return await client.allocate(size, longest, reliability=reliability), longest

    async def longest_lease(self, address: Address) -> int | None:
        return (await self.client(address).status()).max_lease

    async def release(self, manages: Iterable[Capability]) -> list[Capability]:
        """Give allocations back, also after a cancellation; return those that could not be."""
        left = list(dict.fromkeys(manages))

        async def one(manage: Capability) -> None:
            with suppress(DepotError, DepotUnreachable):
                with suppress(CapabilityNotFound):
                    await self.of(manage).decr(manage.wire_key)
                left.remove(manage)

        with trio.move_on_after(_CLEANUP, shield=True):
            await in_parallel(list(left), one, self._connections)
        return left


@asynccontextmanager
async def connected(
    hints: Sequence[Address] = (), connections: int = 8, pins: Mapping[Address, bytes] = _NO_PINS
) -> AsyncIterator[Depots]:
    depots = Depots(hints, connections, pins)
    try:
        yield depots
    finally:
        with trio.CancelScope(shield=True):
            await depots.aclose()


async def in_parallel(jobs: Iterable[Job], work: Callable[[Job], Awaitable[None]], streams: int) -> None:
    """Run `work` on every job, `streams` at a time, in order of their start; the first error ends all."""
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            await work(job)

    async with trio.open_nursery() as nursery:
        for _ in range(min(streams, len(jobs)) if isinstance(jobs, Sized) else streams):
            nursery.start_soon(worker)


async def within(seconds: float | None, work: Awaitable[Job], what: str) -> Job:
    """Return what `work` returns; DeadlineExceeded when it takes longer."""
    with trio.move_on_after(float("inf") if seconds is None else seconds):
        return await work
    raise DeadlineExceeded(f"{what}: not done within {seconds:g} s")


async def with_grace(work: Awaitable[Job], seconds: float = 2.0) -> Job:
    """Return what `work` returns; after a cancellation it has `seconds` to end by itself."""
    found: list[Job] = []
    trouble: IbpfsError | None = None

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            scope.deadline = trio.current_time() + seconds

    async with trio.open_nursery() as nursery:
        with trio.CancelScope(shield=True) as scope:
            nursery.start_soon(watch)
            try:
                found.append(await work)
            except IbpfsError as error:
                trouble = error
        nursery.cancel_scope.cancel()
    if trouble is not None:
        raise trouble
    if not found:
        await trio.lowlevel.checkpoint()
        raise DeadlineExceeded("cancelled")
    return found[0]


class Counter:
    """How many bytes are done, told as they are."""

    def __init__(self, total: int, advance: Advance, done: int = 0) -> None:
        self._total, self._advance, self._done = total, advance, done
        advance(done, total, "")

    def add(self, count: int) -> None:
        self._done += count
        self._advance(self._done, self._total, "")


def nowhere(_: int, __: int, ___: str) -> None:
    """Progress that nobody looks at."""
