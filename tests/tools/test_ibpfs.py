"""`ibpfs flush MOUNTPOINT` as a script has it: answers, notes and refusals are those of every verb."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import ibpfs
import ibpfs_tools
from ibpfs import mountinfo
from ibpfs.control import Command
from ibpfs.ear import listening
from ibpfs.errors import NoSpace, UsageError
from ibpfs.paths import VolumePaths
from ibpfs_tools.ibpfs import main


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VolumePaths:
    """One of which the mount table says that it is mounted on the directory `mnt`."""
    (tmp_path / "volume" / "run").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "mountinfo"
    table.write_text(f"42 1 0:1 / {tmp_path}/mnt rw - fuse.ibpfs {tmp_path}/volume rw\n")
    monkeypatch.setattr(mountinfo, "TABLE", str(table))
    monkeypatch.setattr(sys, "argv", ["ibpfs", "flush", "mnt"])
    return VolumePaths(tmp_path / "volume")


def answering(answer: Any) -> Command:
    async def flush(_: object, __: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return flush


def run() -> int:
    left: list[int] = []
    try:
        main(left.append)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return left[0]


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({"note": ""}, 0, ""),
        ({"note": "safe; 1 MiB lacks copies"}, 0, "mnt: safe; 1 MiB lacks copies"),
        (NoSpace("the depots have no room"), 1, "the depots have no room"),
        (UsageError("not like that"), 2, "not like that"),
    ],
)
async def test_what_the_owner_answers(
    volume: VolumePaths, capsys: pytest.CaptureFixture[str], answer: Any, code: int, said: str
) -> None:
    async with listening(volume.control, {"flush": answering(answer)}):
        assert await trio.to_thread.run_sync(run) == code
    assert capsys.readouterr() == ("", f"ibpfs: {said}\n" if said else "")


def test_where_nobody_listens_the_verb_is_asked(volume: VolumePaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 1
    assert "volume.toml" in capsys.readouterr().err  # this process would be the owner itself


@pytest.mark.parametrize("words", [["flush"], ["flush", "--help"], ["flush", "mnt", "and"], ["flush", "elsewhere"]])
def test_all_else_is_the_verbs(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ibpfs", *words])
    assert run() == (0 if "--help" in words else 1 if "elsewhere" in words[1:2] else 2)
    assert "flush" in capsys.readouterr().out or words[-1:] != ["--help"]


def test_it_needs_next_to_nothing(tmp_path: Path) -> None:
    """Each of these takes a tenth of the time of `ibpfs flush` or more to import."""
    (tmp_path / "ibpfs_tools").symlink_to(Path(ibpfs_tools.__file__).parent)
    (tmp_path / "ibpfs").symlink_to(Path(ibpfs.__file__).parent)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ibpfs_tools.ibpfs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "ibpfs.control" in done.stdout.split()
    assert not {"pathlib", "typing", "contextlib", "dataclasses", "click", "trio"} & set(done.stdout.split())
