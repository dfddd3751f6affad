"""Client streams recorded from real programs and by hand, said again to our depot.

`captures/raw_*.jsonl`: one case a line, as it went between a hand-made client and a depot. Keys and ports are replaced
by those of our depots. Our answers must have the shape of the recording, field by field, except where the recorded
depot had a bug, was stricter, or is set up differently: these cases are named here, with the reason.
"""

import io
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.commands import parse_command
from ibpfs.depot.wire.digests import framed_length

CAPTURES = Path(__file__).parent / "captures"
KEY = re.compile(r"\b[0-9]{1,9}#[A-Za-z0-9+-]{32}")
GOODBYE = re.compile(r"-66 [0-9.]+\s*")
CAPABILITY = re.compile(r"ibp://\S+")
WHOLE, BYTEWISE = "whole", "byte by byte"

ANYTHING = "*"
KEPT_APART = "they keep other things there"
OURS: dict[str, tuple[str, str]] = {
    "allocate type BUFFER(2)": (ANYTHING, "that depot knows byte arrays only"),
    "allocate type FIFO(3)": (ANYTHING, "that depot knows byte arrays only"),
    "allocate type CIRQ(4)": (ANYTHING, "that depot knows byte arrays only"),
    "allocate duration -5": ("-30", "accepted there by mistake"),
    "allocate, CRLF": ("1 CAP CAP CAP", "the CR is stripped, as it may be"),
    "load negative offset": ("-30", "answered there with bytes of its own file header"),
    "write negative offset": ("-30", "taken there as append"),
    "probe (read 0, write 1)": (ANYTHING, "that state does not exist here"),
    "probe with READ key": ("1", "LoRS asks so, as UTK's depot lets it"),
    "alias_manage chng": ("1", "both forms are accepted"),
    "get_chksum with digests": (ANYTHING, "the digests are missing there: a bug"),
    "get_chksum on unchecksummed": ("-63", "the answer to the case before comes late there"),
    "validate_chksum": ("1 0", "not answered there in time"),
    "push_chksum": ("-43", "broken in all depots"),
    "pull_chksum": ("-43", "broken in all depots"),
    "send_chksum": ("-43", "broken in all depots"),
    "phoebus_send auto": ("-43", "nobody has such gateways"),
    "status inq wrong password": (ANYTHING, "no password needed to look"),
    "status res": ("1 1 2", "the order of their configuration"),
    "status version": (ANYTHING, "a text"),
    "opcode 3": ("-21", "DELIVER is offered, and wants more fields"),
    "opcode 7": ("-4", "REMOTE_STORE is offered"),
    "200 KiB line without newline": (ANYTHING, "below our limit: nothing comes before its end"),
    "version only": ("-21", "a version is no command"),
    "error then data already sent": ("-19", "what follows is never read as commands"),
    "internal get_config": ("-43", "administration is not offered over the wire"),
    "internal expire_list": ("-43", "administration is not offered over the wire"),
    "internal date_free": ("-43", "administration is not offered over the wire"),
    "internal get_corrupt": ("-43", "administration is not offered over the wire"),
    "internal rescan": ("-43", "administration is not offered over the wire"),
    "internal set_mode ro": ("-43", "administration is not offered over the wire"),
    "internal set_mode rwm": ("-43", "administration is not offered over the wire"),
    "manage on read-only rid": (ANYTHING, "as no resource was made read-only"),
}
OURS_LS = OURS | {
    "load length 0": ("1 0", "nothing is something one can load"),
    "store length 0": ("1 1 0", "nothing is something one can store"),
    "vec_read n=0": ("1 0", "nothing is something one can load"),
    "get_chksum info only": (ANYTHING, "the connection was dropped there: a bug"),
    "validate on unchecksummed": ("1 0", "the connection was dropped there: a bug"),
}
OURS_UTK: dict[str, tuple[str, str]] = {
    "allocate v1": ("1 CAP CAP CAP", "version 1 is spoken here"),
    "allocate duration -1": ("1 CAP CAP CAP", "as long as possible"),
    "allocate size 0": ("-30", "as newer depots say it"),
    "allocate rel 7": ("-21", "as newer depots say it"),
    "load past the end (waits, short)": ("-19", "byte arrays give all or nothing"),
    "load wholly past the end": ("-19", "byte arrays give all or nothing"),
    "load size 0 (= everything)": ("1 0", "nothing is something one can load"),
    "load with wrong typekey": ("1 5", "type keys are ignored: the keys differ"),
    "write (op 13)": (ANYTHING, "WRITE is offered"),
    "decr write below 0": ("1", "does nothing"),
    "store with write count 0": ("-5", "the paper"),
    "chng below current size": ("-20", "data would be lost"),
    "chng reliability": ("1", "may be changed"),
    "status inq": (ANYTHING, "the version is a field there, of whose text no client knows"),
    "status change": (ANYTHING, "the version is a field there, of whose text no client knows"),
    "status inq wrong pw": (ANYTHING, "no password needed to look"),
    "unknown op": ("-43", "said, not shown"),
    "garbage": ("-21", "said, not shown"),
}


