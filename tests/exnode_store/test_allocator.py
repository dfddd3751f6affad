"""Getting room on several depots: one that is stuck delays nobody."""

import trio
from trio.testing import MockClock

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.exnode_store.allocator import STRAGGLER_LIMIT, _ask_all
from ibpfs.exnode_store.depots import Depot
from ibpfs.exnode_store.placement import STUTTERING


async def test_one_that_is_asked_for_a_further_copy_is_not_waited_for_long(autojump_clock: MockClock) -> None:
    async with DepotClient(Address.parse("unix:/nowhere")) as client:
        depot = Depot(1, "unix:/nowhere", client, embedded=False, role="active", labels={})

        async def ask(_: Depot) -> None:
            await trio.sleep(20)

        began = trio.current_time()
        assert await _ask_all([depot], ask, enough=0) == ({}, None)
        assert trio.current_time() - began == STRAGGLER_LIMIT
        assert depot.state == STUTTERING
