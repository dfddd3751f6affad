"""Records that mean harm, through the real `ibpfs get`: one clear line, or what they say, inside the directory.

Each is signed and sealed as it should be, by a sender who may say in it what they like.
"""

import io
import json
import os
import random
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.exnode_store.sealing import seal
from ibpfs.exnode_store.sharing.contents import (
    DIRECTORY,
    FILE,
    LINK,
    Content,
    Copy,
    Entry,
    Run,
    Sender,
    SharedPart,
    SharedSlice,
)
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place, decode
from ibpfs.exnode_store.sharing.notation import to_json
from ibpfs.exnode_store.sharing.reading import SENDER_CONTEXT
from ibpfs.exnode_store.sharing.record_log import Public, make_entry, public_bytes
from ibpfs.exnode_store.sharing.share_keys import record_key
from ibpfs_tools import exits
from ibpfs_tools.verbs import ibpfs
from tests.depot.conftest import DepotProcess
from tests.exnode_store.sharing.shapes import slice_form

_SECRET = bytes(32)
_SIGNER, _SENDER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
_SIGNED = Sender(public_bytes(_SENDER), _SENDER.sign(SENDER_CONTEXT + public_bytes(_SIGNER)))
#: What the slices hold, by their ids.
CLEAR = {bytes([number]) * 16: random.Random(number).randbytes(length) for number, length in ((1, 1000), (2, 130))}


@dataclass
class World:
    """A depot with the slices and room for a record; the directory that `ibpfs get` runs in, and what is around it."""

    base: Path
    depot: Address
    record: dict[str, Any]

    @property
    def inside(self) -> Path:
        return self.base / "inside"

    def link(self, clear: bytes) -> str:
        """Of a record that says that."""
        now = int(time.time())
        public = Public(public_bytes(_SIGNER), now, now + 600, (self.depot,))
        raw = make_entry(_SIGNER, 1, public, clear, record_key(_SECRET, public.share), os.urandom(12))

        async def store() -> Place:
            async with DepotClient(self.depot) as client:
                caps = await client.allocate(len(raw) + 1, 600)
                await client.store(caps.write.wire_key, [raw])
                return Place(self.depot, caps.read.wire_key)

        return Link(Locator(public.share, now + 600, (trio.run(store),)), Fragment(_SECRET)).render()

    def get(self, clear: bytes, *, again: bool = False) -> tuple[int, str]:
        """Exit code and what was said. `again`: where the last one was broken off."""
        if not again:
            rmtree(self.inside, ignore_errors=True)
        self.inside.mkdir(exist_ok=True)
        os.chdir(self.inside)
        heard = io.BytesIO()
        before = sys.stdin, sys.stderr
        sys.stdin = io.TextIOWrapper(io.BytesIO(self.link(clear).encode()))
        sys.stderr = io.TextIOWrapper(heard, "utf-8", "backslashreplace", write_through=True)
        try:
            with pytest.raises(SystemExit) as end:
                exits.run(ibpfs, exits.COMMAND, ["get", "-", "-q"])
            return int(end.value.code or 0), heard.getvalue().decode()
        finally:
            sys.stdin, sys.stderr = before

    def around(self) -> dict[str, tuple[int, bytes]]:
        """All but the directory it runs in, and what is the program's own."""
        found = {}
        for place in self.base.rglob("*"):
            if not place.is_relative_to(self.inside) and not place.is_relative_to(self.base / "home"):
                status = place.lstat()
                found[str(place)] = status.st_mtime_ns, place.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        return found


