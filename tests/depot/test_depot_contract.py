"""What anything that calls itself a depot does, on the wire, in each setting it can run in."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ibpfs.depot.wire.protocol import MAX_LINE

MAX_LEASE = 30 * 86400


@pytest.fixture
def client(any_depot: Any) -> Iterator[Any]:
    client = any_depot.connect()
    yield client
    client.close()


class TestAllocate:
    @pytest.mark.parametrize("version", [0, 1])
    def test_three_separate_keys(self, client: Any, version: int) -> None:
        keys = client.allocate(version=version)
        assert len(set(keys)) == 3
        assert all(key.startswith("1#") and len(key) == 34 for key in keys)

    def test_capabilities_name_their_kind_and_a_decimal_type_key(self, client: Any) -> None:
        capabilities = client.ask("1 1 1 2 1 600 1000 10").decode().split()[1:]
        assert [c.rsplit("/", 1)[1] for c in capabilities] == ["READ", "WRITE", "MANAGE"]
        assert all(int(c.split("/")[4]) < 2**31 for c in capabilities)

    def test_fits_libdlts_only_receive(self, client: Any) -> None:
        assert len(client.ask("1 1 1 2 1 600 1000 10")) < 1024

    @pytest.mark.parametrize(("version", "writers"), [(0, 1), (1, 0)])
    def test_counts_at_birth(self, client: Any, version: int, writers: int) -> None:
        manage = client.allocate(size=77, version=version)[2]
        assert client.probe(manage)[:4] == [1, writers, 0, 77]

    @pytest.mark.parametrize(
        "line",
        [
            "1 1 1 2 1 600 1000 0",
            "1 1 1 2 1 600 1000",
            "  1   1  1 2   1 600  1000   10   ",
            "1 1 0 2 1 600 1000 10",
            "1 1 1 1 1 600 1000 10",
            "7 1 1 2 1 600 1000 10",
            "1 1 1 2 1 600 1000 10 extra 5",
            "0 1 2 1 600 1000 0.5",
            f"1 1 1 2 1 {MAX_LEASE} 1000 10",
        ],
    )
    def test_accepted(self, client: Any, line: str) -> None:
        assert client.ask(line).startswith(b"1 ibp://")

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            ("1 1 77 2 1 600 1000 10", -50),
            ("1 1 1 7 1 600 1000 10", -21),
            ("1 1 1 2 9 600 1000 10", -30),
            ("1 1 1 2 1 0 1000 10", -30),
            ("1 1 1 2 1 -5 1000 10", -30),
            (f"1 1 1 2 1 {MAX_LEASE + 1} 1000 10", -28),
            ("0 1 2 1 0 1000 10", -28),
            ("1 1 1 2 1 600 0 10", -30),
            ("1 1 1 2 1 600 -1 10", -30),
            ("1 1 1 2 1 600 999999999999999 10", -19),
            ("1 1 1 2 1 600 99999999999999999999999999 10", -21),
            ("1 1 1 2", -21),
        ],
    )
    def test_refused_and_the_connection_kept(self, client: Any, line: str, code: int) -> None:
        assert client.ask(line) == b"%d \n" % code
        client.allocate()

    def test_as_long_as_possible(self, client: Any) -> None:
        manage = client.allocate(duration=-1)[2]
        assert MAX_LEASE - 10 < client.probe(manage)[4] <= MAX_LEASE


class TestStoreAndLoad:
    def test_appends(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"0123456789")
        client.store(write, b"abcde", version=0)
        assert client.load(read, 0, 15) == b"0123456789abcde"
        assert client.load(read, 5, 7) == b"56789ab"
        assert client.probe(manage)[2] == 15

    def test_waiting_for_ready(self, client: Any) -> None:
        read, write, _ = client.allocate()
        assert client.ask(f"0 2 {write} 1 5 0") == b"1 \n"
        client.send(b"hello")
        assert client.line() == b"1 5 \n"
        assert client.load(read, 0, 5) == b"hello"

    def test_large(self, client: Any) -> None:
        data = os.urandom(5_000_001)
        read, write, _ = client.allocate(size=len(data))
        client.store(write, data)
        assert client.load(read, 0, len(data)) == data
        assert client.load(read, 123_456, 3_000_000) == data[123_456:3_123_456]

    def test_nothing(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"")
        assert client.load(read, 0, 0) == b""
        client.write(write, 500, b"")
        assert client.probe(manage)[2] == 0

    @pytest.mark.parametrize(("offset", "length"), [(10, 10), (0, 5000), (2**62, 2**62)])
    def test_load_is_all_or_nothing(self, client: Any, offset: int, length: int) -> None:
        read, write, _ = client.allocate()
        client.store(write, b"x" * 15)
        assert client.ask(f"1 8 {read} 1 {offset} {length} 10") == b"-19 \n"
        assert client.load(read, 14, 1) == b"x"

    def test_negative_ranges(self, client: Any) -> None:
        read, write, _ = client.allocate()
        assert client.ask(f"1 8 {read} 1 -3 5 10") == b"-30 \n"
        assert client.ask(f"1 8 {read} 1 0 -5 10") == b"-30 \n"
        assert client.ask(f"1 13 {write} 1 -1 4 10") == b"-30 \n"
        assert client.is_sent_away()

    def test_write_leaves_holes_of_zeros(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"0123456789")
        client.write(write, 3, b"WXYZ")
        client.write(write, 100, b"HOLE")
        assert client.load(read, 0, 104) == b"012WXYZ789" + bytes(90) + b"HOLE"
        assert client.probe(manage)[2] == 104

    def test_lstore_writes_the_last_byte_first(self, client: Any) -> None:
        read, write, manage = client.allocate(size=1_000_000)
        client.write(write, 999_999, b"\0")
        client.write(write, 0, b"begin")
        assert client.load(read, 0, 10) == b"begin" + bytes(5)
        assert client.ask(f"1 9 {manage} 1 45 5 3600") == b"1 \n"
        assert client.probe(manage)[2:4] == [5, 5]

    @pytest.mark.parametrize("opcode", ["2 {key} 1 999", "13 {key} 1 998 4", "13 {key} 1 9223372036854775807 1"])
    def test_past_the_maximum(self, client: Any, opcode: str) -> None:
        _, write, _ = client.allocate()
        client.store(write, b"12")
        client.send(f"1 {opcode.format(key=write)} 10\nthis must not be read as a command\n1 4 3 10\n")
        assert client.line() == b"-19 \n"
        assert client.is_sent_away()

    def test_keys_grant_one_right_each(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"12345")
        assert client.code(f"1 8 {write} 1 0 5 10") == -4
        assert client.code(f"1 8 {manage} 1 0 5 10") == -4
        assert client.code(f"1 9 {read} 1 41 1 10") == -4
        assert client.code(f"1 9 {write} 1 43 3 5000 600 -1 10") == -4
        assert client.code("1 8 1#nosuchkey 1 0 5 10") == -4
        assert client.code(f"1 8 99#{read[2:]} 1 0 5 10") == -50
        assert client.code(f"1 2 {read} 1 5 10") == -4
        assert client.is_sent_away()

    def test_type_key_is_anything(self, client: Any) -> None:
        read, write, _ = client.allocate()
        client.store(write, b"12345")
        assert client.ask(f"1 8 {read} READ 0 5 10") == b"1 5 \n"

    def test_pipelined_with_its_data(self, client: Any) -> None:
        read, write, _ = client.allocate()
        client.send(f"1 13 {write} 1 0 4 10\nPIPE1 8 {read} 1 0 4 10\n")
        assert client.read(17) == b"1 \n1 4 \n1 4 \nPIPE"

    def test_hundred_pipelined_stores_and_loads(self, client: Any) -> None:
        read, write, _ = client.allocate(size=1000)
        stores = b"".join(f"1 2 {write} 1 10 10\n{n:10}".encode() for n in range(100))
        client.send(stores + b"".join(f"1 8 {read} 1 {10 * n} 10 10\n".encode() for n in range(100)))
        assert client.read(100 * 9) == b"1 \n1 10 \n" * 100
        assert client.read(100 * 16) == b"".join(f"1 10 \n{n:10}".encode() for n in range(100))

    def test_cut_off_store_leaves_the_size(self, any_depot: Any, client: Any) -> None:
        read, write, manage = client.allocate(size=10_000_000)
        client.store(write, b"kept")
        other = any_depot.connect()
        other.send(f"1 2 {write} 1 5000000 10\n".encode() + b"x" * 3_000_000)
        assert other.line() == b"1 \n"
        other.close()
        client.store(write, b" too")  # waits for its turn, so the other one is over after it
        assert client.probe(manage)[2] == 8
        assert client.load(read, 0, 8) == b"kept too"

    def test_stores_of_many_do_not_mix(self, any_depot: Any, client: Any) -> None:
        read, write, _ = client.allocate(size=8 * 100_000)

        def append(letter: bytes) -> None:
            other = any_depot.connect()
            other.store(write, letter * 100_000)
            other.close()

        threads = [threading.Thread(target=append, args=(bytes([65 + n]),)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        data = client.load(read, 0, 800_000)
        assert {data[n : n + 100_000] for n in range(0, 800_000, 100_000)} == {
            bytes([65 + n]) * 100_000 for n in range(8)
        }


class TestManage:
    def test_probe_shapes(self, client: Any) -> None:
        manage = client.allocate()[2]
        for shape in ("1 40 3 0 0 0 10", "1 40 3 10", "MANAGE 40 0 10485760 10800 2 5", "1 40 1 0 0 0 10 "):
            reply = [int(n) for n in client.ask(f"0 9 {manage} {shape}").split()]
            assert reply[:5] == [1, 1, 0, 0, 1000]
            assert 590 < reply[5] <= 600
            assert reply[6:] == [2, 1]

    def test_deleted_when_nobody_reads(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"12345")
        assert client.ask(f"1 9 {manage} 1 41 1 10") == b"1 \n"
        assert client.ask(f"0 9 {manage} MANAGE 42 1 10485760 10800 2 5") == b"1 \n"
        assert client.load(read, 0, 5) == b"12345"
        assert client.ask(f"1 9 {manage} 1 42 1 10") == b"1 \n"
        assert client.code(f"1 8 {read} 1 0 5 10") == -4
        assert client.code(f"1 9 {manage} 1 40 3 10") == -4
        assert client.code(f"1 9 {manage} 1 42 1 10") == -4

    def test_uncounted_writers_stay_writers(self, client: Any) -> None:
        _, write, manage = client.allocate(version=1)
        assert client.ask(f"1 9 {manage} 1 42 2 30") == b"1 \n"
        assert client.probe(manage)[:2] == [1, 0]
        client.store(write, b"still")

    def test_read_only_without_writers(self, client: Any) -> None:
        read, write, manage = client.allocate(version=0)
        client.store(write, b"12345")
        assert client.ask(f"0 9 {manage} 1 42 2 30") == b"1 \n"
        assert client.load(read, 0, 5) == b"12345"
        assert client.probe(manage)[:2] == [1, 0]
        assert client.code(f"0 2 {write} 1 5 30") == -5
        assert client.is_sent_away()

    def test_probe_by_any_of_the_three(self, client: Any) -> None:
        """LoRS asks with its read capabilities, before it renews a lease."""
        keys = client.allocate(size=77)
        for key in keys:
            assert client.probe(key)[:4] == [1, 0, 0, 77]
        assert client.ask(f"0 9 {keys[0]} 6714 40 0 0 0 0 0").startswith(b"1 1 0 0 77 ")

    def test_counting_manage_capabilities_does_nothing(self, client: Any) -> None:
        manage = client.allocate()[2]
        assert client.ask(f"1 9 {manage} 1 41 3 10") == b"1 \n"
        assert client.ask(f"1 9 {manage} 1 42 3 10") == b"1 \n"
        assert client.probe(manage)[:2] == [1, 0]

    def test_change(self, client: Any) -> None:
        manage = client.allocate()[2]
        assert client.ask(f"1 9 {manage} 1 43 3 2000 1200 -1 10") == b"1 \n"
        size, seconds, reliability = client.probe(manage)[3:6]
        assert (size, reliability) == (2000, 2)
        assert 1190 < seconds <= 1200
        assert client.ask(f"0 9 {manage} MANAGE 43 0 2000 600 1 5 ") == b"1 \n"
        assert client.probe(manage)[5] == 1

    @pytest.mark.parametrize("version", [0, 1])
    def test_change_of_the_size_alone(self, client: Any, version: int) -> None:
        """So says L-Store's client: -1 leaves a duration, or a reliability, as it is."""
        manage = client.allocate(duration=600)[2]
        assert client.ask(f"{version} 9 {manage} 1 43 3 2000 -1 -1 30") == b"1 \n"
        size, seconds, reliability = client.probe(manage)[3:6]
        assert (size, reliability) == (2000, 2)
        assert 590 < seconds <= 600

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ("43 3 5 1200 2 10", -20),
            ("43 3 0 1200 2 10", -20),
            ("43 3 2000 0 2 10", -30),
            ("43 3 2000 -2 2 10", -30),
            ("43 3 2000 99999999 2 10", -45),
            ("43 3 2000000000000 600 2 10", -19),
            ("44 3 10", -21),
            ("50 3 10", -21),
            ("45 -1 10", -30),
            ("45 2000000000000 10", -19),
        ],
    )
    def test_refused_and_nothing_changed(self, client: Any, fields: str, code: int) -> None:
        _, write, manage = client.allocate()
        client.store(write, b"0123456789")
        before = client.probe(manage)
        assert client.ask(f"1 9 {manage} 1 {fields}") == b"%d \n" % code
        after = client.probe(manage)
        assert before[:4] == after[:4]
        assert before[4] - 5 <= after[4] <= before[4]

    def test_truncate(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"0123456789")
        assert client.ask(f"1 9 {manage} 1 45 4 10") == b"1 \n"
        assert client.probe(manage)[2:4] == [4, 4]
        assert client.ask(f"1 9 {manage} 1 45 500 10") == b"1 \n"
        assert client.probe(manage)[2:4] == [4, 500]
        client.write(write, 8, b"89")
        assert client.load(read, 0, 10) == b"0123" + bytes(4) + b"89"


