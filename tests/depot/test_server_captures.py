"""Client streams recorded from real programs, said again to our depot.

`captures/raw_dl.jsonl`: one case a line, as it went between a hand-made client and an `ibp_server` 1.6.8. Keys are
replaced by those that our depot gave out for the same ALLOCATE. Its answers must be those of the recording, except
where the recorded depot had a bug, or was stricter, or is set up differently: these are named here, with the reason.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

RECORDING = Path(__file__).parent / "captures" / "raw_dl.jsonl"
CASES = [json.loads(line) for line in RECORDING.read_text().splitlines()]
KEY = re.compile(r"[12]#[A-Za-z0-9+-]{32}")

OURS: dict[str, str | None] = {
    "allocate duration -5": "-30 \n",  # accepted there by mistake
    "load negative offset": "-30 \n",  # answered there with bytes of its own file header
    "write negative offset": "-30 \n",  # taken there as "append"
    "store with write count 0": "-5 \n",  # the count went from 1 to 0, which makes it read-only (the paper)
    "chng duration -1 (no change)": "1 \n",
    "probe": None,  # sizes and counts depend on what the cases left out did; tested in the contract
    "probe with only a timeout": None,
    "probe (read 0, write 1)": None,
    "status inq wrong password": None,  # no password here
    "status res": "1 1 \n",
    "status version": None,
    "status inq v1": None,
    "status inq rid 0": None,
    "status inq v0": None,
    "load, wrong rid": "-50 \n",  # that depot had a second resource
}


def translated(text: str, keys: dict[str, str]) -> str:
    return KEY.sub(lambda found: keys.get(found[0], found[0]), text)


def status(reply: str) -> str:
    """What of a reply must agree: the first line, but for capabilities and the seconds of a PROBE."""
    line = reply.partition("\n")[0]
    fields = line.split(" ")
    if len(fields) == 9:
        return " ".join(fields[:5] + fields[6:])
    return fields[0] if "ibp://" in line else line


@pytest.fixture
def conversation(in_process: Callable[..., Any]) -> Any:
    return in_process(capacity=17179869184)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_recorded_client(conversation: Any, closing: ExitStack) -> None:
    keys: dict[str, str] = {}
    decrements = 0
    for case in CASES:
        decrements += case["name"] == "decr read"
        if case["name"] == "decr read" and decrements == 2:
            continue  # the second one deletes here (the paper), there both counts must be 0 for that
        client = conversation.connect()
        closing.callback(client.close)
        for sent, expected in zip(case["ex"][0::2], case["ex"][1::2], strict=True):
            client.send(translated(sent[1], keys))
            first = client.line().decode()
            if first.startswith("1 ibp://"):
                keys |= zip(KEY.findall(expected[1]), KEY.findall(first), strict=True)
            recorded = OURS.get(case["name"], expected[1])
            if recorded is not None:
                assert status(first) == status(recorded), case["name"]
            if first.startswith("-"):
                break


def test_the_recording_is_used(conversation: Any) -> None:
    assert len(CASES) > 80
    assert {sent for case in CASES for sent in case["ex"][0][1].split()[1:2]} == {"1", "2", "4", "8", "9", "13"}


def test_libdlt(conversation: Any) -> None:
    """The commands of a whole upload and refresh, one connection each."""

    def once(line: str, data: bytes = b"") -> bytes:
        client = conversation.connect()
        reply = client.ask(line.removesuffix("\n"))
        if data:
            assert reply == b"1 \n"
            client.send(data)
            reply = client.line()
        client.sock.shutdown(1)
        reply += client.rest()
        client.close()
        return reply

    assert once("0 4 1 ibp 5 ") == b"16384 0 16384 0 2592000 \n"
    allocated = once("0 1 2 1 600 300000 5 ")
    assert allocated.endswith(b" \n")
    read, write, manage = (capability.split("/")[3] for capability in allocated.decode().split(" ")[1:4])
    data = bytes(range(250)) * 1200
    assert once(f"0 2 {write} 3862277 300000 5", data) == b"1 300000 \n"
    assert once(f"0 8 {read} 3862277 0 300000 5 ") == b"1 300000 \n" + data
    assert once(f"0 9 {manage} MANAGE 40 0 10485760 10800 2 5 ") == b"1 1 1 300000 300000 600 2 1 \n"
    assert once(f"0 9 {manage} MANAGE 43 0 301000 1200 2 5 ") == b"1 \n"
    assert once(f"0 9 {manage} MANAGE 40 0 10485760 10800 2 5 ") == b"1 1 1 300000 301000 1200 2 1 \n"
    assert once(f"0 9 {manage} MANAGE 42 1 10485760 10800 2 5 ") == b"1 \n"
    assert once(f"0 9 {manage} MANAGE 40 0 10485760 10800 2 5 ") == b"-4 \n"


def test_lstore_ibp_test_begins(conversation: Any) -> None:
    """Its first exchanges, on one connection; it insists on storing after it took back its write count."""
    client = conversation.connect()
    read, write, manage = client.allocate(size=1048576, duration=60)
    assert client.ask(f"1 9 {manage} 3862277 40 3 0 0 0 30 ") == b"1 1 0 0 1048576 60 2 1 \n"
    assert client.ask(f"1 9 {manage} 3862277 42 2 30") == b"1 \n"
    assert client.ask(f"1 9 {manage} 3862277 40 3 0 0 0 30 ") == b"1 1 0 0 1048576 60 2 1 \n"
    assert client.ask(f"1 9 {manage} 3862277 43 3 2097152 20 2 30") == b"1 \n"
    assert client.ask(f"1 9 {manage} 3862277 40 3 0 0 0 30 ") == b"1 1 0 0 2097152 20 2 1 \n"
    client.store(write, b"0" * 786432)
    client.store(write, b"0" * 262144)
    client.write(write, 10, b"1" * 524288)
    assert client.load(read, 0, 1048576) == b"0" * 10 + b"1" * 524288 + b"0" * 524278
    assert client.ask(f"1 9 {manage} 3862277 42 1 30") == b"1 \n"
    client.close()
