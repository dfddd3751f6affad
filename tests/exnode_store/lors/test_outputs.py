"""Files appear whole or not at all; a download goes on where it broke."""

import os
from pathlib import Path

import pytest

from ibpfs.depot.capability import Capability
from ibpfs.errors import NameExists, UsageError, VolumeBusy
from ibpfs.exnode_store.documents.exnode import ExNode, Mapping
from ibpfs.exnode_store.lors.outputs import editing, put_in_place, refuse_existing, write_document
from ibpfs.exnode_store.lors.partial import PartialFile, identity

READ = Capability.parse("ibp://h:1/key/1/READ")
ONE = ExNode("n", 10, mappings=(Mapping(0, 10, alloc_length=10, read=READ),))


def test_a_document(tmp_path: Path) -> None:
    path = tmp_path / "x.xnd"
    write_document(path, b"one", overwrite=False)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(NameExists):
        write_document(path, b"two", overwrite=False)
    assert path.read_bytes() == b"one"
    write_document(path, b"two", overwrite=True)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.xnd"]
    with pytest.raises(UsageError):
        refuse_existing(tmp_path, overwrite=True)


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    with pytest.raises(NameExists):
        put_in_place(tmp_path / "new", tmp_path / "old", overwrite=False)
    assert (tmp_path / "old").read_text() == "old"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("old")
    (tmp_path / "x").symlink_to("there/x")
    write_document(tmp_path / "x", b"new", overwrite=True)
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "there" / "x").read_text() == "new"


def test_two_editors(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    with editing(path), pytest.raises(VolumeBusy), editing(path):
        pass


def test_resuming(tmp_path: Path) -> None:
    path = tmp_path / "out"
    partial = PartialFile(path, identity(ONE), ONE.size)
    partial.write(2, b"abc")
    partial.close()
    assert not path.exists()
    partial = PartialFile(path, identity(ONE), ONE.size)
    assert partial.done_bytes == 3
    assert partial.has(2, 5)
    assert not partial.has(1, 3)
    partial.write(0, b"xy")
    partial.write(5, b"defgh")
    partial.finish(overwrite=False)
    partial.close()
    assert path.read_bytes() == b"xyabcdefgh"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("powered_off", "kept"), [(False, 5), (True, 3)])
def test_what_a_kill_and_what_a_power_cut_leave(tmp_path: Path, powered_off: bool, kept: int) -> None:
    partial = PartialFile(tmp_path / "out", identity(ONE), ONE.size)
    partial.write(2, b"abc")
    partial.sync()
    partial.write(5, b"de")
    os.close(partial._file)  # as a kill does
    if powered_off:
        record = tmp_path / ".out.part.done"
        head, _, rest = record.read_text().split("\n", 2)
        record.write_text(f"{head}\nanother boot\n{rest}")
    partial = PartialFile(tmp_path / "out", identity(ONE), ONE.size)
    assert partial.done_bytes == kept
    partial.close()


def test_only_one_at_a_time(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "out", identity(ONE), ONE.size)
    with pytest.raises(VolumeBusy):
        PartialFile(tmp_path / "out", identity(ONE), ONE.size)
    partial.close()


@pytest.mark.parametrize("damage", ["other", "half", "garbage", "gone", "short", "restart"])
def test_what_is_not_resumed(tmp_path: Path, damage: str) -> None:
    partial = PartialFile(tmp_path / "out", identity(ONE), ONE.size)
    partial.write(2, b"abc")
    partial.close()
    record, data = tmp_path / ".out.part.done", tmp_path / ".out.part"
    exnode = ONE
    if damage == "other":
        exnode = ExNode("n", 10, mappings=(Mapping(0, 10, alloc_length=10),))
        assert identity(exnode) != identity(ONE)
    elif damage == "half":
        record.write_text(record.read_text().removesuffix("\nsynced\n"))  # the line of a crash in between
    elif damage == "garbage":
        record.write_text(record.read_text().replace("2 5", "x y"))
    elif damage == "gone":
        data.unlink()
    elif damage == "short":
        data.write_bytes(b"abc")
    partial = PartialFile(tmp_path / "out", identity(exnode), exnode.size, resume=damage != "restart")
    assert partial.done_bytes == 0
    partial.close()