def _content(depot: Address, read: Any, stored: int) -> Content:
    """A tree with one of everything."""
    slices, parts, at, offset = [], [], 0, 0
    for slice_id, data in CLEAR.items():
        form = slice_form(slice_id, len(data), 128)
        slices.append(SharedSlice(form, 0, offset, slice_id * 2))
        parts.append(SharedPart(at, at + len(data), len(parts), 0))
        at, offset = at + len(data) + 50, offset + form.stored_length
    entries = (
        Entry((), DIRECTORY, 0, 5, 0o755, None),
        Entry(("a",), FILE, at, 5, 0o644, None, tuple(parts)),
        Entry(("d",), DIRECTORY, 0, 5, 0o755, None),
        Entry(("d", "b"), FILE, 100, 5, 0o755, None, (SharedPart(10, 90, 0, 500),)),
        Entry(("d", "e"), DIRECTORY, 0, 5, 0o755, None),
        Entry(("d", "all"), LINK, 0, 5, 0o777, None, target=".."),
        Entry(("d", "up"), LINK, 0, 5, 0o777, None, target="../a"),
        Entry(("l",), LINK, 0, 5, 0o777, None, target="d/e"),
    )
    run = Run(stored, (Copy(depot, read),))
    return Content("tree", "", 1, 2, _SIGNED, (run,), tuple(slices), entries)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base = tmp_path_factory.mktemp("world")
    started = DepotProcess(tmp_path_factory.mktemp("depot") / "store", "--listen", "127.0.0.1:0", "--capacity", "1G")
    address = Address.parse(started.address)
    (base / "outside").mkdir()
    (base / "outside" / "file").write_bytes(b"mine")
    (base / "a").write_bytes(b"mine, too")
    stored = b"".join(piece for slice_id, data in CLEAR.items()
                      for piece in seal(slice_form(slice_id, len(data), 128), slice_id * 2, data))  # fmt: skip

    async def store() -> Any:
        async with DepotClient(address) as client:
            caps = await client.allocate(len(stored), 3600)
            await client.store(caps.write.wire_key, [stored])
            return caps.read.wire_key

    record = json.loads(to_json(_content(address, trio.run(store), len(stored))))
    here = Path.cwd()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(base / "home"))
        environment.delenv("XDG_DATA_HOME", raising=False)
        yield World(base, address, record)
    os.chdir(here)
    assert started.stop() == 0


def judged(world: World, clear: bytes, *, again: bool = False) -> int:
    """Whatever happened was right; returns the exit code."""
    before = world.around()
    code, said = world.get(clear, again=again)
    assert world.around() == before
    for root in world.inside.iterdir():
        for place in root.rglob("*"):
            with suppress(RuntimeError):  # links in a circle
                assert place.resolve().is_relative_to(root), place
    if code:
        assert code in (1, 2), said
        assert said.startswith("ibpfs: ")
        assert said.count("\n") == 1
        assert said.strip().isprintable()
        assert not [path for path in world.inside.iterdir() if not path.name.startswith(".")]
    else:
        assert said == ""
        _compare(world, json.loads(clear))
    return code


def _compare(world: World, record: dict[str, Any]) -> None:
    (root,) = world.inside.iterdir()
    assert os.fsencode(root.name) == os.fsencode(record["name"])
    found = {place.relative_to(root).parts for place in root.rglob("*")} | {()}
    assert found == {tuple(entry["path"]) for entry in record["entries"]}
    for entry in record["entries"]:
        place = root.joinpath(*entry["path"])
        mode = place.lstat().st_mode
        assert {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "link": stat.S_ISLNK}[entry["type"]](mode)
        if entry["type"] == "link":
            assert str(place.readlink()) == entry["target"].replace("//", "/")
        elif entry["type"] == "file":
            _compare_file(place, entry, record["slices"])


def _compare_file(place: Path, entry: dict[str, Any], slices: list[list[Any]]) -> None:
    assert place.stat().st_size == entry["size"]
    with place.open("rb") as file:
        at = 0
        for start, stop, number, offset in entry.get("parts", []):
            file.seek(at)
            assert not any(file.read(min(start - at, 1 << 20)))
            file.seek(start)
            assert file.read(stop - start) == CLEAR[decode(slices[number][5])][offset : offset + stop - start]
            at = stop
        file.seek(at)
        assert not any(file.read(min(entry["size"] - at, 1 << 20)))


# --- what is drawn

NUMBERS = st.sampled_from([-(1 << 63), -(10**30), -1, 0, 1, 2, 3, 16, 65536, 1 << 22, 1 << 31, 1 << 38, (1 << 53) - 1,
                           1 << 53, 1 << 63, 1 << 64, 10**30])  # fmt: skip
TEXTS = st.sampled_from([
    "", ".", "..", "/", "a", "b", "d", "e", "l", "up", "a/b", "../a", "../../outside/file", "/etc/passwd", "d/..",
    "d/e/../../..", "l/../..", "a\0b", "a\nb", "\x1b[2J", "\ud800", "caf\udce9", "\u202egpj", "x" * 255, "x" * 256,
    "é" * 200,
    "-rf", ".ssh", "file", "directory", "link", "device", "ibpfs-share/1", "ibpfs-share/2", "ibpfs-share/9", "AA",
    "A" * 43, "ibp://127.0.0.1:1", "ibps://127.0.0.1:1", "unix:/tmp/x", "ibp://", "k/1", "k k/1",
])  # fmt: skip
PLAIN = st.none() | st.booleans() | NUMBERS | st.floats() | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
                      max_leaves=8)  # fmt: skip
