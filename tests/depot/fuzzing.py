"""Inputs for the codec and the depot: what was recorded and what events look like, mutated; every one from one seed."""

import contextlib
import itertools
import json
import random
import re
import socket
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ibpfs.depot.capability import Capability, CapabilityKind, CapabilitySet, Key
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.commands import _WRITERS
from ibpfs.depot.wire.connection import _REPLIES, Connection, Role
from ibpfs.depot.wire.digests import Checksum, DigestType
from ibpfs.depot.wire.errors import LocalProtocolError, RemoteProtocolError
from ibpfs.depot.wire.protocol import MAX_LINE, MAX_NUMBER, AllocationKind, Reliability

from . import transcripts

CAPTURES = Path(__file__).parent / "captures"
KEY = re.compile(rb"\b[0-9]{1,9}#[A-Za-z0-9+-]{20,32}")
LARGEST_PIECE = 2000
NUMBERS = (0, 1, 2, 3, 9, 10, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, MAX_NUMBER)
ODDITIES = (
    b"-1", b"0", b"1", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"1" * 30, b"+5",
    b"1e9", b"0x10", b"\xff", b"\0", b"\r\n", b"\n", b" ", b"\t", b"\x16\x03\x01", b"ibp://[::1]:1/k#/1/READ",
    b"-66 0.1", b"END", b"nan", b"\xd9\xa1", b"%s%n", b"../..", b"'", b"1 4 3 1\n",
)  # fmt: skip
COMMANDS: tuple[type[ev.Command], ...] = tuple(_WRITERS)


def recorded() -> tuple[list[bytes], list[bytes]]:
    """What clients said and what depots answered, a case or a connection each."""
    said, answered = [], []
    for path in sorted(CAPTURES.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            spoken: dict[str, bytes] = {"C": b"", "S": b""}
            for who, text in json.loads(line)["ex"]:
                spoken[who] += text.encode("latin-1")[:LARGEST_PIECE]
            said.append(spoken["C"])
            answered.append(spoken["S"])
    for path in sorted(CAPTURES.glob("*.txt")):
        for dialogue in transcripts.read(path) if not path.name.startswith("raw") else ():
            for one in dialogue.said:
                said.append(one.line + b"\n" + bytes(min(one.length, LARGEST_PIECE)))
                answered.append(b"\n".join(one.answers or ()) + b"\n")
    return sorted({one for one in said if one}), sorted({one for one in answered if one})


class Made:
    """Random events of the protocol."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def command(self) -> ev.Command:
        while True:
            command = self._made(self.dice.choice(COMMANDS))
            try:
                Connection(Role.CLIENT).send(command)
            except LocalProtocolError:
                continue
            return command  # type: ignore[no-any-return]

    def reply(self, request: ev.Request, *, ready_passed: bool = False) -> ev.Reply:
        """One that fits."""
        if request.ready_first and not ready_passed:
            return self.dice.choice((ev.Ready(), ev.Ready(), ev.Ready(), self.failed()))
        fitting = _REPLIES.get(type(request), ())
        if not fitting or self.dice.random() < 0.2:
            return self.failed()
        if isinstance(request, ev.GetDigests):
            return ev.DigestReport(Checksum(DigestType.SHA256, 1024), 2, 64)
        if ev.Loading in fitting:
            return ev.Loading(self.dice.randrange(LARGEST_PIECE))
        reply: ev.Reply = self._made(self.dice.choice(fitting))
        return reply

    def failed(self) -> ev.Failed:
        return ev.Failed(-self.dice.randrange(1, 66))

    def _made(self, kind: type[Any]) -> Any:
        hints = typing.get_type_hints(kind)
        return kind(**{one.name: self._value(one.name, hints[one.name]) for one in fields(kind)})

    def _value(self, name: str, hint: Any) -> Any:
        dice = self.dice
        if name == "version":
            return dice.randrange(2)
        if name == "rid":
            return str(dice.randrange(3))
        if hint is int:
            return dice.choice(NUMBERS)
        if hint is bool:
            return dice.random() < 0.5
        if hint is str:
            return dice.choice(("ibp", "127.0.0.1", "x"))
        if name == "ranges":
            return tuple((dice.choice(NUMBERS), dice.randrange(100)) for _ in range(dice.randrange(5)))
        if typing.get_origin(hint) is tuple:
            return tuple(str(dice.randrange(9)) for _ in range(dice.randrange(4)))
        options = [one for one in typing.get_args(hint) if one is not type(None)]
        if options:
            return None if dice.random() < 0.5 else self._value(name, options[0])
        return self._thing(name, hint)

    def _thing(self, name: str, hint: Any) -> Any:
        dice = self.dice
        if hint is Key:
            return Key(self._key(), "1")
        if hint is Capability:
            kind = dice.choice((CapabilityKind.READ, CapabilityKind.WRITE))
            return Capability("127.0.0.1", dice.randrange(1, 65536), self._key(), "1", kind)
        if hint is CapabilitySet:
            return CapabilitySet(*(Capability("h", 1, self._key(), "1", kind) for kind in CapabilityKind))
        if hint is Checksum:
            return Checksum(dice.choice(list(DigestType)), dice.choice((1, 7, 64, 1024)))
        if hint in (CapabilityKind, Reliability, AllocationKind):
            return dice.choice(list(hint))
        raise AssertionError(f"{name}: {hint}")

    def _key(self) -> str:
        return f"1#{self.dice.getrandbits(192):032X}"[:34]


class Inputs:
    """`said` and `answered` never end. `keys`: of living allocations, put in place of recorded ones now and then."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.made = Made(self.dice)
        self.keys: list[bytes] = []
        self._said, self._answered = recorded()

    def said(self) -> bytes:
        """What a broken or hostile client may say."""
        base = b"".join(self._one_said() for _ in range(self.dice.randrange(1, 4)))
        return self.mutated(base, self._said)

    def _one_said(self) -> bytes:
        if self.dice.random() < 0.6:
            text = self.dice.choice(self._said)
        else:
            command = self.made.command()
            text = Connection(Role.CLIENT).send(command)
            if command.carries_data:
                text += bytes(min(getattr(command, "wire_length", 0), LARGEST_PIECE))
        return KEY.sub(lambda found: self.dice.choice(self.keys), text) if self.keys else text

    def answered(self, commands: list[ev.Command]) -> bytes:
        """What a broken or hostile depot may answer to them."""
        if self.dice.random() < 0.4:
            return self.mutated(self.dice.choice(self._answered), self._answered)
        text, server = b"", Connection(Role.SERVER)
        for command in commands:
            server.receive_data(Connection(Role.CLIENT).send(command))
            text += self._answer(server)
            if server.must_close or not server.idle:
                break
        return self.mutated(text, self._answered)

    def _answer(self, server: Connection) -> bytes:
        request = server.next_event()
        reply = self.made.reply(request)  # type: ignore[arg-type]
        text = server.send(reply)
        if isinstance(reply, ev.Loading | ev.DigestReport):
            text += bytes(reply.length)
        return text

    def mutated(self, data: bytes, corpus: list[bytes]) -> bytes:
        """One in eight stays as it is."""
        for _ in range(self.dice.choice((0, 1, 1, 1, 2, 2, 3, 6))):
            data = self.dice.choice(MUTATIONS)(self.dice, data, corpus)
        return data[: 4 * LARGEST_PIECE]

    def chunks(self, data: bytes) -> Iterator[bytes]:
        """All of it, cut anywhere."""
        cuts = sorted(self.dice.randrange(len(data) + 1) for _ in range(self.dice.choice((0, 0, 1, 3, 10))))
        for start, end in itertools.pairwise((0, *cuts, len(data))):
            yield data[start:end]


def _flip(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    at = dice.randrange(len(data) or 1)
    return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]


def _insert(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice((dice.choice(ODDITIES), dice.randbytes(dice.randrange(9)))) + data[at:]


def _drop(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 2, 5, 50)) :]


