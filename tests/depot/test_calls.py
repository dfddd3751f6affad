"""How commands are carried, against peers that close, hang up, are full, old or silent."""

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ibpfs.depot.address import Address
from ibpfs.depot.client import AllocationStatus, DepotClient, DepotStatus, ShortLoad
from ibpfs.depot.wire import (
    CapabilityNotFound,
    DepotError,
    DepotRefused,
    DepotUnreachable,
    LeaseTooLong,
    NotOffered,
    OutOfSockets,
)

from .scripted import CAPS, INQUIRE, INQUIRED, PROBE, PROBED, K, L, Peer, StartDepot, depot, hangs_up, says, serve

__all__ = ["depot"]


async def test_a_depot_that_is_not_there(tmp_path: Path) -> None:
    for address in (Address(path=str(tmp_path / "none")), Address("127.0.0.1", 1), Address("no.such.host.invalid", 1)):
        async with DepotClient(address) as client:
            with pytest.raises(DepotUnreachable, match=str(address).replace("[", ".")):
                await client.status()


async def test_where_nobody_listens_is_told_from_silence(tmp_path: Path) -> None:
    for address in (Address(path=str(tmp_path / "none")), Address("127.0.0.1", 1), Address("localhost", 1)):
        async with DepotClient(address) as client:
            with pytest.raises(DepotRefused):
                await client.status()
    async with DepotClient(Address("no.such.host.invalid", 1)) as client:
        with pytest.raises(DepotUnreachable) as error:
            await client.status()
    assert not isinstance(error.value, DepotRefused)


async def test_a_socket_whose_path_is_longer_than_addresses_may_be(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with DepotClient(Address(path=str(deep / "depot.sock"))) as client:
        with pytest.raises(DepotRefused, match="nobody listens"):
            await client.status()
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        with listening:
            short = tmp_path / "s"
            await listening.bind(str(short))
            listening.listen(1)
            short.rename(deep / "depot.sock")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, listening, (says(PROBE, PROBED),))
                await client.probe(K)
                await client.aclose()


async def test_a_kept_connection_that_was_closed_is_replaced_before_use(depot: StartDepot) -> None:
    closed = trio.Event()

    async def one_command(peer: Peer) -> None:
        await peer.answer(PROBE, PROBED)
        closed.set()

    async with depot(one_command, says(b"0 2 %b 3 0\nabc" % L, b"1 \n1 3 \n")) as client:
        await client.probe(K)
        await closed.wait()
        await wait_all_tasks_blocked()
        assert await client.store(K, [b"abc"]) == 3


@pytest.mark.parametrize("last_words", [b"", b"-66 0.1\n"])
async def test_a_kept_connection_closed_under_a_command_is_retried_once(depot: StartDepot, last_words: bytes) -> None:
    async with depot(hangs_up(PROBE, PROBED, PROBE, last_words), says(PROBE, PROBED)) as client:
        await client.probe(K)
        await client.probe(K)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_descriptors_that_come_unasked_for_are_closed(depot: StartDepot) -> None:
    async def generous(peer: Peer) -> None:
        opening = b"1 1001 %b 0\n" % L
        for count in (1, 2, 0):
            await peer.expect(opening)
            await peer.hand_over(b"1 512 \n", count) if count else await peer.say(b"1 512 \n")
        await peer.expect(opening)
        await peer.hand_over(b"-4 \n", 1)
        for _ in range(3):
            await peer.expect(PROBE)
            await peer.hand_over(PROBED, 1)
        await peer.until_closed()

    async with depot(generous) as client:
        before = open_descriptors()
        for _ in range(2):
            descriptor, begin = await client.open(K)
            assert begin == 512
            os.close(descriptor)
        with pytest.raises(DepotError):
            await client.open(K)
        with pytest.raises(CapabilityNotFound):
            await client.open(K)
        await client.probe_all([K, K])
        await client.probe(K)
        await wait_all_tasks_blocked()
        assert open_descriptors() == before + 2  # the connection, both ends


@pytest.mark.parametrize("again", [True, False])
async def test_a_store_is_sent_again_only_after_a_goodbye(depot: StartDepot, again: bool) -> None:
    store = b"0 2 %b 3 0\nabc" % L
    scripts = [hangs_up(INQUIRE, INQUIRED, store, b"-66 0.1\n" if again else b"")]
    if again:
        scripts.append(says(store, b"1 \n1 3 \n"))
    async with depot(*scripts) as client:
        await client.status()
        if again:
            assert await client.store(K, [b"abc"]) == 3
        else:
            with pytest.raises(DepotUnreachable):
                await client.store(K, [b"abc"])