NAMES = st.sampled_from(["a", "all", "D", "caf\udce9", *(f"n{number}" for number in range(50))])
HARMFUL = st.sampled_from(["..", ".", "", "/", "../x", "a/b", "a\n", "../../../outside/x", "../../../../outside/x"])
#: Through a link that leads up, and on from there: no normalising of the words shows where that ends.
SLY = st.sampled_from(["d/all/..", "d/all/../a", "d/all/d/all/../../outside/file", "l/../../..", "all/..", "../all/..",
                       "..", "../..", "/", "/etc/passwd", "../outside/file", "../../outside"])  # fmt: skip
WORDS = st.sampled_from(["a", "b", "d", "e", "l", "up", "all"])
TARGETS = SLY | st.lists(WORDS, min_size=1, max_size=4).map("/".join)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All that can be changed, by what holds it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield value, key
        yield from places(one)


@st.composite
def changed(draw: st.DrawFn, record: dict[str, Any]) -> bytes:
    """The record with anything in it replaced, dropped, doubled, or put elsewhere."""
    row = deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(row))
        holder, key = draw(st.sampled_from(found))
        way = draw(st.sampled_from(["replace", "alike", "alike", "alike", "nudge", "drop", "double", "move"]))
        if way == "drop":
            del holder[key]
        elif way == "nudge" and type(holder[key]) is int:
            holder[key] += draw(st.integers(-3, 3))
        elif way == "alike" and isinstance(holder[key], int | str):
            holder[key] = draw(TEXTS if isinstance(holder[key], str) else NUMBERS)
        elif way == "double" and isinstance(holder, list):
            holder.insert(key, deepcopy(holder[key]))
        elif way == "move":
            other, at = draw(st.sampled_from(found))
            with suppress(IndexError):
                holder[key] = deepcopy(other[at])
        else:
            holder[key] = draw(VALUES)
    return json.dumps(row).encode()


@st.composite
def trees(draw: st.DrawFn, record: dict[str, Any]) -> bytes:
    """The record with entries of all kinds, that lead through one another; now and then one that harms."""
    row = deepcopy(record)
    above = [entry["path"] for entry in row["entries"] if entry["type"] == "directory"]
    for _ in range(draw(st.integers(1, 4))):
        name = draw(HARMFUL if draw(st.integers(0, 9)) == 0 else NAMES)
        path = [*draw(st.sampled_from(above)), name]
        kind = draw(st.sampled_from(["file", "directory", "link"]))
        entry: dict[str, Any] = {"path": path, "type": kind, "size": 0, "mtime": 0, "mtime_ns": 0, "mode": 0o644}
        if kind == "link":
            entry["target"] = draw(TARGETS)
        if kind == "file":
            whole = [[0, 130, 1, 0], [130, 400, 0, draw(st.integers(0, 730))]]
            entry |= {"size": 500, "parts": draw(st.just(whole) | st.just(whole) | st.lists(parts(), max_size=3))}
        if kind == "directory":
            above.append(path)
        row["entries"].append(entry)
    return json.dumps(row).encode()


@st.composite
def parts(draw: st.DrawFn) -> list[int]:
    """Start, stop, slice, offset: each by itself is as it may be, mostly."""
    start = draw(st.sampled_from([0, 0, 0, 100, 200, 300, -1, 450]))
    return [start, start + draw(st.sampled_from([100, 100, 1, 130, 0])), draw(st.sampled_from([0, 0, 0, 1, 2])),
            draw(st.sampled_from([0, 0, 17, 300, -1, 900]))]  # fmt: skip


_SETTINGS = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def test_as_it_should_be(world: World) -> None:
    assert judged(world, json.dumps(world.record).encode()) == 0


@_SETTINGS
@given(st.data())
def test_anything_changed(world: World, data: st.DataObject) -> None:
    judged(world, data.draw(changed(world.record)))


@_SETTINGS
@given(st.data())
def test_any_tree(world: World, data: st.DataObject) -> None:
    judged(world, data.draw(trees(world.record)))


@_SETTINGS
@given(st.data())
def test_one_after_another(world: World, data: st.DataObject) -> None:
    """Of the same name: what the first one left is not led through."""
    broken = deepcopy(world.record)
    broken["runs"].append([1370, [[0, broken["runs"][0][1][0][1], 3]]])
    broken["slices"][1][0] = 1
    judged(world, data.draw(trees(broken)))
    judged(world, data.draw(trees(world.record)), again=True)


@_SETTINGS
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_no_record_at_all(world: World, clear: bytes) -> None:
    assert judged(world, clear) != 0
