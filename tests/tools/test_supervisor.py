"""A process that was killed is started again while it leaves something behind, and not for ever."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ibpfs_tools import supervisor
from ibpfs_tools.daemon import Report
from ibpfs_tools.exits import MOUNT
from ibpfs_tools.supervisor import RESTARTS, Supervisor


def ended(serve: Callable[[Report, bool], None], *, left_behind: bool = True, told: Path | None = None) -> int:
    """Watch `serve` in a process of its own; return how that one ended."""
    child = os.fork()
    if not child:
        tell = told.write_text if told else print
        Supervisor(serve, lambda: left_behind, MOUNT, tell).run(Report())  # type: ignore[arg-type]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets a letter for each process that was started."""
    monkeypatch.setattr(supervisor, "_PAUSE", 0.0)
    (tmp_path / "lives").write_text("")
    return tmp_path / "lives"


def one_more(lives: Path) -> int:
    with lives.open("a") as file:
        file.write("x")
    return lives.stat().st_size


def test_ends_as_the_one_that_ended_by_itself(lives: Path) -> None:
    assert ended(lambda *_: one_more(lives)) == 0  # type: ignore[arg-type, return-value]
    assert lives.read_text() == "x"


def test_one_that_fails_is_not_started_again(lives: Path) -> None:
    def serve(_: Report, __: bool) -> None:
        one_more(lives)
        raise OSError(28, "No space left on device")

    assert ended(serve) == MOUNT.system
    assert lives.read_text() == "x"


def test_one_that_is_killed_is_started_again(lives: Path) -> None:
    def serve(_: Report, again: bool) -> None:
        if one_more(lives) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        assert again

    assert ended(serve) == 0
    assert lives.read_text() == "xxx"


def test_not_when_nothing_was_left_behind(lives: Path) -> None:
    def serve(_: Report, __: bool) -> None:
        one_more(lives)
        os.kill(os.getpid(), signal.SIGUSR1)

    assert ended(serve, left_behind=False) == -signal.SIGUSR1
    assert lives.read_text() == "x"


def test_not_for_ever(lives: Path, tmp_path: Path) -> None:
    def serve(_: Report, __: bool) -> None:
        one_more(lives)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(serve, told=tmp_path / "told") == -signal.SIGKILL
    assert lives.read_text() == "x" * (RESTARTS + 1)
    assert "killed 6 times" in (tmp_path / "told").read_text()


def test_a_signal_goes_to_the_one_that_serves(lives: Path) -> None:
    def serve(_: Report, __: bool) -> None:
        one_more(lives)
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()

    assert ended(serve) == -signal.SIGTERM
    assert lives.read_text() == "x"