async def test_a_permanent_lease_is_not_asked_for_twice(depot: StartDepot) -> None:
    async with depot(hangs_up(INQUIRE, INQUIRED, b"1 1 0 2 1 -1 5 0\n", b""), says(PROBE, PROBED)) as client:
        await client.status()
        with pytest.raises(DepotUnreachable):
            await client.allocate(5, None)
        await client.probe(K)


async def test_a_depot_that_was_cut_off_once_is_not_taken_for_an_old_one(depot: StartDepot) -> None:
    scripts = [
        hangs_up(INQUIRE, b""),
        hangs_up(b"0 4 1 ibp 0\n", b"1 0 1 0 5 \n"),
        says(INQUIRE, INQUIRED, PROBE, PROBED, b"1 1 0 2 1 9 9 0\n", CAPS + b"\n"),
    ]
    async with depot(*scripts) as client:
        assert (await client.status()).total_bytes == 1 << 20
        assert (await client.status()).total_bytes == 1000
        await client.probe(K)
        await client.allocate(9, 9)


async def test_a_new_connection_that_dies_is_not_retried(depot: StartDepot) -> None:
    async with depot(hangs_up(PROBE, b"")) as client:
        with pytest.raises(DepotUnreachable):
            await client.probe(K)


async def test_too_many_connections_waits_as_long_as_the_depot_says(
    depot: StartDepot, autojump_clock: MockClock
) -> None:
    async with depot(hangs_up(b"", b"-66 2.5\n"), says(PROBE, PROBED)) as client:
        start = trio.current_time()
        await client.probe(K)
        assert trio.current_time() - start == pytest.approx(2.5)


async def test_too_many_connections_waits_for_one_that_works(depot: StartDepot, autojump_clock: MockClock) -> None:
    """Two commands at once, a depot that takes one connection: the second command goes over the first one's."""
    asked = trio.Event()

    async def slow(peer: Peer) -> None:
        await peer.answer(INQUIRE, INQUIRED)
        await peer.expect(PROBE)
        asked.set()
        await trio.sleep(1)
        await peer.answer(b"", PROBED, PROBE, PROBED)
        await peer.until_closed()

    async with depot(slow, hangs_up(b"", b"-66 2.5\n")) as client:
        await client.status()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.probe, K)
            await asked.wait()
            await client.probe(K)


async def test_too_many_connections_gives_up_in_the_end(depot: StartDepot, autojump_clock: MockClock) -> None:
    async with depot(*[hangs_up(b"", b"-66 1\n")] * 4) as client:
        with pytest.raises(OutOfSockets) as error:
            await client.probe(K)
        assert error.value.backoff == 1.0


async def test_the_oldest_depots_are_spoken_to_in_their_way(depot: StartDepot) -> None:
    async def stores(peer: Peer) -> None:
        await peer.answer(b"0 2 %b 3 0\n" % L, b"1 \n", b"abc", b"1 3\n")

    scripts = [
        hangs_up(b"1 1 0 2 1 600 100 0\n", b""),
        hangs_up(b"0 1 2 1 600 100 0\n", CAPS.rstrip() + b"\n"),
        stores,
        hangs_up(INQUIRE, b""),
        hangs_up(b"0 4 1 ibp 0\n", b"500 100 500 100 864000 1.3.1  \n\0"),
        hangs_up(PROBE, b"1 1 1 0 100 599 2 1 \n"),
        hangs_up(b"0 9 %b 43 3 100 700 2 0\n" % L, b"1 \n"),
        hangs_up(b"0 1 2 1 0 100 0\n", b" -28 \n"),
    ]
    async with depot(*scripts) as client:
        await client.allocate(100, 600)
        assert await client.store(K, [b"abc"]) == 3
        assert await client.status() == DepotStatus(500 << 20, 100 << 20, 400 << 20, 864000, "1.3.1")
        await client.change(K, duration=700)
        with pytest.raises(LeaseTooLong):
            await client.allocate(100, None)


async def test_an_old_depot_that_closes_late(depot: StartDepot) -> None:
    """As UTK's does: its last reply is read, and the connection back in the pool, before it closes."""
    scripts = [
        hangs_up(b"1 1 0 2 1 600 100 0\n", b""),
        says(b"0 1 2 1 600 100 0\n", CAPS + b"\n"),
        says(b"0 2 %b 3 0\n" % L, b"1 \n", b"abc", b"1 3\n"),
    ]
    async with depot(*scripts) as client:
        await client.allocate(100, 600)
        assert await client.store(K, [b"abc"]) == 3


async def test_nothing_is_sent_only_once_on_a_connection_that_may_be_closing(depot: StartDepot) -> None:
    async with depot(says(PROBE, PROBED), says(b"0 2 %b 3 0\nabc" % L, b"1 \n1 3 \n")) as client:
        await client.probe(K)
        assert await client.store(K, [b"abc"]) == 3


OLD = (hangs_up(INQUIRE, b""), hangs_up(b"0 4 1 ibp 0\n", b"500 100 500 100 864000 1.3.1  \n\0"))


