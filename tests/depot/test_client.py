"""The client's commands against peers that behave as captured depots did, good and bad."""


import pytest
from trio.testing import wait_all_tasks_blocked

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.client import PERMANENT, AllocationStatus, DepotStatus, ShortLoad
from ibpfs.depot.wire import (
    AllocationKind,
    BadRequest,
    CapabilityNotFound,
    DepotUnreachable,
    LeaseTooLong,
    NoRoom,
    Reliability,
)

from .scripted import CAPS, PROBE, PROBED, K, L, Peer, StartDepot, depot, hangs_up, says

__all__ = ["depot"]


async def test_the_life_of_an_allocation_on_one_connection(depot: StartDepot) -> None:
    life = says(
        b"1 1 0 2 1 600 1000 0\n", CAPS + b"\n",
        b"0 2 %b 10 0\n0123456789" % L, b"1 \n1 10 \n",
        b"0 8 %b 5 5 0\n" % L, b"1 5 \n56789",
        b"1 13 %b 3 4 0\nWXYZ" % L, b"1 \n1 4 \n",
        PROBE, PROBED,
        b"0 9 %b 43 3 2000 1200 -1 0\n" % L, b"1 \n",
        b"0 9 %b 41 1 0\n" % L, b"1 \n",
        b"0 9 %b 42 2 0\n" % L, b"1 \n",
        b"1 9 %b 45 20 0\n" % L, b"1 \n",
    )  # fmt: skip
    async with depot(life) as client:
        caps = await client.allocate(1000, 600)
        assert caps.manage.key == "1#MANAGE"
        assert await client.store(K, [b"0123", memoryview(b"456789"), b""]) == 10
        assert await client.load(K, 5, 5) == b"56789"
        assert await client.write(K, 3, [b"WXYZ"]) == 4
        assert await client.probe(K) == AllocationStatus(
            1, 0, 204, 1000, 583.0, Reliability.STABLE, AllocationKind.BYTE_ARRAY
        )
        await client.change(K, max_size=2000, duration=1200)
        await client.incr(K)
        await client.decr(K, CapabilityKind.WRITE)
        await client.truncate(K, 20)


async def test_nothing_is_asked_for_nothing(depot: StartDepot) -> None:
    async with depot() as client:
        assert await client.store(K, []) == 0
        assert await client.write(K, 5, [b""]) == 0
        assert await client.load(K, 0, 0) == b""


async def test_permanent_leases(depot: StartDepot) -> None:
    forever = says(
        b"1 1 0 1 1 -1 1000 0\n", CAPS + b"\n",
        PROBE, b"1 1 0 0 1000 315360000 1 1 \n",
        PROBE, b"1 1 0 0 1000 315360000 1 1 \n",
        b"0 9 %b 43 3 5 0 1 0\n" % L, b"1 \n",
        b"0 9 %b 43 3 1000 0 -1 0\n" % L, b"-28 \n",
        b"0 9 %b 43 3 1000 0 -1 0\n" % L, b"-30 \n",  # so say the depots of ACCRE
    )  # fmt: skip
    async with depot(forever) as client:
        await client.allocate(1000, None, reliability=Reliability.VOLATILE)
        assert (await client.probe(K)).seconds_left is None
        await client.change(K, max_size=5)
        for _ in range(2):
            with pytest.raises(LeaseTooLong):
                await client.change(K, max_size=1000, duration=PERMANENT)


async def test_a_change_leaves_what_it_does_not_name(depot: StartDepot) -> None:
    async with depot(says(PROBE, PROBED, b"0 9 %b 43 3 1000 99 2 0\n" % L, b"1 \n")) as client:
        await client.change(K, duration=99)


async def test_status(depot: StartDepot) -> None:
    text = b"VS:1.4:1.0 DT:1  RID:1 RT:1 CT:1000 ST:1000 UT:30 UH:30 SH:1000 CH:1000 AT:970 AH:970 DR:-1 RE \n"
    async with depot(says(b"1 4 0 1 ibp 0\n", b"1 %d \n" % len(text) + text)) as client:
        assert await client.status() == DepotStatus(1000, 30, 970, None, "1.4:1.0")


async def test_a_window_whose_lease_is_over_and_that_is_kept(depot: StartDepot) -> None:
    async with depot(says(b"1 15 %b 40 3 0\n" % L, b"1 1 0 64 1000 -5 \n")) as client:
        found = await client.probe_alias(K)
        assert (found.offset, found.length, found.seconds_left) == (64, 1000, -5)


async def test_large_data_in_many_parts_and_slow_pieces(depot: StartDepot) -> None:
    big = bytes(range(256)) * 40_000

    async def slowly(peer: Peer) -> None:
        await peer.answer(b"0 2 %b %d 0\n" % (L, len(big)) + big, b"1")
        for piece in (b" \n", b"1 %d " % len(big), b"\n"):
            await wait_all_tasks_blocked()
            await peer.say(piece)
        await peer.expect(b"0 8 %b 0 %d 0\n" % (L, len(big)))
        await peer.say(b"1 %d \n" % len(big) + big[:1])
        await wait_all_tasks_blocked()
        await peer.say(big[1:5000])
        await wait_all_tasks_blocked()
        await peer.say(big[5000:])
        await peer.until_closed()

    async with depot(slowly) as client:
        view = memoryview(big)
        assert await client.store(K, [view[i : i + 7000] for i in range(0, len(big), 7000)]) == len(big)
        assert await client.load(K, 0, len(big)) == big


# --- refusals ---


async def test_refusals_are_exceptions_and_the_connection_goes_on(depot: StartDepot) -> None:
    async with depot(says(PROBE, b"-4 \n", b"0 8 %b 9 9 0\n" % L, b"-19 \n", PROBE, PROBED)) as client:
        with pytest.raises(CapabilityNotFound) as error:
            await client.probe(K)
        assert K.key not in str(error.value)
        with pytest.raises(ShortLoad):
            await client.load(K, 9, 9)
        await client.probe(K)


@pytest.mark.parametrize("refusal", [b"-19 \n", b" -19 \n-19 \n", b"-19 \n-66 0.1\n", b"1 \n-19 \n"])
async def test_a_refused_store_costs_its_connection(depot: StartDepot, refusal: bytes) -> None:
    async with depot(says(b"0 2 %b 3 0\nabc" % L, refusal), says(PROBE, PROBED)) as client:
        with pytest.raises(NoRoom):
            await client.store(K, [b"abc"])
        await client.probe(K)


async def test_the_reason_is_heard_although_the_depot_stops_reading(depot: StartDepot) -> None:
    line = b"0 2 %b 30000000 0\n" % L
    async with depot(hangs_up(line, b"-19 \n-66 0.1\n")) as client:
        with pytest.raises(NoRoom):
            await client.store(K, [bytes(30_000_000)])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"1 5 \nabcde", ShortLoad),
        (b"1 30 \n", DepotUnreachable),
        (b"hello\n", DepotUnreachable),
        (b"-30 \n", BadRequest),
    ],
)
async def test_a_load_is_exact_or_nothing(depot: StartDepot, said: bytes, error: type[Exception]) -> None:
    async with depot(says(b"0 8 %b 0 20 0\n" % L, said)) as client:
        with pytest.raises(error):
            await client.load(K, 0, 20)


@pytest.mark.parametrize("said", [b"1 20 \nabc", b"1 2"])
async def test_a_connection_lost_inside_an_answer(depot: StartDepot, said: bytes) -> None:
    async with depot(hangs_up(b"0 8 %b 0 20 0\n" % L, said)) as client:
        with pytest.raises(DepotUnreachable):
            await client.load(K, 0, 20)