def _cut_short(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _splice(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    other = dice.choice(corpus)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other)) :]


def _field(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    """Another value in place of one field of the first line."""
    line, lf, rest = data.partition(b"\n")
    words = line.split(b" ")
    at = dice.randrange(len(words))
    words[at] = dice.choice((dice.choice(ODDITIES), b"%d" % dice.choice(NUMBERS), dice.choice(words)))
    return b" ".join(words) + lf + rest


def _repeat(dice: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    start = dice.randrange(len(data) + 1)
    piece = data[start : start + dice.randrange(1, 60)]
    return data[:start] + piece * dice.choice((2, 3, 20)) + data[start:]


MUTATIONS = (_flip, _flip, _insert, _drop, _cut_short, _splice, _field, _field, _repeat)


# --- what is done with them -------------------------------------------------------------------------------


def to_server(inputs: Inputs) -> None:
    """Requests are answered with something that fits, some at once, some as late as can be, until it wants no more."""
    server = Connection(Role.SERVER)
    for chunk in inputs.chunks(inputs.said()):
        server.receive_data(chunk)
        _go_on(server, inputs)
    server.receive_eof()
    _go_on(server, inputs)
    assert len(server._buffer) <= MAX_LINE


def _go_on(server: Connection, inputs: Inputs) -> None:
    while (event := server.next_event()) is not ev.NEED_DATA and not isinstance(event, ev.ClosedByPeer):
        if server.must_close:
            return
        may_answer = server.outstanding and not (server.raw_remaining or server._raw_open or server._limits_wanted)
        if may_answer and (event is ev.PAUSED or inputs.dice.random() < 0.5):
            server.send(inputs.made.reply(server._outstanding[0], ready_passed=server._ready_passed))


def to_client(inputs: Inputs) -> None:
    client = Connection(Role.CLIENT)
    commands = [inputs.made.command() for _ in range(inputs.dice.randrange(1, 4))]
    for command in commands:
        client.send(command)
    try:
        for chunk in inputs.chunks(inputs.answered(commands)):
            client.receive_data(chunk)
            while not isinstance(client.next_event(), ev.Waiting | ev.ClosedByPeer):
                pass
        client.receive_eof()
        while not isinstance(client.next_event(), ev.Waiting | ev.ClosedByPeer):
            pass
    except RemoteProtocolError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert len(client._buffer) <= MAX_LINE


def round_trip(inputs: Inputs) -> None:
    """Any command that is understood survives the line, under any chunking."""
    line = Connection(Role.CLIENT).send(inputs.made.command())
    server = Connection(Role.SERVER)
    seen = []
    for chunk in inputs.chunks(line):
        server.receive_data(chunk)
        if not isinstance(event := server.next_event(), ev.Waiting):
            seen.append(event)
    assert len(seen) == 1
    if isinstance(seen[0], ev.Command):
        assert Connection(Role.CLIENT).send(seen[0]) == line


def to_depot(inputs: Inputs, connect: Callable[[], Any]) -> None:
    """Said to a depot: what it answers is lines and data, and it comes to an end."""
    client = connect()
    with contextlib.suppress(ConnectionError):  # sent away already
        for chunk in inputs.chunks(inputs.said()):
            client.send(chunk)
        client.sock.shutdown(socket.SHUT_WR)
        client.rest()
    client.close()
