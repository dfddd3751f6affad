"""Making one more replica on a depot: leased for long only once the ledger knows of it (I4). Works without keys."""

from collections.abc import Awaitable, Callable

from ibpfs.depot.capability import Key
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store.allocator import SHORT_LEASE, Allocator
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica
from ibpfs.exnode_store.sealing import Buffer

#: Appends so many bytes, or all, to the allocation.
Store = Callable[[Buffer], Awaitable[None]]

#: Bytes of one append.
_PIECE = 1024 * 1024


class Copying:
    """What it makes is pending until the caller commits it, in the transaction that counts on it."""

    def __init__(self, db: Database, ledger: Ledger, allocator: Allocator) -> None:
        self._db = db
        self._ledger = ledger
        self._allocator = allocator

    async def make(
        self, depot: Depot, length: int, fill: Callable[[Store], Awaitable[None]], shard: int | None = None
    ) -> NewReplica:
        """An allocation of `length` bytes that `fill` has stored. Raises DepotError, DepotUnreachable."""
        longest = depot.status.max_lease if depot.status else None
        first = SHORT_LEASE if longest is None else min(SHORT_LEASE, longest)
        caps = await depot.call(lambda: depot.client.allocate(length, first))
        wire = caps.read.wire_key, caps.write.wire_key, caps.manage.wire_key
        (row,) = self._ledger.add_pending([(depot.id, *wire)])
        try:
            await fill(lambda data: self._store(depot, caps.write.wire_key, data))
            await self._db.sync()
            end = await self._allocator.extend(depot, caps.manage.wire_key, length)
        except BaseException:
            self._ledger.abandon_pending([row])
            raise
        return NewReplica(row, depot.id, *wire, end, self._ledger.now(), shard)

    async def _store(self, depot: Depot, write: Key, data: Buffer) -> None:
        taken = await depot.call(lambda: depot.client.store(write, [data]))
        if taken != len(data):
            raise DepotUnreachable(f"{depot.address} took {taken} of {len(data)} bytes")

    async def put(self, depot: Depot, data: Buffer, shard: int | None = None) -> NewReplica:
        """An allocation that holds these bytes."""
        view = memoryview(data)

        async def fill(store: Store) -> None:
            for at in range(0, len(view), _PIECE):
                await store(view[at : at + _PIECE])

        return await self.make(depot, len(view), fill, shard)
