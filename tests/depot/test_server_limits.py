"""What one peer may cost: length of a line, memory, time."""

import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ibpfs.depot.server.courier import _is_own
from ibpfs.depot.server.door import Door

Start = Callable[..., Any]


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # another thread's clock is the subject


def held(depot: Any) -> int:
    return int(depot.call(lambda depot: depot._shared.manners.in_flight.held))


def counted(depot: Any, name: str) -> Any:
    return depot.call(lambda depot: dict(getattr(depot._shared.counters, name)))


def test_the_longest_line(in_process: Start) -> None:
    depot = in_process(max_line=100)
    client = depot.connect()
    assert client.ask("1 4 3 " + "1" * 93) == b"-21 \n"
    assert client.ask("1 4 3 10") == b"1 1 \n"
    client.send("1" * 101)
    assert client.rest().startswith(b"-21 \n-66 ")
    client.close()


def test_lines_without_an_end_share_a_bounded_memory(in_process: Start) -> None:
    depot = in_process(max_in_flight=300_000)
    small, *large = [depot.connect() for _ in range(5)]
    small.send("1" * 1000)
    for client in large:
        client.send("1" * 140_000)
    until(lambda: counted(depot, "dismissed") == {"memory": 2})
    assert held(depot) <= 300_000
    small.send("\n")
    assert small.line() == b"-21 \n"
    for client in (small, *large):
        client.close()
    until(lambda: held(depot) == 0)


def test_replies_that_are_not_taken_are_dropped_with_the_connection(in_process: Start) -> None:
    depot = in_process(idle_timeout=0.5)
    client = depot.connect()
    read, write, _ = client.allocate(size=8 << 20)
    client.store(write, bytes(60_000))
    client.send(f"1 8 {read} 1 0 60000 1\n" * 100)  # more than fits into sockets
    until(lambda: 0 < held(depot) < 400_000)
    until(lambda: held(depot) == 0)
    client.close()


def test_blocks_of_one_byte_cost_no_memory(in_process: Start) -> None:
    """Each comes with a digest of 64 times its size."""
    depot = in_process(idle_timeout=5)
    client = depot.connect()
    read, write, _ = client.allocate(size=8 << 20)
    client.store(write, bytes(4 << 20))
    client.send(f"1 24 2 1 {read} 1 0 4194304 5\n")
    until(lambda: held(depot))
    for _ in range(20):
        assert held(depot) < 300_000
        client.read(100_000)
    client.close()


def test_a_trickle_is_no_progress(in_process: Start) -> None:
    """Every byte comes in time, all of them would take for ever."""
    depot = in_process(idle_timeout=0.6, min_rate=1000)
    patient = in_process(idle_timeout=0.6, min_rate=0, store=depot.settings.store.parent / "patient")
    clients = [one.connect() for one in (depot, patient)]
    for client in clients:
        write = client.allocate(size=1000)[1]
        client.send(f"1 2 {write} 1 20 0\n")
        assert client.line() == b"1 \n"
    trickled = 0
    while trickled < 19:
        time.sleep(0.06)  # slower than the least rate, faster than what counts as stuck
        trickled += 1
        for client in clients:
            try:
                client.send("x")
            except ConnectionError:
                assert client is clients[0]
    clients[1].send("x")
    assert clients[1].line() == b"1 20 \n"
    assert counted(depot, "commands")["store", "connection_lost"] == 1
    for client in clients:
        client.close()


def test_the_longest_wait_that_a_client_may_ask_for(in_process: Start) -> None:
    depot = in_process(longest_timeout=0.1)
    client = depot.connect()
    reply = client.ask("1 1 1 1 3 600 100 10")
    read = reply.split()[1].split(b"/")[3].decode()
    assert client.code(f"1 8 {read} 1 0 10 3600") == -1
    client.close()


def test_addresses_of_this_machine() -> None:
    assert _is_own(ip_address("127.0.0.1"))
    assert _is_own(ip_address("127.9.9.9"))
    assert not _is_own(ip_address("192.0.2.1"))


def test_an_ipv6_network_is_one_peer() -> None:
    door = Door(limit=100, per_address=2)
    for text in ("2001:db8:1:2::1", "2001:db8:1:2:3:4:5:6"):
        assert door.refusal(ip_address(text)) is None
        door.enter(ip_address(text))
    assert door.refusal(ip_address("2001:db8:1:2::99")) == "address"
    assert door.refusal(ip_address("2001:db8:1:3::1")) is None
    assert door.refusal(ip_address("192.0.2.1")) is None
    door.leave(ip_address("2001:db8:1:2::1"))
    assert door.refusal(ip_address("2001:db8:1:2::99")) is None


@pytest.mark.parametrize("meanwhile", ["9 {} 1 45 90000 10", "18 {} 1 2 1 600 5000 10"], ids=["truncate", "split"])
def test_a_limit_that_changes_leaves_alone_what_is_being_stored(
    in_process: Start, tmp_path: Path, meanwhile: str
) -> None:
    depot = in_process()
    writer, client = depot.connect(), depot.connect()
    read, write, manage = client.allocate(size=100_000)
    client.store(write, bytes(8192))  # zeros lie behind it now
    (file,) = [one for one in (tmp_path / "store" / "allocations").rglob("*") if one.is_file()]
    data = os.urandom(4096)
    writer.send(f"1 2 {write} 1 {len(data)} 10\n".encode() + data[:2048])
    assert writer.line() == b"1 \n"
    until(lambda: data[:2048] in file.read_bytes())
    assert client.ask(f"1 {meanwhile.format(manage)}")[:2] == b"1 "
    writer.send(data[2048:])
    assert writer.line() == b"1 4096 \n"
    assert client.load(read, 8192, 4096) == data
    writer.close()
    client.close()