async def test_an_old_depot_has_waited_in_vain_behind_the_last_byte(depot: StartDepot) -> None:
    async with depot(*OLD, hangs_up(b"0 8 %b 10 1 0\n" % L, b" -46 \n")) as client:
        await client.status()
        with pytest.raises(ShortLoad):
            await client.load(K, 10, 1)


TRUNCATE = b"1 9 %b 45 204 0\n" % L


async def test_an_old_depot_gives_back_the_room_behind_the_last_byte(depot: StartDepot) -> None:
    change = b"0 9 %b 43 3 204 583 2 0\n" % L
    scripts = [*OLD, hangs_up(TRUNCATE, b""), *[hangs_up(PROBE, PROBED)] * 2, hangs_up(change, b"1 \n")]
    async with depot(*scripts) as client:
        await client.status()
        await client.truncate(K, 204)


async def test_an_old_depot_cuts_no_bytes_off(depot: StartDepot) -> None:
    longer = PROBED.replace(b"204", b"205")
    async with depot(*OLD, hangs_up(TRUNCATE, b""), hangs_up(PROBE, longer)) as client:
        await client.status()
        with pytest.raises(NotOffered):
            await client.truncate(K, 204)


# --- many at once on one connection ---

DECR = b"0 9 %b 42 1 0\n" % L
GONE = b"-4 \n"


async def test_many_lines_go_out_before_the_first_is_answered(depot: StartDepot) -> None:
    """Whatever is refused among them."""
    answers = PROBED + GONE + PROBED * 62
    script = says(INQUIRE, INQUIRED, PROBE * 64, answers, PROBE * 36, PROBED * 36, DECR * 2, GONE + b"1 \n")
    async with depot(script) as client:
        await client.status()
        found = await client.probe_all([K] * 100)
        assert isinstance(found[1], CapabilityNotFound)
        assert [one.size for one in found if isinstance(one, AllocationStatus)] == [204] * 99
        refused, done = await client.decr_all([K, K])
        assert isinstance(refused, CapabilityNotFound)
        assert done is None


@pytest.mark.parametrize("last_words", [b"", b"-66 0.1\n"])
async def test_what_was_not_answered_is_asked_again(depot: StartDepot, last_words: bytes) -> None:
    first = hangs_up(INQUIRE, INQUIRED, PROBE * 5, PROBED * 2 + last_words)
    async with depot(first, says(PROBE * 3, PROBED * 3)) as client:
        await client.status()
        assert len(await client.probe_all([K] * 5)) == 5


async def test_what_may_have_been_done_is_not_asked_again(depot: StartDepot) -> None:
    async with depot(hangs_up(INQUIRE, INQUIRED, DECR * 3, b"1 \n")) as client:
        await client.status()
        with pytest.raises(DepotUnreachable):
            await client.decr_all([K] * 3)


async def test_a_goodbye_says_that_the_rest_was_not_done(depot: StartDepot) -> None:
    first = hangs_up(INQUIRE, INQUIRED, DECR * 3, b"-4 \n-66 0.1\n")  # as depots do without soft_fail
    async with depot(first, says(DECR * 2, b"1 \n1 \n")) as client:
        await client.status()
        assert [done is None for done in await client.decr_all([K] * 3)] == [False, True, True]


async def test_one_after_another_where_connections_are_not_kept(depot: StartDepot) -> None:
    async with depot(*OLD, *[hangs_up(PROBE, PROBED)] * 3) as client:
        await client.status()
        assert len(await client.probe_all([K] * 3)) == 3


async def test_a_cancelled_command_takes_its_connection_along(depot: StartDepot) -> None:
    asked = trio.Event()

    async def never_answers(peer: Peer) -> None:
        await peer.expect(PROBE)
        asked.set()
        await peer.until_closed()

    async with depot(never_answers, says(PROBE, PROBED)) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.probe, K)
            await asked.wait()
            nursery.cancel_scope.cancel()
        await client.probe(K)


async def test_silence_ends(depot: StartDepot, autojump_clock: MockClock) -> None:
    async with depot(says(PROBE, b"1 1 0"), silence_limit=30.0) as client:
        with pytest.raises(DepotUnreachable, match="silent for 30 s"):
            await client.probe(K)


async def test_dropping_connections_ends_what_is_under_way(depot: StartDepot) -> None:
    asked = trio.Event()

    async def never_answers(peer: Peer) -> None:
        await peer.expect(PROBE)
        asked.set()
        await peer.until_closed()

    async def probe_fails() -> None:
        with pytest.raises(DepotUnreachable):
            await client.probe(K)

    async with depot(never_answers, says(PROBE, PROBED)) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe_fails)
            await asked.wait()
            client.drop_connections()
        await client.probe(K)
