"""BUFFER, FIFO and circular queue on the wire, in each setting a depot can run in."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

BUFFER, FIFO, CIRQ = 2, 3, 4


@pytest.fixture
def client(any_depot: Any) -> Iterator[Any]:
    client = any_depot.connect()
    yield client
    client.close()


@pytest.fixture
def other(any_depot: Any) -> Iterator[Any]:
    client = any_depot.connect()
    yield client
    client.close()


def make(client: Any, kind: int, size: int = 10) -> list[str]:
    reply = client.ask(f"0 1 2 {kind} 600 {size} 5").decode()
    assert reply.startswith("1 ibp://")
    return [capability.split("/")[3] for capability in reply.split()[1:]]


def take(client: Any, key: str, length: int, seconds: int = 0) -> bytes:
    one, number = client.ask(f"0 8 {key} 1 0 {length} {seconds}").split()
    assert one == b"1"
    return client.read(int(number))


class TestBuffer:
    def test_holds_what_was_stored_last(self, client: Any) -> None:
        read, write, manage = make(client, BUFFER)
        client.store(write, b"0123456789")
        client.store(write, b"wxyz")
        assert client.load(read, 0, 4) == b"wxyz"
        assert client.load(read, 1, 2) == b"xy"
        assert client.code(f"1 8 {read} 1 0 5 1") == -19
        assert client.probe(manage)[2:4] == [4, 10]
        assert client.probe(manage)[6] == BUFFER

    def test_no_more_than_its_size(self, client: Any) -> None:
        read, write, _ = make(client, BUFFER)
        client.store(write, b"old")
        assert client.code(f"0 2 {write} 1 11 1") == -19
        assert client.is_sent_away()
        assert read

    def test_the_old_content_stays_until_the_new_one_is_whole(self, any_depot: Any, client: Any) -> None:
        read, write, _ = make(client, BUFFER, 100)
        client.store(write, b"old content")
        broken = any_depot.connect()
        broken.send(f"0 2 {write} 1 50 5\nhalf")
        assert broken.line() == b"1 \n"
        assert client.load(read, 0, 11) == b"old content"
        broken.close()
        client.store(write, b"new")
        assert client.load(read, 0, 3) == b"new"


class TestFifo:
    def test_first_in_first_out_around_the_ring(self, client: Any) -> None:
        read, write, manage = make(client, FIFO)
        client.store(write, b"abcdef")
        assert take(client, read, 4) == b"abcd"
        client.store(write, b"ghijklmn")
        assert client.probe(manage)[2:4] == [10, 10]
        assert take(client, read, 10) == b"efghijklmn"
        assert client.probe(manage)[2] == 0

    def test_nothing_there(self, client: Any) -> None:
        read, _, _ = make(client, FIFO)
        begun = time.monotonic()
        assert client.code(f"0 8 {read} 1 0 3 0") == -1
        assert time.monotonic() - begun < 0.9
        assert client.code(f"0 8 {read} 1 0 3 1") == -1
        assert time.monotonic() - begun > 0.9

    def test_waits_and_gives_what_there_is(self, client: Any) -> None:
        read, write, _ = make(client, FIFO)
        client.store(write, b"xyz")
        begun = time.monotonic()
        assert take(client, read, 5, 1) == b"xyz"
        assert time.monotonic() - begun > 0.9

    def test_a_reader_wakes_when_bytes_come(self, client: Any, other: Any) -> None:
        read, write, _ = make(client, FIFO)
        client.send(f"0 8 {read} 1 0 6 20\n")
        other.store(write, b"abc")
        other.store(write, b"def")
        assert client.line() == b"1 6 \n"
        assert client.read(6) == b"abcdef"

    def test_a_writer_wakes_when_room_comes(self, client: Any, other: Any) -> None:
        read, write, _ = make(client, FIFO)
        client.store(write, b"0123456789")
        client.send(f"0 2 {write} 1 4 20\nwxyz")
        assert take(other, read, 5) == b"01234"
        assert client.line() == b"1 \n"
        assert client.line() == b"1 4 \n"
        assert take(other, read, 9, 5) == b"56789wxyz"

    def test_no_room_in_time(self, client: Any, other: Any) -> None:
        _, write, manage = make(client, FIFO)
        client.store(write, b"0123456789")
        begun = time.monotonic()
        assert client.code(f"0 2 {write} 1 5 1") == -19
        assert time.monotonic() - begun > 0.9
        assert client.is_sent_away()
        assert other.code(f"0 2 {write} 1 11 60") == -19  # never: at once
        assert other.is_sent_away()
        assert manage

    def test_a_deleted_one_ends_the_waiting(self, client: Any, other: Any) -> None:
        read, _, manage = make(client, FIFO)
        client.send(f"0 8 {read} 1 0 6 30\n")
        time.sleep(0.1)  # so that it waits; a real socket is the subject
        assert other.ask(f"1 9 {manage} 1 42 1 10") == b"1 \n"
        assert client.line() == b"-4 \n"

    def test_many_readers_and_writers_lose_nothing(self, any_depot: Any, client: Any) -> None:
        read, write, manage = make(client, FIFO, 1000)
        records = [b"%08d" % n for n in range(400)]
        taken: list[bytes] = []

        def put(mine: list[bytes]) -> None:
            writer = any_depot.connect()
            for record in mine:
                writer.send(f"0 2 {write} 1 8 20\n".encode() + record)
                assert (writer.line(), writer.line()) == (b"1 \n", b"1 8 \n")
            writer.close()

        def get() -> None:
            reader = any_depot.connect()
            taken.extend(take(reader, read, 8, 20) for _ in range(100))
            reader.close()

        threads = [threading.Thread(target=put, args=(records[n::4],)) for n in range(4)]
        threads += [threading.Thread(target=get) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == records
        while client.probe(manage)[2]:  # the last ones leave when they have been sent, which may be after they came
            pass

    def test_a_reader_that_goes_away_takes_nothing(self, any_depot: Any, client: Any) -> None:
        size = 8 << 20
        read, write, manage = make(client, FIFO, size)
        client.store(write, bytes(size))
        gone = any_depot.connect()
        gone.send(f"0 8 {read} 1 0 {size} 5\n")
        assert gone.line() == b"1 %d \n" % size
        gone.close()
        assert len(take(client, read, size, 5)) == size
        assert client.probe(manage)[2] == 0

    @pytest.mark.parametrize("fields", ["43 3 50 600 2 10", "45 5 10"])
    def test_its_size_stays(self, client: Any, fields: str) -> None:
        manage = make(client, FIFO)[2]
        assert client.code(f"1 9 {manage} 1 {fields}") == -20
        assert client.ask(f"1 9 {manage} 1 43 3 10 600 2 10") == b"1 \n"

    def test_no_offsets(self, client: Any) -> None:
        read, write, _ = make(client, FIFO)
        assert client.code(f"1 35 {read} 1 1 0 1 1") == -22
        assert client.code(f"1 13 {write} 1 0 1 1") == -22
        assert client.is_sent_away()


class TestCircularQueue:
    def test_pushes_the_oldest_off(self, client: Any) -> None:
        read, write, manage = make(client, CIRQ)
        client.store(write, b"abcdef")
        client.store(write, b"ghijklm")
        assert client.probe(manage)[2:4] == [10, 10]
        assert take(client, read, 5) == b"defgh"
        assert client.probe(manage)[2] == 5
        assert take(client, read, 10, 1) == b"ijklm"

    def test_a_reader_wakes(self, client: Any, other: Any) -> None:
        read, write, _ = make(client, CIRQ)
        client.send(f"0 8 {read} 1 0 3 20\n")
        other.store(write, b"abc")
        assert client.line() == b"1 3 \n"
        assert client.read(3) == b"abc"

    def test_a_store_cut_off_pushes_nothing_off(self, any_depot: Any, client: Any) -> None:
        read, write, _ = make(client, CIRQ)
        client.store(write, b"0123456789")
        broken = any_depot.connect()
        broken.send(f"0 2 {write} 1 8 5\nhalf")
        assert broken.line() == b"1 \n"
        broken.close()
        client.store(write, b"")  # waits for its turn
        assert take(client, read, 10) == b"0123456789"

    def test_too_much(self, client: Any) -> None:
        _, write, _ = make(client, CIRQ)
        assert client.code(f"0 2 {write} 1 11 60") == -19
        assert client.is_sent_away()

    def test_the_last_of_many(self, client: Any) -> None:
        read, write, _ = make(client, CIRQ, 64)
        written = b""
        for n in range(100):
            record = b"%d," % n
            client.store(write, record)
            written += record
        assert take(client, read, 64) == written[-64:]


def test_send_to_a_fifo_stores_into_it(client: Any) -> None:
    reply = client.ask("0 1 2 3 600 100 5").decode()
    target = reply.split()[2]
    fifo = [capability.split("/")[3] for capability in reply.split()[1:]]
    read, write, _ = client.allocate()
    client.store(write, b"0123456789")
    assert client.ask(f"0 5 {read} {target} 1 2 4 5 5 5 ") == b"1 4 \n"
    assert take(client, fifo[0], 4) == b"2345"
