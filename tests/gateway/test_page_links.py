"""Symbolic links of a shared directory, in node: what the page takes from a record, and what its archive holds."""

import json
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibpfs import gateway
from tests.exnode_store.sharing.shapes import fits

_SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { checked } from "./checking.js";
import { zip } from "./zip.js";
const told = [];
for (const [number, content] of JSON.parse(readFileSync("contents.json")).entries()) {
  try {
    const found = checked(content);
    const pieces = [];
    for await (const piece of zip(found.name, found.entries, async function* () {})) pieces.push(piece);
    writeFileSync(`${number}.zip`, Buffer.concat(pieces));
    told.push(found.leftOut);
  } catch (error) {
    told.push(error.message);
  }
}
console.log(JSON.stringify(told));
"""
Row = dict[str, Any]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    found = tmp_path / "pages"
    shutil.copytree(Path(gateway.__file__).with_name("pages"), found)
    (found / "package.json").write_text('{"type": "module"}')
    (found / "test.js").write_text(_SCRIPT)
    return found


def directory(*path: str) -> Row:
    return {"path": list(path), "type": "directory", "size": 0, "mtime": 5, "mtime_ns": 0, "mode": 0o755}


def link(target: object, *path: str) -> Row:
    return directory(*path) | {"type": "link", "target": target, "mode": 0o777}


def content(*entries: Row, version: int = 2) -> Row:
    return {"format": f"ibpfs-share/{version}", "name": "tree", "type": "directory", "size": 0, "note": "",
            "created": 1, "expires": 2, "depots": [], "runs": [], "slices": [],
            "entries": [directory(), *entries]}  # fmt: skip


def read(pages: Path, *contents: Row) -> list[str | int]:
    """Of each, how many links are left out of the archive, or what is wrong with it."""
    (pages / "contents.json").write_text(json.dumps(contents))
    done = subprocess.run(["node", "test.js"], cwd=pages, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[str | int] = json.loads(done.stdout)
    return found


def archived(pages: Path, number: int = 0) -> dict[str, bytes]:
    """The links of an archive."""
    with zipfile.ZipFile(pages / f"{number}.zip") as archive:
        assert archive.testzip() is None
        return {one.filename: archive.read(one) for one in archive.infolist() if stat.S_ISLNK(one.external_attr >> 16)}


def test_they_are_links_in_the_archive(pages: Path) -> None:
    tree = content(directory("d"), link("d/x", "l"), link("../l", "d", "up"), link("..", "d", "all"),
                   link(".", "self"), link("é", "ü"))  # fmt: skip
    assert read(pages, tree) == [0]
    assert archived(pages) == {"tree/l": b"d/x", "tree/d/up": b"../l", "tree/d/all": b"..", "tree/self": b".",
                               "tree/ü": "é".encode()}  # fmt: skip


_WRONG = [
    link("/etc/passwd", "l"), link("..", "l"), link("../x", "l"), link("a/../../x", "l"), link("a/..", "l"),
    link("", "l"), link("a//b", "l"), link("./a", "l"), link("a/.", "l"), link("a\n", "l"), link("a\0", "l"),
    link(5, "l"), link("a/" * 3000 + "a", "l"), link("x"), link("x", "l") | {"size": 4},
    link("x", "l") | {"type": "file"}, link("x", "not", "there"), link("a", "l") | {"target": None},
]  # fmt: skip


def test_those_that_lead_out_are_nonsense(pages: Path) -> None:
    assert read(pages, *map(content, _WRONG)) == ["nonsense"] * len(_WRONG)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(["..", "..", "a", "a", ".", "", "/", "b\n"]), max_size=4).map("/".join),
                min_size=60, max_size=60))  # fmt: skip
def test_the_rule_is_that_of_ibpfs_get(pages: Path, targets: list[str]) -> None:
    places = [("l",), ("d", "l"), ("d", "e", "l")]
    trees = [content(directory("d"), directory("d", "e"), link(to, *place)) for place in places for to in targets]
    expected = [0 if fits(place, to) else "nonsense" for place in places for to in targets]
    assert read(pages, *trees) == expected


def test_names_that_become_dots_do_not(pages: Path) -> None:
    assert read(pages, content(directory("\u202e.."), link("\u202e../x", "\u202e..", "l"))) == [0]
    with zipfile.ZipFile(pages / "0.zip") as archive:
        assert archive.namelist() == ["tree/", "tree/_/", "tree/_/l"]
    assert archived(pages) == {"tree/_/l": b"_/x"}


def test_none_where_two_names_may_be_one(pages: Path) -> None:
    trees = [content(directory("d"), link("..", "d", "l"), link(".", other)) for other in ("D", "d\u202e", "d")]
    assert read(pages, *trees) == [2, 2, 2]
    assert not any(archived(pages, number) for number in range(3))


def test_only_in_the_version_that_has_them(pages: Path) -> None:
    trees = [content(link("x", "l"), version=1), content(directory("l")), content(directory("l"), version=1)]
    assert read(pages, *trees) == ["nonsense", "nonsense", 0]