@dataclass
class Replay:
    """Keys of the recording and what they are here."""

    depots: dict[int, Any]
    mode: str
    keys: dict[str, str] = field(default_factory=dict)

    def translated(self, text: str) -> bytes:
        text = KEY.sub(lambda found: self.keys.get(found[0], found[0]), text)
        for recorded, depot in self.depots.items():
            text = text.replace(f":{recorded}/", f":{depot.port}/")
        return text.encode("latin-1")

    def learn(self, recorded: str, said: str) -> None:
        theirs, ours = KEY.findall(recorded), KEY.findall(said)
        if len(theirs) == len(ours) == 3:
            self.keys |= zip(theirs, ours, strict=True)

    def send(self, client: Any, data: bytes) -> None:
        if self.mode == WHOLE:
            client.send(data)
            return
        for at in range(len(data)):
            client.send(data[at : at + 1])


class Recorded:
    """Read as if it came from a socket."""

    def __init__(self, text: str) -> None:
        self._bytes = io.BytesIO(GOODBYE.sub("", text).encode("latin-1"))
        self.line, self.read = self._bytes.readline, self._bytes.read


def read_reply(source: Any, request: ev.Request) -> tuple[bytes, bytes]:
    """A line, and what follows it."""
    line = source.line()
    fields = line.split()
    if fields[:1] != [b"1"] or line.count(b" ") > 6:
        return line, b""
    if isinstance(request, ev.Load | ev.VecRead) and len(fields) > 1:
        return line, source.read(framed_length(request.checksum, int(fields[1])))
    if isinstance(request, ev.GetDigests) and not request.info_only:
        return line, source.read(int(fields[5]))
    if isinstance(request, ev.StatusInquire) and request.version:
        return line, source.read(int(fields[1]))
    if isinstance(request, ev.StatusVersion):
        return line, b"".join(iter(source.line, b"END\n"))
    return line, b""


def shape(line: bytes) -> list[str]:
    """Status and kind of every field: numbers and capabilities aside."""
    fields = CAPABILITY.sub("CAP", line.decode("latin-1")).split()
    first = ["number" if text.isdigit() and text != "1" else text for text in fields[:1]]
    return [*first, *("number" if text.lstrip("-").isdigit() else text for text in fields[1:])]


class Exchange:
    """One case or connection said again: what was answered there and here, reply by reply."""

    def __init__(self, replay: Replay, client: Any) -> None:
        self.replay, self.client = replay, client
        self._data_left = 0
        self._awaits_limits = False
        self.refused = False

    def say(self, text: str) -> list[tuple[ev.Request, bytes, bytes]]:
        """What is answered as soon as this has been said."""
        data = self.replay.translated(text)
        self.replay.send(self.client, data)
        answers: list[tuple[ev.Request, bytes, bytes]] = []
        while data and not self.refused:
            if self._data_left:
                taken = min(self._data_left, len(data))
                self._data_left -= taken
                data = data[taken:]
                if not self._data_left:
                    self._collect(answers)
            elif self._awaits_limits:
                data = b""
                self._awaits_limits = False
                self._collect(answers)
            else:
                line, lf, data = data.partition(b"\n")
                if not lf or not line.strip():
                    break
                self._begin(parse_command(line), answers)
        return answers

    def _begin(self, request: ev.Request, answers: list[tuple[ev.Request, bytes, bytes]]) -> None:
        self._request = request
        self._collect(answers)
        if self.refused or not request.ready_first or not answers[-1][1].startswith(b"1"):
            return
        self._awaits_limits = isinstance(request, ev.StatusChange)
        self._data_left = getattr(request, "wire_length", 0)
        if not (self._awaits_limits or self._data_left):
            self._collect(answers)

    def _collect(self, answers: list[tuple[ev.Request, bytes, bytes]]) -> None:
        line, behind = read_reply(self.client, self._request)
        answers.append((self._request, line, behind))
        self.refused = not line or (line.startswith(b"-") and self._request.closes_if_refused)


class Listening:
    """An in-process depot on a port of loopback."""

    def __init__(self, depot: Any) -> None:
        self.depot = depot
        self.port = int(depot.depot.address.rpartition(":")[2])

    def connect(self) -> Any:
        return self.depot.connect_tcp()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def conversation(in_process: Callable[..., Any]) -> Any:
    return in_process(capacity=17179869184)


@pytest.fixture
def pair(in_process: Callable[..., Any], tmp_path: Path) -> Any:
    """Two depots that can reach each other, the first one with two resources."""
    where = (("127.0.0.1", 0),)
    more = ((tmp_path / "second", 17179869184),)
    first = in_process(store=tmp_path / "a", capacity=17179869184, listen=where, resources=more)
    second = in_process(store=tmp_path / "b", capacity=17179869184, listen=where)
    return Listening(first), Listening(second)


