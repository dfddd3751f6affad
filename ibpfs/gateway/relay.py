"""LOADs that a gateway makes for others: one command, which it builds itself, to depots that it may speak to."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.server.access import Ip, household, plain_ip
from ibpfs.depot.server.reach import Places
from ibpfs.depot.tls import WrongCertificate
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import IbpfsError, UsageError
from ibpfs.gateway.reach import permits

_log = logging.getLogger(__name__)

#: Longest stored slice, with its header and tags, and some.
MAX_LOAD = 8 * 1024 * 1024
LIMIT = 20.0
#: Loads at once from one machine: less than all, so that a slow one, or one that is slow on purpose, leaves some.
LOADS_PER_DEPOT = 32
_MOST_DEPOTS = 64


class NotPermitted(UsageError):
    """The gateway does not speak to this depot."""


class TooBusy(IbpfsError):
    """Not now."""


class Relay:
    """Connections to depots, kept for the next load."""

    def __init__(self, allowed: Sequence[Places], *, allowed_only: bool = False) -> None:
        self._allowed = allowed
        self._allowed_only = allowed_only
        self._clients: OrderedDict[tuple[Address, bytes | None], DepotClient] = OrderedDict()
        self._running: Counter[Ip | Address] = Counter()

    async def load(
        self, depot: Address, key: Key, offset: int, length: int, pin: bytes | None = None
    ) -> bytearray:
        """Exactly these bytes; `pin`: from the depot of this certificate alone.

        Raises NotPermitted, TooBusy, DepotError, DepotUnreachable.
        """
        try:
            with trio.fail_after(LIMIT):
                place = await self._resolve(depot)
                with self._counted(place):
                    return await (await self._client(place, pin)).load(key, offset, length)
        except WrongCertificate:
            _log.info("%s: refused: its certificate is another than a link names", depot)
            raise
        except trio.TooSlowError:
            raise DepotUnreachable(f"{depot}: no answer for {LIMIT:.0f} s") from None

    async def _resolve(self, depot: Address) -> Address:
        """The address by its number: whoever answers for the name may say something else the next time."""
        try:
            found = await trio.socket.getaddrinfo(depot.host, depot.port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise DepotUnreachable(f"{depot}: there is no such host") from None
        for *_, place in found:
            if permits(plain_ip(str(place[0])), depot.port, self._allowed, allowed_only=self._allowed_only):
                return Address(str(place[0]), depot.port, secure=depot.secure)
        raise NotPermitted(f"{depot}: this gateway does not speak to it")

    @contextmanager
    def _counted(self, address: Address) -> Iterator[None]:
        machine = household(plain_ip(address.host))
        if self._running[machine] >= LOADS_PER_DEPOT:
            raise TooBusy(f"{address}: too many loads at once")
        for one in (machine, address):
            self._running[one] += 1
        try:
            yield
        finally:
            for one in (machine, address):
                self._running[one] -= 1
                if not self._running[one]:
                    del self._running[one]

    async def _client(self, address: Address, pin: bytes | None) -> DepotClient:
        client = self._clients.get((address, pin))
        if client is None:
            client = self._clients[address, pin] = DepotClient(address, fingerprint=pin)
            idle = [one for one in self._clients if one[0] not in self._running]
            for one in idle[: max(0, len(self._clients) - _MOST_DEPOTS)]:
                await self._clients.pop(one).aclose()
        else:
            self._clients.move_to_end((address, pin))
        return client

    async def aclose(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].aclose()

    def closing(self) -> "aclosing[Relay]":
        return aclosing(self)