class TestStatus:
    def test_version_0(self, client: Any) -> None:
        client.allocate(size=3 << 20)
        line = client.ask("0 4 1 ibp 5 ")
        assert line.endswith(b" \n")
        total, used, *rest = (int(number) for number in line.split())
        assert rest == [total, used, MAX_LEASE]
        assert total == 1024
        assert 0 < used < 1024

    @pytest.mark.parametrize("rid", [0, 1])
    def test_version_1(self, client: Any, rid: int) -> None:
        before = self._tags(client, rid)
        client.allocate(size=63_000)
        tags = self._tags(client, rid)
        assert (tags["VS"], tags["RID"], tags["RT"]) == ("1.4:1.0", "1", "1")
        assert int(tags["CT"]) == 1 << 30
        assert int(tags["UT"]) - int(before["UT"]) == 63_000
        assert int(tags["AT"]) <= (1 << 30) - int(tags["UT"])
        assert int(tags["DR"]) == MAX_LEASE
        assert client.ask("1 4 3 10") == b"1 1 \n"  # the text was as long as announced

    @staticmethod
    def _tags(client: Any, rid: int) -> dict[str, str]:
        one, length = client.ask(f"1 4 {rid} 1 ibp 30").split()
        assert one == b"1"
        text = client.read(int(length)).decode()
        assert text.endswith(" RE \n")
        return dict(tag.split(":", 1) for tag in text.split() if ":" in tag)

    def test_unknown_resource(self, client: Any) -> None:
        assert client.code("1 4 99 1 ibp 10") == -50

    def test_version_text(self, client: Any) -> None:
        assert client.ask("1 4 5 30").split() == [b"1"]
        lines = list(iter(client.line, b"END\n"))
        assert lines[0].startswith(b"ibpfs-depot ")

    def test_statistics_are_not_offered(self, client: Any) -> None:
        assert client.code("1 4 4 0 10") == -25

    def test_limits_are_not_changed_over_the_wire(self, client: Any) -> None:
        client.send("0 4 2 ibp 10\n1000 1000 1000\n")
        assert client.line() == b"-25 \n"
        assert client.is_sent_away()


