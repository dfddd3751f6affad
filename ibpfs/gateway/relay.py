"""LOADs that a gateway makes for others: one command, which it builds itself, to depots that it may speak to."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.server.access import plain_ip
from ibpfs.depot.server.reach import Places
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import UsageError
from ibpfs.gateway.reach import permits

#: Longest stored slice, with its header and tags, and some.
MAX_LOAD = 8 * 1024 * 1024
LIMIT = 20.0
_MOST_DEPOTS = 64


class NotPermitted(UsageError):
    """The gateway does not speak to this depot."""


class Relay:
    """Connections to depots, kept for the next load."""

    def __init__(self, allowed: Sequence[Places]) -> None:
        self._allowed = allowed
        self._clients: OrderedDict[Address, DepotClient] = OrderedDict()

    async def load(self, depot: Address, key: Key, offset: int, length: int) -> bytearray:
        """Exactly these bytes. Raises NotPermitted, DepotError, DepotUnreachable."""
        try:
            with trio.fail_after(LIMIT):
                client = await self._client(await self._resolve(depot))
                return await client.load(key, offset, length)
        except trio.TooSlowError:
            raise DepotUnreachable(f"{depot}: no answer for {LIMIT:.0f} s") from None

    async def _resolve(self, depot: Address) -> Address:
        """The address by its number: whoever answers for the name may say something else the next time."""
        try:
            found = await trio.socket.getaddrinfo(depot.host, depot.port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise DepotUnreachable(f"{depot}: there is no such host") from None
        for *_, place in found:
            if permits(plain_ip(str(place[0])), depot.port, self._allowed):
                return Address(str(place[0]), depot.port, secure=depot.secure)
        raise NotPermitted(f"{depot}: this gateway does not speak to it")

    async def _client(self, address: Address) -> DepotClient:
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = DepotClient(address)
            while len(self._clients) > _MOST_DEPOTS:
                await self._clients.popitem(last=False)[1].aclose()
        else:
            self._clients.move_to_end(address)
        return client

    async def aclose(self) -> None:
        while self._clients:
            await self._clients.popitem()[1].aclose()

    def closing(self) -> "aclosing[Relay]":
        return aclosing(self)
