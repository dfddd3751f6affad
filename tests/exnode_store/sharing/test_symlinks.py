"""Symbolic links of a received directory: whatever they say, what they lead to is inside."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibpfs.errors import DataError
from ibpfs.exnode_store.lors.work import Depots
from ibpfs.exnode_store.sharing.contents import DIRECTORY, LINK, Content, Entry
from ibpfs.exnode_store.sharing.receiving import Receiver
from ibpfs.exnode_store.sharing.symlinks import make_links

from .shapes import fits
from .test_notation import CONTENT, DE, ROOT, D, link

WORDS = st.sampled_from(["..", "..", "d", "e", "f", "l0", "l1", "l2", "."])
PLACES = [(), ("d",), ("d", "e"), ("f",)]


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Directories and links whose targets name one another, with any number of `..` anywhere."""
    found = [Entry(path, DIRECTORY, 0, 0, 0o755, None) for path in PLACES]
    for number in range(draw(st.integers(1, 5))):
        above = draw(st.sampled_from(PLACES))
        words = draw(st.lists(WORDS, min_size=1, max_size=5))
        found.append(Entry((*above, f"l{number}"), LINK, 0, 7, 0o777, None, target="/".join(words)))
    return found


@settings(max_examples=150)
@given(trees())
def test_none_leads_out(entries: list[Entry]) -> None:
    """By what the kernel says of those that are let through."""
    with TemporaryDirectory() as name:
        root = Path(name).resolve() / "tree"
        for entry in entries:
            if entry.kind == DIRECTORY:
                root.joinpath(*entry.path).mkdir()
        fitting = [entry for entry in entries if entry.target is None or fits(entry.path, entry.target)]
        assert make_links(root, fitting) == []
        for entry in fitting:
            try:
                place = root.joinpath(*entry.path).resolve(strict=True)
            except (OSError, RuntimeError):  # leads nowhere, or in a circle
                continue
            assert place.is_relative_to(root)


def test_what_is_there_already(tmp_path: Path) -> None:
    entry = link("d", "l")
    assert make_links(tmp_path, [entry]) == make_links(tmp_path, [entry]) == []
    assert ((tmp_path / "l").readlink(), (tmp_path / "l").lstat().st_mtime_ns) == (Path("d"), 7)
    for other in (link("e", "l"), link("d", "file")):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be made"):
            make_links(tmp_path, [other])


def test_none_is_followed(tmp_path: Path) -> None:
    """Also one that no record put there."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "d").symlink_to("../outside")
    with pytest.raises(DataError, match=r"d/l: the symbolic link cannot be made"):
        make_links(tmp_path / "tree", [link("x", "d", "l")])
    (tmp_path / "root").symlink_to("outside")
    with pytest.raises(DataError):
        make_links(tmp_path / "root", [link("x", "l")])
    assert not list((tmp_path / "outside").iterdir())


def test_a_file_system_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    assert make_links(tmp_path, [link("x", "l"), link("y", "d")]) == ["l", "d"]


async def received(content: Content, target: Path) -> None:
    await Receiver(Depots(), content, lambda *_: None, 2).receive(target, overwrite=False, resume=True)


async def test_received_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off when all were made. Another record's directories do not lead through what this one's links left."""
    target = tmp_path / "t"
    content = replace(CONTENT, entries=(ROOT, D, DE, link("e", "d", "l"), link("..", "d", "e", "up")))

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as now, pytest.raises(KeyboardInterrupt):
        now.setattr(Path, "rename", broken)
        await received(content, target)
    assert (tmp_path / ".t.part" / "tree" / "d" / "l").is_symlink()
    await received(content, target)
    assert (target / "d" / "l" / "up").resolve() == (target / "d").resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    with monkeypatch.context() as now, pytest.raises(KeyboardInterrupt):
        now.setattr(Path, "rename", broken)
        await received(content, tmp_path / "u")
    other = replace(content, entries=(ROOT, D, DE, replace(D, path=("d", "l")), replace(D, path=("d", "e", "up"))))
    await received(other, tmp_path / "u")
    assert not (tmp_path / "u" / "d" / "l").is_symlink()
