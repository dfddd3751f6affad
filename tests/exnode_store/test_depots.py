"""What is known of a depot by what it answers."""

import pytest
import trio

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import PermissionDenied
from ibpfs.exnode_store.depots import Depot


async def test_a_depot_that_wants_another_password(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """As those of ACCRE do unless they are told to take the one that every client says."""

    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            assert await stream.receive_some() == b"1 4 0 1 ibp 0\n"
            await stream.send_all(b"-29 \n-66 0.1\n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, refuse, listeners)
    address = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
    async with DepotClient(address) as client:
        depot = Depot(1, str(address), client, embedded=False, role="active", labels={})
        for _ in range(2):
            with pytest.raises(PermissionDenied):
                await depot.look()
    assert "wants another password than 'ibp'" in depot.refusal
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [f"depot {depot.refusal}"]
    caplog.clear()
    nursery.cancel_scope.cancel()
