"""The connection as a whole: both roles against each other, byte by byte, and against hostile bytes."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.capability import Capability, CapabilityKind, CapabilitySet, Key
from ibpfs.depot.wire import (
    NEED_DATA,
    PAUSED,
    AllocationKind,
    Connection,
    LocalProtocolError,
    Reliability,
    RemoteProtocolError,
    Role,
)
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.protocol import MAX_LINE, MAX_NUMBER, MAX_PIPELINED

K = Key("1#bIJHzedg9wSlWvpsYKXJPS2wPtS3bdIl", "3862277")
L = f"{K.key} {K.type_key}".encode()
CAPS = CapabilitySet(*(Capability("127.0.0.1", 16714, f"1#{kind.name}", "3862277", kind) for kind in CapabilityKind))
MIB = 1 << 20


def drain(connection: Connection) -> list[ev.Event]:
    """Every event that is there, adjacent data joined, without the final NEED_DATA or PAUSED."""
    events: list[ev.Event] = []
    while not isinstance(event := connection.next_event(), ev.Waiting | ev.ClosedByPeer):
        if isinstance(event, ev.Data) and events and isinstance(last := events[-1], ev.Data):
            events[-1] = ev.Data(last.chunk + event.chunk)
        else:
            events.append(event)
    return events


def join(events: Sequence[ev.Event]) -> list[ev.Event]:
    joined: list[ev.Event] = []
    for event in events:
        if isinstance(event, ev.Data) and joined and isinstance(last := joined[-1], ev.Data):
            joined[-1] = ev.Data(last.chunk + event.chunk)
        else:
            joined.append(event)
    return joined


def feed(connection: Connection, data: bytes, cuts: Sequence[int]) -> list[ev.Event]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    events: list[ev.Event] = []
    for start, end in pairwise(places):
        connection.receive_data(data[start:end])
        events += drain(connection)
    return join(events)


numbers = st.integers(0, MAX_NUMBER)
payload = st.binary(max_size=300)
probed = st.builds(
    ev.Probed,
    numbers,
    numbers,
    numbers,
    numbers,
    numbers,
    st.sampled_from(Reliability),
    st.sampled_from(AllocationKind),
)
reports = st.builds(
    ev.StatusReport, numbers, numbers, numbers, numbers, numbers | st.just(-1), st.just("1.4:1.0"), st.just("1")
)
failures = st.builds(ev.Failed, st.integers(-65, -1), st.none() | numbers)
texts = st.lists(st.from_regex(r"[a-z][a-z0-9 :.]{0,20}[a-z]", fullmatch=True), max_size=4).map(
    lambda lines: ev.VersionText(tuple(lines))
)

# (command, replies of the depot, data behind the last reply)
Exchange = tuple[ev.Command, list[ev.Reply], bytes]


def with_load(data: bytes) -> Exchange:
    return ev.Load(K, 0, len(data)), [ev.Loading(len(data))], data


exchanges: st.SearchStrategy[Exchange] = st.one_of(
    st.just((ev.Allocate(1, 2), [ev.Allocated(CAPS)], b"")),
    payload.map(with_load),
    probed.map(lambda reply: (ev.Probe(K), [reply], b"")),
    numbers.map(lambda n: (ev.Open(K), [ev.Opened(n)], b"")),
    st.just((ev.Increment(K, CapabilityKind.READ), [ev.Done()], b"")),
    st.just((ev.Change(K, 1, 2), [ev.Done()], b"")),
    reports.map(lambda reply: (ev.StatusInquire(), [reply], b"")),
    texts.map(lambda reply: (ev.StatusVersion(), [reply], b"")),
    st.just((ev.StatusResources(), [ev.Resources(("1", "2"))], b"")),
    failures.map(lambda reply: (ev.Probe(K), [reply], b"")),
    numbers.map(lambda n: (ev.Store(K, 5), [ev.Ready(), ev.Stored(n)], b"")),
)


@given(st.lists(exchanges, max_size=6), st.lists(st.integers(0, 10**6), max_size=12))
def test_replies_survive_any_chunking(exchanged: list[Exchange], cuts: list[int]) -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    to_client, expected = b"", []
    for command, replies, data in exchanged:
        server.receive_data(client.send(command))
        assert server.next_event() == command
        for reply in replies:
            to_client += server.send(reply)
            if isinstance(reply, ev.Ready):
                server.receive_data(b"x" * 5)
                assert drain(server) == [ev.Data(b"x" * 5), ev.EndOfData()]
            expected.append(reply)
        to_client += data
        if isinstance(command, ev.Load):
            expected += [ev.Data(data)] * bool(data) + [ev.EndOfData()]
    assert feed(client, to_client, cuts) == expected
    assert server.idle
    assert client.idle


@given(st.lists(payload, max_size=5), st.lists(st.integers(0, 10**6), max_size=12))
def test_pipelined_stores_survive_any_chunking(payloads: list[bytes], cuts: list[int]) -> None:
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    stream = b"".join(client.send(ev.Store(K, len(data))) + data for data in payloads)
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    seen, answers = [], b""
    for start, end in pairwise(places):
        server.receive_data(stream[start:end])
        while not isinstance(event := server.next_event(), ev.Waiting):
            if isinstance(event, ev.Store):
                seen.append(b"")
                answers += server.send(ev.Ready())
            elif isinstance(event, ev.Data):
                seen[-1] += event.chunk
            else:
                answers += server.send(ev.Stored(len(seen[-1])))
    assert seen == payloads
    assert feed(client, answers, []) == [e for d in payloads for e in (ev.Ready(), ev.Stored(len(d)))]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_any_bytes_to_a_server_end_in_replies_or_a_close(data: bytes, cuts: list[int]) -> None:
    server = Connection(Role.SERVER)
    for event in feed(server, data, cuts):
        if isinstance(event, ev.Malformed | ev.Unsupported):
            server.send(ev.Failed(-21))
    server.receive_eof()
    while not isinstance(event := server.next_event(), ev.Waiting | ev.ClosedByPeer):
        pass


hostile = st.binary(max_size=100) | st.lists(
    st.sampled_from([b"1", b"-4", b"-66", b" ", b"\n", b"10", b"-", b"nan", b"ibp://h:1/k/1/READ", b"END", b"\0"])
).map(b"".join)


@given(st.lists(exchanges, min_size=1, max_size=3), hostile, st.lists(st.integers(0, 100), max_size=5))
def test_any_bytes_to_a_client_are_events_or_a_protocol_error(
    exchanged: list[Exchange], data: bytes, cuts: list[int]
) -> None:
    client = Connection(Role.CLIENT)
    for command, _, _ in exchanged:
        client.send(command)
    try:
        feed(client, data, cuts)
    except RemoteProtocolError as error:
        assert "\n" not in str(error)  # noqa: PT017


def serve(data: bytes) -> Connection:
    server = Connection(Role.SERVER)
    server.receive_data(data)
    return server


def test_replies_look_as_real_clients_need_them() -> None:
    server = serve(b"1 1 1 2 1 600 1000 10\n1 9 %b 40 3 10\n0 4 1 ibp 5\n1 4 1 1 ibp 5\n1 3 1\n1 4 5 1\n" % (L,))
    drain(server)
    report = ev.StatusReport(1024 * MIB, MIB, 1023 * MIB - 1, MIB, 2592000)
    assert server.send(ev.Allocated(CAPS)) == (
        b"1 ibp://127.0.0.1:16714/1#READ/3862277/READ ibp://127.0.0.1:16714/1#WRITE/3862277/WRITE "
        b"ibp://127.0.0.1:16714/1#MANAGE/3862277/MANAGE \n"
    )
    probed = ev.Probed(1, 0, 204, 1000, 583, Reliability.STABLE, AllocationKind.BYTE_ARRAY)
    assert server.send(probed) == b"1 1 0 204 1000 583 2 1 \n"
    assert server.send(report) == b"1024 2 1024 2 2592000 \n"  # what is free is never overstated
    assert server.send(report).startswith(b"1 149 \nVS:1.4:1.0 DT:1  RID:1 RT:1 CT:1073741824 ST:1073741824 UT:")
    assert server.send(ev.Failed(-43)) == b"-43 \n"
    assert server.send(ev.VersionText(("ibpfs-depot",))) == b"1 \nibpfs-depot\nEND\n"
    assert server.send(ev.Goodbye(0.1)) == b"-66 0.100000\n"
    assert server.must_close


def test_a_refused_store_closes_so_that_its_data_are_never_commands() -> None:
    server = serve(b"1 13 %b 999 4 10\n1 1 1 2 1 600 1000 10\n" % L)
    assert server.next_event() == ev.Write(K, 999, 4, timeout=10)
    assert server.next_event() is PAUSED
    assert server.send(ev.Failed(-19)) == b"-19 \n"
    assert server.must_close
    assert server.next_event() is PAUSED
    with pytest.raises(LocalProtocolError):
        server.send(ev.Ready())
    server.send(ev.Goodbye())


def test_a_store_that_fails_after_its_data_keeps_the_connection_and_in_their_middle_does_not() -> None:
    server = serve(b"1 2 %b 4 10\nabcd" % L)
    drain(server)
    server.send(ev.Ready())
    drain(server)
    server.send(ev.Failed(-23))
    assert server.idle
    server.receive_data(b"1 2 %b 4 10\nab" % L)
    drain(server)
    server.send(ev.Ready())
    drain(server)
    with pytest.raises(LocalProtocolError):
        server.send(ev.Stored(4))
    server.send(ev.Failed(-23))
    assert server.must_close


def test_other_refusals_keep_the_connection() -> None:
    server = serve(b"1 8 %b 0 5 10\n1 6 1 2 3 4 10\n1 1 1 2 9 1 1 1\n1 9 %b 40 3 10\n" % (L, L))
    assert [type(event) for event in drain(server)] == [ev.Load, ev.Unsupported, ev.Malformed, ev.Probe]
    for code in (-4, -43, -30, -4):
        server.send(ev.Failed(code))
    assert server.idle


def test_raw_bytes_may_bypass_the_codec() -> None:
    server = serve(b"1 2 %b 10 10\n0123" % L)
    server.next_event()
    server.send(ev.Ready())
    assert (server.raw_remaining, server.take_raw(2), server.take_raw(99)) == (10, b"01", b"23")
    assert server.take_raw(99) == b""
    assert server.next_event() is NEED_DATA
    server.skip_raw(6)
    assert server.next_event() == ev.EndOfData()
    with pytest.raises(LocalProtocolError):
        server.skip_raw(1)
    server.send(ev.Stored(10))
    assert server.idle


def test_a_line_without_an_end_is_cut_off_at_the_cap() -> None:
    server = Connection(Role.SERVER)
    piece = b"9" * 65536
    for _ in range(MAX_LINE // len(piece)):
        server.receive_data(piece)
        assert server.next_event() is NEED_DATA
    server.receive_data(b"9")
    assert server.next_event() == ev.Malformed(-21, closes_if_refused=True)
    assert server.next_event() is PAUSED
    assert not server.mid_line


def test_a_server_reads_ahead_only_so_far() -> None:
    server = serve(b"1 9 %b 40 3 10\n" % L * (MAX_PIPELINED + 1))
    assert len(drain(server)) == MAX_PIPELINED
    assert server.next_event() is PAUSED
    server.send(ev.Failed(-4))
    assert isinstance(server.next_event(), ev.Probe)
    assert server.next_event() is PAUSED


@pytest.mark.parametrize("reply", [ev.Done(), ev.Ready(), ev.Stored(1), ev.Loading(1), ev.VersionText(())])
def test_a_server_cannot_answer_with_the_wrong_reply(reply: ev.Reply) -> None:
    server = serve(b"1 1 1 2 1 600 1000 10\n")
    drain(server)
    with pytest.raises(LocalProtocolError):
        server.send(reply)
    with pytest.raises(LocalProtocolError):
        Connection(Role.SERVER).send(reply)


@pytest.mark.parametrize(("received", "clean"), [(b"", True), (b"1 2 3", False), (b"1 2 %b 4 10\n" % L, True)])
def test_a_server_hears_how_the_client_left(received: bytes, clean: bool) -> None:
    server = serve(received)
    server.receive_eof()
    if received.endswith(b"\n"):
        server.next_event()
        server.send(ev.Ready())
        server.receive_eof()
        assert server.next_event() == ev.ClosedByPeer(clean=False)
    else:
        assert server.next_event() == ev.ClosedByPeer(clean=clean)


# --- the client against bytes of real depots ---


def client_with(command: ev.Command, received: bytes) -> Connection:
    client = Connection(Role.CLIENT)
    client.send(command)
    client.receive_data(received)
    return client


def test_a_client_understands_the_oldest_depots() -> None:
    refused = client_with(ev.Store(K, 999, version=0), b" -19 \n-19 \n")
    assert refused.next_event() == ev.Failed(-19)
    assert refused.must_close
    stored = client_with(ev.Store(K, 10, version=0), b"1 \n1 10\n")
    assert drain(stored) == [ev.Ready(), ev.Stored(10)]
    assert stored.idle
    status = client_with(ev.StatusInquire(version=0), b"500 0 500 0 864000 1.3.1  \n\0")
    assert drain(status) == [ev.StatusReport(500 * MIB, 0, 500 * MIB, 0, 864000, "1.3.1")]
    assert not status.idle


def test_a_client_understands_the_other_family() -> None:
    text = (
        b"VS:1.4:1.0 DT:1  RID:1 RT:1 CT:17179869184 ST:17179869184 UT:63000 UH:60000 SH:17179869184 "
        b"CH:17179869184 AT:17179806184 AH:17179806184 DR:2592000 RE \n"
    )
    status = client_with(ev.StatusInquire(), b"1 %d \n" % len(text) + text)
    expected = ev.StatusReport(17179869184, 63000, 17179806184, 60000, 2592000, "1.4:1.0", "1")
    assert drain(status) == [expected]
    assert drain(client_with(ev.StatusInquire(version=0), b"-29 \n")) == [ev.Failed(-29)]
    version = client_with(ev.StatusVersion(), b"1\nVersion: 1.6.8\n\nEND\n")
    assert drain(version) == [ev.VersionText(("Version: 1.6.8", ""))]


def test_a_goodbye_is_never_an_answer() -> None:
    client = client_with(ev.Probe(K), b"-66 0.199219\n")
    assert client.next_event() == ev.Goodbye(0.199219)
    assert client.must_close
    assert not client.idle
    with pytest.raises(LocalProtocolError):
        client.send(ev.Probe(K))


@pytest.mark.parametrize(
    ("command", "received"),
    [
        (ev.Probe(K), b"\n"),
        (ev.Probe(K), b"- \n"),
        (ev.Probe(K), b"2 1 1 0 0 0 2 1\n"),
        (ev.Probe(K), b"1 1 1 0 0 0 9 1\n"),
        (ev.Probe(K), b"1 1 1\n"),
        (ev.Probe(K), b"\xff\n"),
        (ev.Allocate(1, 1), b"1 ibp://h:1/k/1/READ ibp://h:1/k/1/READ ibp://h:1/k/1/READ \n"),
        (ev.Allocate(1, 1), b"1 x y z \n"),
        (ev.Load(K, 0, 5), b"1 -5 \n"),
        (ev.Load(K, 0, 5), b"1 99999999999999999999999 \n"),
        (ev.StatusInquire(), b"1 99999999 \n"),
        (ev.StatusVersion(), b"1\n" + b"x\n" * 1001),
        (ev.Probe(K), b"1" * (MAX_LINE + 1)),
        (ev.Increment(K, CapabilityKind.READ), b"1 \n1 \n"),
    ],
)
def test_a_client_gives_up_on_nonsense(command: ev.Command, received: bytes) -> None:
    client = client_with(command, received)
    with pytest.raises(RemoteProtocolError):
        drain(client)


def test_a_client_hears_whether_something_was_owed() -> None:
    client = Connection(Role.CLIENT)
    client.receive_eof()
    assert client.next_event() == ev.ClosedByPeer(clean=True)
    client = client_with(ev.Probe(K), b"1 1")
    client.receive_eof()
    assert client.next_event() == ev.ClosedByPeer(clean=False)
