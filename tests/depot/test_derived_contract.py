"""Aliases, new keys, split and merge, vectors, digests and copies on the wire, in each setting."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def client(any_depot: Any) -> Iterator[Any]:
    client = any_depot.connect()
    yield client
    client.close()


def caps(reply: bytes) -> list[str]:
    assert reply.startswith(b"1 ibp://"), reply
    return reply.decode().split()[1:]


def keys(reply: bytes) -> list[str]:
    return [capability.split("/")[3] for capability in caps(reply)]


class TestAlias:
    def test_sees_its_window_only(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"0123456789abcdef")
        a_read, a_write, a_manage = keys(client.ask(f"1 14 {manage} 1 2 10 0 10"))
        assert client.load(a_read, 0, 10) == b"23456789ab"
        assert client.code(f"1 8 {a_read} 1 5 6 10") == -19
        client.write(a_write, 0, b"ALI")
        assert client.load(read, 0, 6) == b"01ALI5"
        assert client.ask(f"1 15 {a_manage} 1 40 3 10").split()[:5] == [b"1", b"1", b"0", b"2", b"10"]
        assert client.probe(a_manage)[2:4] == [10, 10]
        assert client.ask(f"1 35 {a_read} 1 2 0 3 9 1 10") == b"1 4 \n"
        assert client.read(4) == b"ALIb"
        assert client.code(f"1 13 {a_write} 1 9 2 10") == -19
        assert client.is_sent_away()

    def test_of_all(self, client: Any) -> None:
        read, write, manage = client.allocate()
        a_read, a_write, a_manage = keys(client.ask(f"1 14 {manage} 1 0 0 0 10"))
        client.store(a_write, b"through the alias")
        assert client.load(read, 0, 17) == client.load(a_read, 0, 17) == b"through the alias"
        assert client.ask(f"1 15 {a_manage} 1 40 3 10").split()[3:5] == [b"0", b"0"]
        assert write

    def test_appends_inside_its_window(self, client: Any) -> None:
        read, write, manage = client.allocate()
        a_write = keys(client.ask(f"1 14 {manage} 1 100 10 0 10"))[1]
        client.store(a_write, b"12345")
        client.store(a_write, b"67890")
        assert client.load(read, 100, 10) == b"1234567890"
        assert client.code(f"1 2 {a_write} 1 1 10") == -19
        assert client.is_sent_away()
        assert write

    def test_revoked_at_once(self, any_depot: Any, client: Any) -> None:
        _, write, manage = client.allocate()
        client.store(write, b"0123456789")
        a_read, a_write, a_manage = keys(client.ask(f"1 14 {manage} 1 0 0 0 10"))
        writer = any_depot.connect()
        writer.send(f"1 2 {a_write} 1 8 10\nhalf")
        assert writer.line() == b"1 \n"
        assert client.code(f"1 15 {a_manage} 1 42 1 {a_manage} 1 10") == -10
        assert client.ask(f"1 15 {a_manage} 1 42 1 {manage} 1 10") == b"1 \n"
        assert client.code(f"1 8 {a_read} 1 0 1 10") == -4
        writer.send(b"rest")
        assert writer.line() == b"-4 \n"
        writer.close()
        assert client.probe(manage)[2] == 10

    def test_ends_with_its_parent(self, client: Any) -> None:
        manage = client.allocate()[2]
        a_manage = keys(client.ask(f"1 14 {manage} 1 0 0 0 10"))[2]
        assert client.ask(f"1 9 {manage} 1 42 1 10") == b"1 \n"
        assert client.code(f"1 15 {a_manage} 1 40 3 10") == -4

    def test_changed_in_both_forms(self, client: Any) -> None:
        manage = client.allocate()[2]
        a_manage = keys(client.ask(f"1 14 {manage} 1 2 10 0 10"))[2]
        assert client.ask(f"1 15 {a_manage} 1 43 4 8 0 {manage} 1 10") == b"1 \n"
        assert client.ask(f"1 15 {a_manage} 1 40 3 10").split()[3:5] == [b"4", b"8"]
        assert client.ask(f"1 15 {a_manage} 1 43 3 5 9 60 {manage} 1 10") == b"1 \n"
        fields = client.ask(f"1 15 {a_manage} 1 40 3 10").split()
        assert fields[3:5] == [b"5", b"9"]
        assert 50 < int(fields[5]) <= 60

    def test_refusals(self, client: Any) -> None:
        manage = client.allocate()[2]
        a_manage = keys(client.ask(f"1 14 {manage} 1 0 0 0 10"))[2]
        assert client.code(f"1 14 {manage} 1 400 601 0 10") == -19
        assert client.code(f"1 14 {a_manage} 1 0 0 0 10") == -25
        for fields in ("42 1", "41 1", "43 3 10 10 2", "45 5"):
            assert client.code(f"1 9 {a_manage} 1 {fields} 10") == -25
        assert client.code(f"1 15 {manage} 1 40 3 10") == -25
        assert client.code(f"1 15 {a_manage} 1 44 3 10") == -21


class TestKeysAndParts:
    def test_rename(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"data")
        new = keys(client.ask(f"1 16 {manage} 1 10"))
        assert client.code(f"1 8 {read} 1 0 4 10") == -4
        assert client.code(f"1 9 {manage} 1 40 3 10") == -4
        assert client.load(new[0], 0, 4) == b"data"
        client.store(new[1], b"more")
        assert client.probe(new[2])[2] == 8

    def test_split_and_merge(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.store(write, b"m" * 800)
        child = keys(client.ask(f"1 18 {manage} 1 2 1 600 400 10"))
        assert client.probe(manage)[2:4] == [600, 600]
        assert client.probe(child[2])[:4] == [1, 0, 0, 400]
        client.store(child[1], b"c" * 400)
        assert client.load(read, 0, 600) == b"m" * 600
        assert client.code(f"1 18 {manage} 1 2 1 600 4000 10") == -19
        assert client.ask(f"1 19 {manage} 1 {child[2]} 1 10") == b"1 \n"
        assert client.probe(manage)[2:4] == [600, 1000]
        assert client.code(f"1 9 {child[2]} 1 40 3 10") == -4
        assert client.code(f"1 19 {manage} 1 {manage} 1 10") == -30

    def test_merge_wants_a_child_of_nobody_else(self, client: Any) -> None:
        manage = client.allocate()[2]
        child = client.allocate()[2]
        assert client.ask(f"1 9 {child} 1 41 1 10") == b"1 \n"
        assert client.code(f"1 19 {manage} 1 {child} 1 10") == -20
        assert client.probe(child)[0] == 2


class TestVectors:
    def test_written_and_read(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.send(f"1 33 {write} 1 3 0 3 200 4 10 0 10\nVVVvvvv")
        assert (client.line(), client.line()) == (b"1 \n", b"1 7 \n")
        assert client.probe(manage)[2] == 204
        assert client.ask(f"1 35 {read} 1 3 0 3 200 4 1 1 10") == b"1 8 \n"
        assert client.read(8) == b"VVVvvvvV"
        assert client.load(read, 3, 197) == bytes(197)

    def test_many_and_large_elements(self, client: Any) -> None:
        size = 3_000_000
        read, write, _ = client.allocate(size=size)
        data = os.urandom(size)
        client.store(write, data)
        ranges = [(n * 700, 5 + n % 90) for n in range(4000)] + [(100, 500_000), (7, 200_000)]
        fields = " ".join(f"{offset} {length}" for offset, length in ranges)
        expected = b"".join(data[offset : offset + length] for offset, length in ranges)
        assert client.ask(f"1 35 {read} 1 {len(ranges)} {fields} 10") == b"1 %d \n" % len(expected)
        assert client.read(len(expected)) == expected

    @pytest.mark.parametrize(("fields", "code"), [("0 10", 1), ("4097 0 1", -30), ("1 15 10", -19), ("-1 10", -30)])
    def test_limits(self, client: Any, fields: str, code: int) -> None:
        read, write, _ = client.allocate()
        client.store(write, b"0123456789")
        assert client.code(f"1 35 {read} 1 {fields} 10") == code

    def test_nothing_is_written_past_the_maximum(self, client: Any) -> None:
        _, write, _ = client.allocate()
        assert client.code(f"1 33 {write} 1 2 0 3 998 4 10") == -19
        assert client.is_sent_away()


NAMES = {1: "sha256", 2: "sha512", 3: "sha1", 4: "md5"}


def framed(data: bytes, kind: int, block: int) -> bytes:
    pieces = [data[at : at + block] for at in range(0, len(data), block)]
    return b"".join(piece + hashlib.new(NAMES[kind], piece).hexdigest().encode() for piece in pieces)


class TestDigests:
    @pytest.mark.parametrize("kind", NAMES)
    @pytest.mark.parametrize("block", [1, 16, 1000])
    def test_between_the_bytes(self, client: Any, kind: int, block: int) -> None:
        read, write, _ = client.allocate()
        data = os.urandom(333)
        client.send(f"1 27 {kind} {block} {write} 1 5 333 10\n".encode() + framed(data, kind, block))
        assert (client.line(), client.line()) == (b"1 \n", b"1 333 \n")
        expected = framed(data, kind, block)
        assert client.ask(f"1 24 {kind} {block} {read} 1 5 333 10") == b"1 333 \n"
        assert client.read(len(expected)) == expected
        halves = framed(data[:10] + data[20:30], kind, block)
        assert client.ask(f"1 36 {kind} {block} {read} 1 2 5 10 25 10 10") == b"1 20 \n"
        assert client.read(len(halves)) == halves

    def test_a_wrong_one(self, client: Any) -> None:
        read, write, manage = client.allocate()
        client.send(f"1 28 4 16 {write} 1 8 10\n".encode() + b"aaaaaaaa" + b"0" * 32)
        assert (client.line(), client.line()) == (b"1 \n", b"-63 \n")
        assert client.probe(manage)[2] == 0
        client.send(f"1 34 4 16 {write} 1 2 0 10 100 10 10\n".encode() + framed(b"e" * 10 + b"f" * 10, 4, 16))
        assert (client.line(), client.line()) == (b"1 \n", b"1 20 \n")
        assert client.load(read, 100, 10) == b"f" * 10

    @pytest.mark.parametrize(("line", "code"), [("24 0 16", -64), ("24 9 16", -64), ("24 4 0", -65), ("36 4 -1", -65)])
    def test_unknown_ones(self, client: Any, line: str, code: int) -> None:
        read = client.allocate()[0]
        assert client.code(f"1 {line} {read} 1 0 8 10") == code

    @pytest.mark.parametrize(("fields", "code"), [("9 1024", -64), ("4 0", -65), ("4 3000000000", -65)])
    def test_allocations_refused(self, client: Any, fields: str, code: int) -> None:
        assert client.code(f"1 29 {fields} 1 2 1 600 10000 10") == code
        client.allocate()

    def test_kept_on_disk(self, client: Any) -> None:
        read, write, manage = keys(client.ask("1 29 1 100 1 2 1 600 10000 10"))
        data = os.urandom(450)
        client.store(write, data[:130])
        client.store(write, data[130:])
        client.write(write, 50, b"changed")
        data = data[:50] + b"changed" + data[57:]
        client.write(write, 1000, b"behind a hole")
        data += bytes(550) + b"behind a hole"
        assert client.load(read, 0, len(data)) == data
        self._fits(client, manage, data, 100)
        assert client.ask(f"1 9 {manage} 1 45 333 10") == b"1 \n"
        self._fits(client, manage, data[:333], 100)
        assert client.ask(f"1 9 {manage} 1 45 10000 10") == b"1 \n"
        client.write(write, 1033, b"x")
        self._fits(client, manage, data[:333] + bytes(700) + b"x", 100)

    @staticmethod
    def _fits(client: Any, manage: str, data: bytes, block: int) -> None:
        digests = b"".join(hashlib.sha256(data[at : at + block]).digest() for at in range(0, len(data), block))
        report = b"1 1 32 %d %d %d \n" % (block, len(digests) // 32, len(digests))
        assert client.ask(f"1 31 {manage} 1 1 10") == report
        assert client.ask(f"1 31 {manage} 1 0 10") == report
        assert client.read(len(digests)) == digests
        assert client.ask(f"1 32 {manage} 1 0 10") == b"1 0 \n"

    def test_none_kept(self, client: Any) -> None:
        manage = keys(client.ask("1 29 0 0 1 2 1 600 10000 10"))[2]
        assert client.code(f"1 31 {manage} 1 1 10") == -63
        assert client.ask(f"1 32 {manage} 1 0 10") == b"1 0 \n"

    def test_a_large_hole_costs_nothing(self, client: Any) -> None:
        _, write, manage = keys(client.ask("1 29 4 1000 1 2 1 600 500000000 10"))
        client.write(write, 499_999_999, b"x")
        assert client.ask(f"1 32 {manage} 1 0 10") == b"1 0 \n"


class TestCopiesInside:
    def test_send_push_pull(self, client: Any) -> None:
        read, write, _ = client.allocate()
        client.store(write, b"0123456789")
        target = caps(client.ask("1 1 1 2 1 600 1000 10"))
        there = [capability.split("/")[3] for capability in target]
        assert client.ask(f"1 5 {read} {target[1]} 1 5 5 5 5 5") == b"1 5 \n"
        assert client.ask(f"1 20 1 {read} {target[1]} 1 0 3 4 5 5 5") == b"1 4 \n"
        assert client.ask(f"1 20 1 {read} {target[1]} 1 8 -1 2 5 5 5") == b"1 2 \n"
        assert client.load(there[0], 0, 9) == b"567012389"
        assert client.ask(f"1 21 1 {write} {target[0]} 1 -1 0 3 5 5 5") == b"1 3 \n"
        assert client.ask(f"1 21 1 {write} {target[0]} 1 0 3 3 5 5 5") == b"1 3 \n"
        assert client.load(read, 0, 13) == b"0123456789567"

    def test_refusals(self, client: Any) -> None:
        read, write, _ = client.allocate()
        client.store(write, b"0123456789")
        target = caps(client.ask("1 1 1 2 1 600 20 10"))
        assert client.code(f"1 5 {read} {target[1]} 1 5 50 5 5 5") == -19
        assert client.code(f"1 5 {read} {target[0]} 1 5 5 5 5 5") == -11
        assert client.code(f"1 5 {read} {target[1]} 1 5 5 5 0 0") == -30
        assert client.code(f"1 20 9 {read} {target[1]} 1 0 3 4 5 5 5") == -22
        assert client.code(f"1 20 1 {read} {target[1]} 1 0 -2 4 5 5 5") == -30
        client.store(read.replace(read, write), b"x" * 20)
        assert client.code(f"1 5 {read} {target[1]} 1 0 25 5 5 5") == -19
