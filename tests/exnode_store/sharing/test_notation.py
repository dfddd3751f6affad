"""A share's content as JSON: read back as it was, and nothing that makes no sense is taken."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.sharing.contents import (
    DIRECTORY,
    FILE,
    LINK,
    BadContent,
    Content,
    Copy,
    Entry,
    Run,
    Sender,
    SharedPart,
    SharedSlice,
)
from ibpfs.exnode_store.sharing.notation import from_json, to_json

from .shapes import contents, form

DEPOT = Address("depot.example", 6714)
RUN = Run(10_000, (Copy(DEPOT, Key("k", "1")),))
SLICE = SharedSlice(form(100), 0, 0, bytes(32))
PART = SharedPart(0, 100, 0, 0)
PLAIN = Entry((), FILE, 100, 1_700_000_000_123_456_789, 0o644, bytes(32), (PART,))
CONTENT = Content("report.pdf", "", 1, 2, Sender(bytes(32), bytes(64)), (RUN,), (SLICE,), (PLAIN,))
ROOT = Entry((), DIRECTORY, 0, 0, 0o755, None)
D, DE = replace(ROOT, path=("d",)), replace(ROOT, path=("d", "e"))


def link(target: str | None, *path: str) -> Entry:
    return Entry(path, LINK, 0, 7, 0o777, None, target=target)


@given(contents())
def test_read_back(content: Content) -> None:
    found = from_json(to_json(content))
    assert found == content
    assert [one.key for one in found.slices] == [one.key for one in content.slices]


def test_keys_are_not_shown() -> None:
    content = replace(CONTENT, slices=(replace(SLICE, key=b"S" * 32),))
    assert "SSSS" not in repr(content)
    assert "<key" in repr(content)


def test_names_that_are_no_utf8() -> None:
    content = replace(CONTENT, name="caf\udce9")
    assert from_json(to_json(content)).name == "caf\udce9"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "a\nb", "\x1b[2J", "x" * 256, "\ud800", "a\u2028"])
def test_names(name: str) -> None:
    with pytest.raises(BadContent):
        to_json(replace(CONTENT, name=name))
    for path in ((name,), ("fine", name)):
        found = (ROOT, replace(ROOT, path=("fine",)), replace(PLAIN, path=path))
        with pytest.raises(BadContent):
            to_json(replace(CONTENT, entries=found))


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(row: Any) -> None:
        for step in path[:-1]:
            row = row[step]
        row[path[-1]] = to

    return change


@pytest.mark.parametrize("change", [
    _set("format", to="ibpfs-share/2"),
    _set("name", to=5),
    _set("note", to="x" * 5000),
    _set("created", to=1.5),
    _set("created", to=-1),
    _set("expires", to=1 << 62),
    _set("sender", "key", to="AA"),
    _set("depots", 0, to="unix:/tmp/s"),
    _set("depots", to=[]),
    _set("runs", 0, 0, to=0),
    _set("runs", 0, 1, to=[]),
    _set("runs", 0, 1, 0, 0, to=1),
    _set("runs", 0, 1, 0, 0, to=-1),
    _set("runs", 0, 1, 0, 1, to="a b/1"),
    _set("runs", 0, 1, 0, 2, to=-1),
    _set("runs", 0, 1, 0, 2, to=True),
    _set("slices", 0, 0, to=-1),
    _set("slices", 0, 1, to=9_990),
    _set("slices", 0, 2, to=1 << 40),
    _set("slices", 0, 2, to=0),
    _set("slices", 0, 3, to=0),
    _set("slices", 0, 4, to=-1),
    _set("slices", 0, 4, to=1 << 32),
    _set("slices", 0, 7, to="AA"),
    _set("entries", to=[]),
    _set("entries", 0, to=None),
    _set("entries", 0, to=[]),
    _set("entries", 0, "path", to=["x"]),
    _set("entries", 0, "type", to="symlink"),
    _set("entries", 0, "size", to=-1),
    _set("entries", 0, "size", to=1 << 60),
    _set("entries", 0, "size", to=99),
    _set("entries", 0, "mode", to=0o4755),
    _set("entries", 0, "mtime", to=1 << 62),
    _set("entries", 0, "sha256", to="00"),
    _set("entries", 0, "parts", 0, 1, to=101),
    _set("entries", 0, "parts", 0, 2, to=1),
    _set("entries", 0, "parts", 0, 3, to=1),
    _set("entries", 0, "parts", 0, to=[0, 1]),
])  # fmt: skip
def test_what_makes_no_sense(change: Callable[[Any], None]) -> None:
    row = json.loads(to_json(CONTENT))
    change(row)
    with pytest.raises(BadContent):
        from_json(json.dumps(row).encode())


@pytest.mark.parametrize("entries", [
    (PLAIN, PLAIN),
    (ROOT, ROOT),
    (ROOT, replace(PLAIN, path=("a",)), replace(PLAIN, path=("a",))),
    (ROOT, replace(PLAIN, path=("a",)), replace(PLAIN, path=("a", "b"))),
    (ROOT, replace(PLAIN, path=("not", "there"))),
    (ROOT, *(replace(ROOT, path=("d",) * depth) for depth in range(1, 66))),
    (replace(ROOT, size=5),),
    (replace(PLAIN, parts=(PART, PART)),),
])  # fmt: skip
def test_trees_that_make_no_sense(entries: tuple[Entry, ...]) -> None:
    with pytest.raises(BadContent):
        to_json(replace(CONTENT, entries=entries))


@pytest.mark.parametrize("entry", [link("x/y", "l"), link(".", "l"), link("..", "d", "l"),
                                   link("../../d/e", "d", "e", "l"),
                                   link("caf\udce9", "l"), link("...", "l"), link("a" * 255, "l")])  # fmt: skip
def test_symbolic_links(entry: Entry) -> None:
    """In a format of its own, which readers without them refuse as newer."""
    content = replace(CONTENT, entries=(ROOT, D, DE, entry))
    data = to_json(content)
    assert json.loads(data)["format"] == "ibpfs-share/2"
    assert from_json(data) == content
    with pytest.raises(BadContent):
        from_json(data.replace(b"ibpfs-share/2", b"ibpfs-share/1"))
    with pytest.raises(BadContent, match="newer"):
        from_json(data.replace(b"ibpfs-share/2", b"ibpfs-share/3"))


@pytest.mark.parametrize("entry", [
    link("/etc/passwd", "l"), link("..", "l"), link("../x", "l"), link("../..", "d", "l"),
    link("../../../x", "d", "e", "l"),
    link("d/..", "l"), link("d/../../x", "l"), link("d/e/l1/../..", "l"), link("../d/..", "d", "e", "l"), link("", "l"),
    link("a//b", "l"), link("./a", "l"), link("a/.", "l"), link("a/", "l"), link("a\n", "l"), link("a\0b", "l"),
    link("a" * 256, "l"), link("/".join(["a"] * 3000), "l"), link(None, "l"), link("x"),
    replace(link("x", "l"), size=1), replace(D, target="x"), link("x", "no", "where"),
])  # fmt: skip
def test_symbolic_links_that_lead_out(entry: Entry) -> None:
    with pytest.raises(BadContent):
        to_json(replace(CONTENT, entries=(ROOT, *(one for one in (D, DE) if one.path != entry.path), entry)))


def test_nothing_is_below_a_symbolic_link() -> None:
    for below in (replace(D, path=("l", "d")), link("x", "l", "m")):
        with pytest.raises(BadContent, match="in no directory"):
            to_json(replace(CONTENT, entries=(ROOT, link(".", "l"), below)))


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BadContent):
        from_json(data)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["format", "name", "runs", "slices", "entries", "depots", "sender"]), inner), max_leaves=20))
def test_any_json(row: Any) -> None:
    with pytest.raises(BadContent):
        from_json(json.dumps(row).encode())


_LARGE = """
import resource
from ibpfs.exnode_store.sharing.contents import BadContent
from ibpfs.exnode_store.sharing.notation import from_json

resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
head = b'{"format":"ibpfs-share/1","name":"n","note":"","created":1,"expires":2,"depots":["ibp://h:1"],'
head += b'"sender":{"key":"%s","signature":"%s"},' % (b"A" * 43, b"A" * 86)
lists = b'"entries":[],"slices":[],"runs":[%s]}'
entries = b'"slices":[],"runs":[],"entries":[%s]}'
file = b'{"path":[],"type":"file","size":9,"mtime":0,"mtime_ns":0,"mode":0%s}'
for shape, unit, count in [
    (lists, b"[]", 3_990_000), (lists, b"[]", 20_000_000), (lists, b'"ab"', 9_990_000), (lists, b'"ab"', 12_000_000),
    (lists, b'[1,[[0,"k/1",0]]]', 499_000), (entries, file % b"", 100_001), (entries, file % b"", 99_000),
    (entries % (file % b',"parts":[%s]'), b"[0,1,0,0]", 999_000), (b"[" * 60_000_000 + b"%s", b"", 1),
]:
    try:
        from_json(head + shape % ((unit + b",") * (count - 1) + unit))
    except BadContent:
        print("refused")
"""


def test_memory_is_bounded() -> None:
    """1.5 GiB of addresses are enough for records of the largest size, whatever is in them."""
    done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["refused"] * 9)