class TestUnderstanding:
    @pytest.mark.parametrize("opcode", [-1, 0, 6, 10, 11, 12, 17, 22, 23, 25, 26, 37, 90, 99, 500])
    def test_not_offered_and_the_connection_kept(self, client: Any, opcode: int) -> None:
        assert client.ask(f"1 {opcode} 1 2 3 4 10") == b"-43 \n"
        client.allocate()

    @pytest.mark.parametrize("garbage", [b"hello world\n", b"\n", b"1\n", b"GET / HTTP/1.0\r\n\r\n", b"\xff\xfe\n"])
    def test_no_command(self, client: Any, garbage: bytes) -> None:
        client.send(garbage)
        assert client.line() == b"-21 \n"
        assert client.is_sent_away()

    def test_endless_line(self, client: Any) -> None:
        client.send(b"1 8 " + b"9" * (MAX_LINE + 1000))
        assert client.line() == b"-21 \n"
        assert client.is_sent_away()

    def test_commands_in_pieces(self, client: Any) -> None:
        for byte in b"1 4 3 10\n":
            client.send(bytes([byte]))
        assert client.line() == b"1 1 \n"

    def test_our_end_is_answered_with_theirs(self, client: Any) -> None:
        client.allocate()
        client.sock.shutdown(1)
        assert client.read(100) == b""
