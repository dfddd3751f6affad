"""Copies between depots, raw bytes to third parties, and where both may not go."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.server.access import Access, plain_ip
from ibpfs.depot.server.reach import Places, Purpose, Reach
from ibpfs.errors import UsageError

InProcess = Callable[..., Any]
HERE = (("127.0.0.1", 0),)


@pytest.fixture
def two(in_process: InProcess, tmp_path: Path) -> Iterator[Any]:
    first, second = (in_process(store=tmp_path / name, listen=HERE) for name in "ab")
    with ExitStack() as stack:
        clients = first.connect_tcp(), second.connect_tcp()
        for client in clients:
            stack.callback(client.close)
        yield clients


def caps(client: Any, kind: int = 1, size: int = 20_000_000) -> list[str]:
    return client.ask(f"0 1 2 {kind} 600 {size} 5").decode().split()[1:]  # type: ignore[no-any-return]


def key(capability: str) -> str:
    return capability.split("/")[3]


class TestBetweenDepots:
    def test_send_push_pull(self, two: Any) -> None:
        here, there = two
        ours, theirs = caps(here), caps(there)
        data = bytes(range(256)) * 40_000
        here.store(key(ours[1]), data)
        assert here.ask(f"1 5 {key(ours[0])} {theirs[1]} 1 100 9000000 10 10 10") == b"1 9000000 \n"
        assert here.ask(f"1 20 1 {key(ours[0])} {theirs[1]} 1 0 50 30 10 10 10") == b"1 30 \n"
        expected = bytearray(data[100:9_000_100])
        expected[50:80] = data[:30]
        assert there.load(key(theirs[0]), 0, 9_000_000) == expected
        back = caps(here)
        assert here.ask(f"1 21 1 {key(back[1])} {theirs[0]} 1 -1 1000 8000000 10 10 10") == b"1 8000000 \n"
        assert here.ask(f"1 21 1 {key(back[1])} {theirs[0]} 1 3 0 5 10 10 10") == b"1 5 \n"
        expected = expected[1000:8_001_000]
        expected[3:8] = data[100:105]
        assert here.load(key(back[0]), 0, 8_000_000) == expected

    def test_refused_there(self, two: Any) -> None:
        here, there = two
        ours, theirs = caps(here), caps(there, size=10)
        here.store(key(ours[1]), b"0123456789abcdef")
        unknown = theirs[1].replace(key(theirs[1]), "1#nosuchkey")
        assert here.ask(f"1 5 {key(ours[0])} {unknown} 1 0 5 10 10 10") == b"-4 5 \n"
        assert here.ask(f"1 5 {key(ours[0])} {theirs[1]} 1 0 11 10 10 10") == b"-19 11 \n"
        assert here.ask(f"1 21 1 {key(ours[1])} {theirs[0]} 1 -1 0 5 10 10 10") == b"-19 5 \n"
        assert here.code(f"1 5 {key(ours[0])} {theirs[1]} 1 10 11 10 10 10") == -19
        with socket.create_server(("127.0.0.1", 0)) as dead:
            port = dead.getsockname()[1]
        assert here.ask(f"1 5 {key(ours[0])} ibp://127.0.0.1:{port}/1#k/1/WRITE 1 0 5 10 10 10") == b"-13 \n"
        assert here.load(key(ours[0]), 0, 16) == b"0123456789abcdef"

    def test_through_tls(self, in_process: InProcess, tmp_path: Path) -> None:
        """An ibps target or source is never spoken to in clear."""
        here, there = in_process(store=tmp_path / "a", listen=HERE), in_process(store=tmp_path / "b", listen=HERE)
        client, other = here.connect_tcp(), there.connect_tcp()
        ours, theirs, back = caps(client), caps(other), caps(client)
        secure = [one.replace("ibp:", "ibps:") for one in theirs]
        data = bytes(range(256)) * 8000
        client.store(key(ours[1]), data)
        assert client.ask(f"1 5 {key(ours[0])} {secure[1]} 1 0 2000000 10 10 10") == b"1 2000000 \n"
        assert client.ask(f"1 20 1 {key(ours[0])} {secure[1]} 1 5 0 9 10 10 10") == b"1 9 \n"
        assert client.ask(f"1 21 1 {key(back[1])} {secure[0]} 1 -1 0 2000000 10 10 10") == b"1 2000000 \n"
        assert client.load(key(back[0]), 0, 2_000_000) == data[5:14] + data[9:2_000_000]
        assert client.ask(f"1 5 {key(ours[0])} {secure[1]}x 1 0 5 10 10 10").startswith(b"-")
        client.close()
        other.close()

    def test_where_there_is_no_tls(self, in_process: InProcess, tmp_path: Path) -> None:
        here = in_process(store=tmp_path / "a", listen=HERE)
        there = in_process(store=tmp_path / "b", listen=HERE, tls=False, idle_timeout=0.2)
        client, other = here.connect_tcp(), there.connect_tcp()
        ours, theirs = caps(client), caps(other)
        client.store(key(ours[1]), b"0123456789")
        secure = [one.replace("ibp:", "ibps:") for one in theirs]
        assert client.ask(f"1 5 {key(ours[0])} {secure[1]} 1 0 5 10 10 10") == b"-13 \n"
        assert client.ask(f"1 21 1 {key(ours[1])} {secure[0]} 1 -1 0 5 10 10 10") == b"-13 \n"
        other.close()
        other = there.connect_tcp()
        assert other.probe(key(theirs[2]))[2] == 0
        client.close()
        other.close()

    def test_from_a_fifo_there(self, two: Any) -> None:
        here, there = two
        ours, theirs = caps(here), caps(there, kind=3, size=100)
        there.store(key(theirs[1]), b"queued")
        assert here.ask(f"1 21 1 {key(ours[1])} {theirs[0]} 1 -1 0 100 1 1 1") == b"1 6 \n"
        assert here.load(key(ours[0]), 0, 6) == b"queued"
        while there.probe(key(theirs[2]))[2]:  # they leave when they have been sent, which may be after they came
            pass

    def test_from_a_fifo_here_that_nobody_takes(self, two: Any) -> None:
        here, there = two
        ours, theirs = caps(here, kind=3, size=100), caps(there, size=3)
        here.store(key(ours[1]), b"queued")
        assert here.ask(f"1 5 {key(ours[0])} {theirs[1]} 1 0 6 1 1 1") == b"-19 6 \n"
        assert here.probe(key(ours[2]))[2] == 6


def third_party(data: bytes | None) -> tuple[int, list[bytes], threading.Thread]:
    """Takes one connection; says `data`, or reads to the end."""
    listener, read = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            if data is not None:
                sock.sendall(data)
            else:
                while piece := sock.recv(65536):
                    read.append(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    return listener.getsockname()[1], read, thread


class TestThirdParties:
    def test_deliver(self, two: Any) -> None:
        client = two[0]
        ours = caps(client)
        client.store(key(ours[1]), b"x" * 3_000_000)
        port, read, thread = third_party(None)
        assert client.ask(f"0 3 {key(ours[0])} 127.0.0.1 {port} 1 1 2999999 5 ") == b"1 2999999 \n"
        thread.join()
        assert b"".join(read) == b"x" * 2_999_999

    def test_remote_store(self, two: Any) -> None:
        client = two[0]
        ours = caps(client)
        client.store(key(ours[1]), b"begun ")
        port, _, thread = third_party(b"y" * 1_000_000)
        assert client.ask(f"0 7 {key(ours[1])} localhost {port} 1 1000000 5") == b"1 \n"
        assert client.line() == b"1 1000000 \n"
        thread.join()
        assert client.load(key(ours[0]), 0, 8) == b"begun yy"

    def test_one_that_says_too_little(self, two: Any) -> None:
        client = two[0]
        ours = caps(client)
        port, _, thread = third_party(b"short")
        assert client.ask(f"0 7 {key(ours[1])} 127.0.0.1 {port} 1 10 5") == b"1 \n"
        assert client.line() == b"-13 \n"
        thread.join()
        assert client.probe(key(ours[2]))[2] == 0

    def test_only_the_address_that_asks(self, two: Any) -> None:
        client = two[0]
        ours = caps(client)
        client.store(key(ours[1]), b"0123456789")
        for host in ("127.0.0.2", "10.1.2.3", "169.254.169.254", "::1"):
            assert client.code(f"0 3 {key(ours[0])} {host} 80 1 0 5 1") == -44
            assert client.code(f"0 7 {key(ours[1])} {host} 80 1 5 1") == -44

    def test_lists(self, in_process: InProcess) -> None:
        port, read, thread = third_party(None)
        reach = Reach(
            raw_allowed=(Places(ip_network("127.0.0.0/8"), port, port),),
            copy_denied=(Places(ip_network("127.0.0.0/8")),),
        )
        client = in_process(listen=HERE, reach=reach).connect_tcp()
        ours = caps(client)
        client.store(key(ours[1]), b"0123456789")
        assert client.ask(f"0 3 {key(ours[0])} 127.0.0.1 {port} 1 0 5 1") == b"1 5 \n"
        thread.join()
        assert read == [b"01234"]
        assert client.code(f"1 5 {key(ours[0])} ibp://127.0.0.1:1/1#k/1/WRITE 1 0 5 1 1 1") == -44
        client.close()


ASKING = ip_address("192.0.2.7")


class TestReach:
    @pytest.mark.parametrize("address", ["192.0.2.9", "10.0.0.1", "192.168.1.1", "2001:db8::1"])
    def test_copies_go_far(self, address: str) -> None:
        assert Reach(on_loopback=False).permits(Purpose.COPY, plain_ip(address), 6714, ASKING)

    @pytest.mark.parametrize(
        "address",
        ["169.254.1.1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "255.255.255.255", "127.0.0.1", "127.8.8.8", "::1",
         "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:169.254.169.254"],
    )  # fmt: skip
    def test_but_not_there(self, address: str) -> None:
        assert not Reach(on_loopback=False).permits(Purpose.COPY, plain_ip(address), 6714, ASKING)

    def test_loopback_only_from_a_depot_on_it(self) -> None:
        assert Reach(on_loopback=True).permits(Purpose.COPY, plain_ip("127.0.0.1"), 6714, ASKING)

    def test_admin_ports(self) -> None:
        reach = Reach(admin_ports=frozenset({9100}), own=frozenset({plain_ip("192.0.2.1")}))
        assert not reach.permits(Purpose.COPY, plain_ip("127.0.0.1"), 9100, ASKING)
        assert not reach.permits(Purpose.COPY, plain_ip("192.0.2.1"), 9100, ASKING)
        assert reach.permits(Purpose.COPY, plain_ip("192.0.2.2"), 9100, ASKING)

    def test_raw_bytes_only_to_who_asks(self) -> None:
        assert Reach().permits(Purpose.RAW, ASKING, 1, ASKING)
        assert not Reach().permits(Purpose.RAW, plain_ip("192.0.2.8"), 1, ASKING)
        assert Reach().permits(Purpose.RAW, plain_ip("127.0.0.1"), 1, None)
        assert not Reach().permits(Purpose.RAW, ASKING, 1, None)

    def test_denied_wins(self) -> None:
        net = Places.parse("192.0.2.0/24:80")
        reach = Reach(copy_allowed=(net,), copy_denied=(Places.parse("192.0.2.7:1-100"),))
        assert not reach.permits(Purpose.COPY, ASKING, 80, ASKING)
        assert Reach(copy_allowed=(Places.parse("169.254.0.0/16"),)).permits(
            Purpose.COPY, plain_ip("169.254.1.1"), 1, ASKING
        )

    @pytest.mark.parametrize(
        ("text", "places"),
        [
            ("10.0.0.0/8", Places(ip_network("10.0.0.0/8"))),
            ("10.1.2.3:80", Places(ip_network("10.1.2.3"), 80, 80)),
            ("10.0.0.0/8:1-5", Places(ip_network("10.0.0.0/8"), 1, 5)),
            ("fd00::/8", Places(ip_network("fd00::/8"))),
            ("[fd00::/8]:80", Places(ip_network("fd00::/8"), 80, 80)),
            ("[fd00::]/8:80-81", Places(ip_network("fd00::/8"), 80, 81)),
        ],
    )
    def test_parsed(self, text: str, places: Places) -> None:
        assert Places.parse(text) == places

    @given(st.text(alphabet="0123456789.:/[]-x", max_size=20))
    def test_nonsense_is_a_wrong_call(self, text: str) -> None:
        with suppress(UsageError):
            Places.parse(text)


class TestAccess:
    def test_over_the_wire(self, in_process: InProcess) -> None:
        access = Access(allocate=(ip_network("10.0.0.0/8"),))
        depot = in_process(listen=HERE, access=access)
        client, local = depot.connect_tcp(), depot.connect()
        assert client.code("1 1 1 2 1 600 1000 10") == -44
        read, write, manage = local.allocate()
        client.store(write, b"data")
        assert client.code(f"1 14 {manage} 1 0 0 0 10") == -44
        assert client.code("1 4 3 10") == 1
        client.close()
        local.close()
        assert read

    def test_data(self, in_process: InProcess) -> None:
        depot = in_process(listen=HERE, access=Access(data=(ip_network("10.0.0.0/8"),)))
        client = depot.connect_tcp()
        read, write, manage = client.allocate()
        assert client.code(f"1 8 {read} 1 0 0 10") == -44
        assert client.code(f"1 9 {manage} 1 40 3 10") == -44
        assert client.code(f"1 2 {write} 1 5 10") == -44
        assert client.is_sent_away()
        client.close()

    def test_limits_by_password_and_network(self, in_process: InProcess, tmp_path: Path) -> None:
        depot = in_process(listen=HERE, password="secret")
        client = depot.connect_tcp()
        assert client.code("0 4 2 wrong 10") == -29
        assert client.is_sent_away()
        client.close()
        client = depot.connect_tcp()
        assert client.ask("0 4 2 secret 10") == b"1 \n"
        assert client.ask("100 50 5").split() == [b"100", b"0", b"100", b"0", b"432000"]
        assert client.code("1 1 1 2 1 600 105000000 10") == -19
        assert client.code("1 1 1 2 1 432001 100 10") == -28
        client.close()
        closed = in_process(store=tmp_path / "x", listen=HERE, password="secret", access=Access(admin=()))
        client = closed.connect_tcp()
        assert client.code("0 4 2 secret 10") == -44
        client.close()


class TestResources:
    def test_each_has_its_keys_and_room(self, in_process: InProcess, tmp_path: Path) -> None:
        more = ((tmp_path / "r2", 5000), (tmp_path / "r3", 3000))
        client = in_process(capacity=1000, resources=more).connect()
        assert client.ask("1 4 3 10") == b"1 1 2 3 \n"
        assert client.code("1 1 1 2 1 600 2000 10") == -19
        assert b"/3#" in client.ask("1 1 3 2 1 600 2000 10")
        assert b"/2#" in client.ask("1 1 0 2 1 600 4000 10")
        assert client.code("1 1 0 2 1 600 4000 10") == -19
        assert client.code("1 1 4 2 1 600 10 10") == -50
        read, write, _ = client.allocate(size=100)
        client.store(write, b"data")
        assert client.load(read, 0, 4) == b"data"
        client.close()

    def test_numbers_stay_with_their_directories(self, in_process: InProcess, tmp_path: Path) -> None:
        two, three = (tmp_path / "r2", 5000), (tmp_path / "r3", 5000)
        in_process(store=tmp_path / "s", capacity=1000, resources=(two, three))
        assert (tmp_path / "r3" / "rid").read_text() == "3\n"


class TestRevocation:
    def test_age_times_size_largest_first(self, in_process: InProcess) -> None:
        depot = in_process(capacity=10_000)
        client = depot.connect()

        def volatile(size: int) -> str:
            return client.ask(f"1 1 1 1 1 600 {size} 10").decode().split()[3].split("/")[3]  # type: ignore[no-any-return]

        small = volatile(1000)
        depot.clock.now += 10
        large = volatile(4000)
        depot.clock.now += 2  # small: 12 * 1000, large: 2 * 4000
        stable = client.allocate(size=4000)[2]
        assert client.code("1 1 1 1 1 600 2000 10") == -19  # for a volatile one nobody goes
        assert client.probe(small)
        client.allocate(size=2000)
        assert client.code(f"1 9 {small} 1 40 3 10") == -4
        assert client.probe(large)
        assert client.code("1 1 1 2 1 600 9000 10") == -19  # not for what would not fit even so
        assert client.probe(large)
        assert client.ask(f"1 9 {stable} 1 43 3 7000 600 2 10") == b"1 \n"
        assert client.code(f"1 9 {large} 1 40 3 10") == -4
        client.close()
