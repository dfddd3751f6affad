"""Whole sessions of real programs, recorded on the wire, said again to our depots: L-Store's `ibp_test` and LIO, LoRS,
libdlt, the University of Tennessee's client and smoke test.

Connections of one recording depend on each other: a command waits until the keys that it names have been given out.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ibpfs.depot.capability import Key
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.digests import framed_length
from ibpfs.depot.wire.protocol import AllocationKind

from . import transcripts

CAPTURES = Path(__file__).parent / "captures"
NAMES = ("ibp_test_dl.txt", "libdlt_dl.txt", "lio.txt", "lors_up.txt", "utkc_dl.txt", "utk_smoke.txt")
CAPABILITY = re.compile(rb"ibp://[^/ ]+/([^/ ]+)/(\d+)/(READ|WRITE|MANAGE)")
KEY = re.compile(rb"\b[0-9]{1,9}#[A-Za-z0-9+-]{32}|IBP-[0-9.\xff]+")
STATUS = re.compile(rb" ?-?[0-9]+( |$)")
PORT = re.compile(rb"127\.0\.0\.1:(16714|16715|16720|16725)/")
OLD = 16725
#: What `raw_utk.jsonl` holds in full.
SAID_ELSEWHERE = {("lio.txt", OLD)}
INTERLEAVED = {"ibp_test_dl.txt", "lio.txt"}  # the others open one connection after another
CAPACITY = {"utk_smoke.txt": 600 << 20}
TAKING = (ev.Decrement, ev.Rename, ev.AliasDecrement, ev.Merge)


class Session:
    """One recording and the depots that it is said to."""

    def __init__(self, depots: dict[int, Any], stack: ExitStack, chunk: int) -> None:
        self.depots, self.stack, self.chunk = depots, stack, chunk
        self.keys: dict[bytes, bytes] = {}
        self.old: dict[tuple[bytes, bytes], bytes] = {}
        self.family: dict[bytes, bytes] = {}  # the first key of the same allocation
        self.sizes: dict[bytes, int] = {}
        self.wrong: list[str] = []
        self.said = 0

    def translated(self, line: bytes) -> bytes | None:
        """None while a key that it names has not been given out."""
        for key in KEY.findall(line):
            ours = self.keys.get(key) if b"IBP" not in key else self._of_old_depot(key, line)
            if ours is None:
                return None
            line = line.replace(key, ours)
        return PORT.sub(lambda found: b"127.0.0.1:%d/" % self.depots[int(found[1])].port, line)

    def _of_old_depot(self, key: bytes, line: bytes) -> bytes | None:
        """The same key for all rights there; shortened in the recording, but its end is there."""
        right = {b"2": b"WRITE", b"8": b"READ", b"9": b"MANAGE"}.get(line.split()[1])
        found = [ours for (end, kind), ours in self.old.items() if kind == right and key.endswith(end)]
        return found[0] if found else None

    def learn(self, recorded: bytes, said: bytes) -> None:
        for theirs, ours in zip(CAPABILITY.findall(recorded), CAPABILITY.findall(said), strict=False):
            self.keys[theirs[0]] = ours[0]
            self.family[theirs[0]] = CAPABILITY.findall(recorded)[0][0]
        if b"/IBP-" in recorded:  # only the last of the three is shown whole
            end = recorded.rsplit(b"/", 3)[1][-10:]
            for ours in CAPABILITY.findall(said):
                self.old[end, ours[2]] = ours[0]

    def give_what_is_not_shown(self, said: list[transcripts.Said]) -> None:
        """Keys given out before the recording began, or where it was shortened: all of one allocation, at most."""
        given = {key for one in said for answer in one.answers or () for key, _, _ in CAPABILITY.findall(answer)}
        client = self.depots[16714].depot.connect_tcp()
        self.stack.callback(client.close)
        ours = client.allocate(size=8 << 20)
        rights = {b"8": 0, b"35": 0, b"2": 1, b"13": 1, b"33": 1, b"9": 2}
        for one in said:
            for key in KEY.findall(one.line):
                if key not in given and b"IBP" not in key:
                    self.keys[key] = ours[rights[one.line.split()[1]]].encode()

    def say(self, client: Any, one: transcripts.Said, line: bytes) -> list[bytes]:
        data = line + b"\n" + bytes(one.length)
        if self.chunk:
            for at in range(0, min(len(data), 2000), self.chunk):
                client.send(data[at : min(at + self.chunk, 2000)])
            data = data[2000:]
        client.send(data)
        self.said += 1
        first = client.line()
        lines = [first]
        if one.request.ready_first and first.startswith(b"1"):
            lines.append(client.line())
        elif isinstance(one.request, ev.Load | ev.VecRead) and first.startswith(b"1"):
            client.read(framed_length(one.request.checksum, int(first.split()[1])))
        elif isinstance(one.request, ev.StatusInquire) and one.request.version:
            client.read(int(first.split()[1]))
        elif isinstance(one.request, ev.StatusVersion):
            lines += iter(client.line, b"END\n")
        return lines


def shape(line: bytes) -> list[bytes]:
    fields = CAPABILITY.sub(b"CAP", line).replace(b"\0", b" ").split()
    if fields[:1] and fields[0].isdigit() and fields[0] != b"1":
        return [b"a v0 status line"]
    return fields[:1] + [b"N" if field.lstrip(b"-").isdigit() else field[:3] for field in fields[1:]]


def agrees(request: ev.Request, ours: bytes, theirs: bytes) -> bool:
    if isinstance(request, ev.Unsupported):  # Phoebus' gateways, which that depot went without, and what nobody knows
        return ours == b"-43 \n"
    if isinstance(request, ev.Allocate) and request.kind is not AllocationKind.BYTE_ARRAY:
        return CAPABILITY.search(ours) is not None  # that depot knows byte arrays only
    if isinstance(request, ev.Probe) and request.version == 0 and theirs.startswith(b"-4 "):
        return ours.startswith((b"1 ", b"-4 "))  # LoRS asks with its read capability, which that depot refused
    if theirs.startswith(b"-66") or not STATUS.match(theirs):  # its answer is somewhere in what was shortened
        theirs = b"1"
    return shape(ours)[:1] == shape(theirs)[:1]


def is_unclear(one: transcripts.Said) -> bool:
    """It names a capability that is not shown whole."""
    return transcripts.GAP in one.line and isinstance(one.request, ev.Malformed)


def made_by_a_depot(port: int, one: transcripts.Said) -> bool:
    """Said by the first depot to the second: ours does so by itself."""
    return port == 16715 and one.line.startswith((b"1 2 ", b"1 13 ", b"1 8 ")) and one.line.endswith(b" ")


class Connection:
    def __init__(self, session: Session, dialogue: transcripts.Dialogue, *, interleaved: bool) -> None:
        self.session, self.port = session, dialogue.port
        self.rest = [one for one in dialogue.said if not (made_by_a_depot(dialogue.port, one) or is_unclear(one))]
        self.interleaved = interleaved
        self._client: Any = None

    def go_on(self, others: "list[Connection]") -> bool:
        """Until a key is missing, or would be for others; whether anything was said."""
        said = False
        while self.rest and (line := self.session.translated(self.rest[0].line)) is not None:
            if self._takes_from(others):
                break
            if not self._say(self.rest[0], line, patient=bool(others)):
                break  # what it asks for is still to be stored by another connection
            self.rest.pop(0)
            said = True
            if not others and self.interleaved:
                break
        return said

    def takes_next(self) -> bool:
        return bool(self.rest) and isinstance(self.rest[0].request, TAKING)

    def _takes_from(self, others: "list[Connection]") -> bool:
        if not isinstance(self.rest[0].request, TAKING):
            return False
        mine = {self.session.family.get(key, key) for key in KEY.findall(self.rest[0].line)}
        return any(
            self.session.family.get(key, key) in mine
            for other in others if other is not self
            for one in other.rest
            for key in KEY.findall(one.line)
        )  # fmt: skip

    def _say(self, one: transcripts.Said, line: bytes, *, patient: bool) -> bool:
        if self._client is None or isinstance(one.request, ev.Malformed):
            self._client = self.session.depots[self.port].depot.connect_tcp()
            self.session.stack.callback(self._client.close)
        lines = self.session.say(self._client, one, line)
        if isinstance(one.request, ev.Write) and one.burst and lines[0].startswith(b"1"):
            self._fill(line.split()[2])
        if one.answers is not None:
            self.session.learn(one.answers[0], lines[0])
        if isinstance(one.request, ev.Allocate):
            for _, ours in zip(range(3), CAPABILITY.findall(lines[0]), strict=False):
                self.session.sizes[ours[0]] = one.request.size
        expected = [b"1 N"] if one.answers is None else one.answers
        agreed = agrees(one.request, lines[0], expected[0])
        if not agreed and patient and isinstance(one.request, ev.Load | ev.VecRead | ev.Probe):
            return False
        if not agreed:
            self.session.wrong.append(f"{self.port} {one.line[:90]!r}: {lines[0]!r}, there {expected[0]!r}")
        if lines[0].startswith(b"-"):
            self._client = None
        return True


    def _fill(self, key: bytes) -> None:
        """In place of the writes that are not shown, which together filled the allocation."""
        size = self.session.sizes[key]
        request = ev.Write(Key(key.decode(), "1"), 0, size)
        fill = transcripts.Said(request, b"1 13 %b 1 0 %d 60" % (key, size), size, None)
        self.session.say(self._client, fill, fill.line)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Listening:
    def __init__(self, depot: Any) -> None:
        self.depot = depot
        self.port = int(depot.depot.address.rpartition(":")[2])


@pytest.mark.parametrize("chunk", [0, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", NAMES)
def test_said_again(
    in_process: Callable[..., Any], tmp_path: Path, stack: ExitStack, name: str, chunk: int
) -> None:
    here = [
        Listening(in_process(
            store=tmp_path / part, listen=(("127.0.0.1", 0),), capacity=CAPACITY.get(name, 17179869184),
            resources=() if name in CAPACITY else ((tmp_path / f"{part}2", 17179869184),),
        ))
        for part in "ab"
    ]  # fmt: skip
    depots = {16714: here[0], 16715: here[1], 16720: here[0], OLD: here[0]}
    session = Session(depots, stack, chunk)
    dialogues = [one for one in transcripts.read(CAPTURES / name) if (name, one.port) not in SAID_ELSEWHERE]
    waiting = [Connection(session, one, interleaved=name in INTERLEAVED) for one in dialogues]
    session.give_what_is_not_shown([one for connection in waiting for one in connection.rest])
    total = sum(len(one.rest) for one in waiting)
    # The recording does not say which connection spoke first: what takes keys away waits for those who still need them.
    if name not in INTERLEAVED:
        for one in waiting:
            one.go_on([])
    while any(one.go_on(waiting) for one in waiting) or any(
        one.go_on([]) for one in sorted(waiting, key=Connection.takes_next, reverse=True)
    ):
        pass
    assert session.said > 0.9 * total
    left = [f"{one.line[:60]!r}" for connection in waiting for one in connection.rest]
    assert not session.wrong, "\n".join(session.wrong)
    assert left == []
