"""The client against peers that behave as captured depots did, good and bad.

Each test scripts what one depot does on each connection it accepts, in order.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilityKind, Key
from ibpfs.depot.client import PERMANENT, AllocationStatus, DepotClient, DepotStatus, ShortLoad
from ibpfs.depot.wire import (
    AllocationKind,
    BadRequest,
    CapabilityNotFound,
    DepotRefused,
    DepotUnreachable,
    LeaseTooLong,
    NoRoom,
    NotOffered,
    OutOfSockets,
    Reliability,
)

K = Key("1#bIJHzedg9wSlWvpsYKXJPS2wPtS3bdIl", "3862277")
L = f"{K.key} {K.type_key}".encode()
CAPS = b"1 " + b"".join(b"ibp://127.0.0.1:16714/1#%b/3862277/%b " % (k, k) for k in (b"READ", b"WRITE", b"MANAGE"))
PROBED = b"1 1 0 204 1000 583 2 1 \n"
PROBE = b"0 9 %b 40 3 0 0 0 0\n" % L
INQUIRE = b"1 4 0 1 ibp 0\n"
INQUIRED = b"1 41 \nVS:1.4:1.0 CT:1000 UT:30 AT:970 DR:5 RE \n"


class Peer:
    """The depot's end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""

    async def expect(self, wanted: bytes) -> None:
        while len(self._received) < len(wanted):
            more = await self._stream.receive_some()
            assert more, f"closed after {self._received!r}, wanted {wanted!r}"
            self._received += more
        got, self._received = self._received[: len(wanted)], self._received[len(wanted) :]
        assert got == wanted

    async def say(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def answer(self, *exchanged: bytes) -> None:
        for wanted, said in zip(exchanged[::2], exchanged[1::2], strict=True):
            await self.expect(wanted)
            await self.say(said)

    async def until_closed(self) -> None:
        assert await self._stream.receive_some() == b""


Script = Callable[[Peer], Awaitable[None]]
StartDepot = Callable[..., AbstractAsyncContextManager[DepotClient]]


def says(*exchanged: bytes) -> Script:
    """Answers, then waits for the client to close."""

    async def script(peer: Peer) -> None:
        await peer.answer(*exchanged)
        await peer.until_closed()

    return script


def hangs_up(*exchanged: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.answer(*exchanged)

    return script


@pytest.fixture
def depot(tmp_path: Path) -> StartDepot:
    """A client of a depot whose n-th connection runs the n-th script; no connection more, none less."""

    @asynccontextmanager
    async def start(*scripts: Script, **options: float) -> AsyncIterator[DepotClient]:
        path = tmp_path / "depot.sock"
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen(8)
        client = DepotClient(Address(path=str(path)), **options)  # type: ignore[arg-type]
        with listening:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(_serve, listening, scripts))
                yield client
                await client.aclose()
        path.unlink()

    return start


async def _serve(listening: trio.socket.SocketType, scripts: tuple[Script, ...]) -> None:
    async with trio.open_nursery() as nursery:
        for script in scripts:
            sock, _ = await listening.accept()
            nursery.start_soon(_run, script, trio.SocketStream(sock))


async def _run(script: Script, stream: trio.SocketStream) -> None:
    async with stream:
        await script(Peer(stream))


# --- commands ---


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


# --- connections ---


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
                nursery.start_soon(_serve, listening, (says(PROBE, PROBED),))
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