def said_again(replay: Replay, client: Any, case: dict[str, Any], ours: dict[str, tuple[str, str]]) -> list[str]:
    """What was answered otherwise than in the recording, or than it is said in `ours`."""
    exchange, name = Exchange(replay, client), case["name"]
    told = "".join(text for who, text in case["ex"] if who == "S")
    recorded, said, wrong = Recorded(told), b"", []
    for who, text in case["ex"]:
        if who != "C" or exchange.refused:
            continue
        for request, line, behind in exchange.say(text):
            replay.learn(told, line.decode("latin-1"))
            said += line
            if name not in ours:
                their_line, their_data = read_reply(recorded, request)
                same_data = behind == their_data or not isinstance(request, ev.Load | ev.VecRead)
                if shape(line) != shape(their_line) or not same_data:
                    wrong.append(f"{name}: {line!r} {behind[:50]!r}, there {their_line!r} {their_data[:50]!r}")
    if name in ours and (expected := ours[name][0]) != ANYTHING:
        fields = CAPABILITY.sub("CAP", said.decode("latin-1")).split()
        if fields[: len(expected.split())] != expected.split():
            wrong.append(f"{name}: {said!r}, not {expected}")
    return wrong


def cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CAPTURES / name).read_text().splitlines()]


@pytest.mark.parametrize("mode", [WHOLE, BYTEWISE])
@pytest.mark.parametrize(("name", "ours", "port"), [("raw_dl.jsonl", OURS, 16714), ("raw_ls.jsonl", OURS_LS, 16720)])
def test_hand_made_commands(
    pair: Any, closing: ExitStack, name: str, ours: dict[str, tuple[str, str]], port: int, mode: str
) -> None:
    first, second = pair
    replay = Replay({port: first, port + 1: second, 16715: second}, mode)
    remote = second.connect()
    closing.callback(remote.close)
    keys = remote.allocate()
    decrements = {"decr read": 0, "decr write": 1}
    wrong: list[str] = []
    for case in cases(name):
        if case["name"] in decrements:
            decrements[case["name"]] += 1
            if decrements[case["name"]] == 2:
                continue  # deletes, or makes read-only, here (the paper); there both counts must be 0 for the former
        client = first.connect()
        closing.callback(client.close)
        for _, text in case["ex"]:  # of an allocation whose beginning is in no recording
            for place, key, kind in re.findall(r"127.0.0.1:(\d+)/([0-9]+#[A-Za-z0-9+-]{32})/\d+/(READ|WRITE)", text):
                if replay.depots.get(int(place)) is second:
                    replay.keys.setdefault(key, keys[("READ", "WRITE").index(kind)])
        try:
            wrong += said_again(replay, client, case, ours)
        except TimeoutError:
            wrong.append(f"{case['name']}: no answer")
    assert not wrong, "\n".join(wrong)


# --- the University of Tennessee's own depot: keys are the same in all three capabilities, type keys are not -----


@dataclass
class OldReplay(Replay):
    ports: dict[str, int] = field(default_factory=dict)

    def learn(self, recorded: str, said: str) -> None:
        theirs, ours = CAPABILITY.findall(recorded), CAPABILITY.findall(said)
        if len(theirs) == len(ours) == 3:
            for old, new in zip(theirs, ours, strict=True):
                self.keys[old.split("/")[4]] = new
                self.keys.setdefault(old.split("/")[3], new)

    def translated(self, text: str) -> bytes:
        fields = text.split(" ")
        if len(fields) < 4 or not fields[2].startswith("IBP-"):
            return text.encode("latin-1")
        if fields[1] in ("3", "7"):
            fields[4] = str(self.ports[fields[4]])
        if fields[1] == "5":
            fields[3] = self.keys[fields[3].split("/")[4]]
        type_key = fields[{"3": 5, "7": 5, "5": 4}.get(fields[1], 3)]
        if (ours := self.keys.get(type_key) or self.keys.get(fields[2])) is not None:
            fields[2] = ours.split("/")[3]
        return " ".join(fields).encode("latin-1")


@pytest.fixture
def third_parties() -> Iterator[tuple[int, int]]:
    """The ports of one that reads, and of one that says REMOTEDATA."""

    def serve(listener: socket.socket, data: bytes) -> None:
        with listener, listener.accept()[0] as sock:
            sock.sendall(data)
            while not data and sock.recv(1000):
                pass

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    told = zip(listeners, (b"", b"REMOTEDATA"), strict=True)
    threads = [threading.Thread(target=serve, args=one, daemon=True) for one in told]
    for thread in threads:
        thread.start()
    yield ports[0], ports[1]
    for thread in threads:
        thread.join(5)


@pytest.mark.parametrize("mode", [WHOLE, BYTEWISE])
def test_the_oldest_depots_client(
    in_process: Callable[..., Any], closing: ExitStack, third_parties: tuple[int, int], mode: str
) -> None:
    depot = in_process(capacity=500 << 20, listen=(("127.0.0.1", 0),), max_lease=864000, password="ibp")
    replay = OldReplay({}, mode, ports=dict(zip(("46357", "36263"), third_parties, strict=True)))
    wrong: list[str] = []
    for case in cases("raw_utk.jsonl"):
        client = depot.connect_tcp()
        closing.callback(client.close)
        try:
            wrong += said_again(replay, client, case, OURS_UTK)
        except TimeoutError:
            wrong.append(f"{case['name']}: no answer")
    assert not wrong, "\n".join(wrong)


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
