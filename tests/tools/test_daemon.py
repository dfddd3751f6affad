"""Into the background: the parent returns when the child is ready, or fails with the child's line."""

import os
import signal
import time
from pathlib import Path

import click
import pytest

from ibpfs.errors import VolumeError
from ibpfs_tools.daemon import Report, run_in_background
from ibpfs_tools.exits import MOUNT, ExitWith


def background(work: object) -> list[str]:
    notes: list[str] = []
    run_in_background(work, MOUNT, notes.append)  # type: ignore[arg-type]
    return notes


def test_returns_when_ready_while_the_child_lives_on(tmp_path: Path) -> None:
    go_on, facts = tmp_path / "go_on", tmp_path / "facts"
    os.mkfifo(go_on)

    def work(report: Report) -> None:
        report.note("wait for it")
        report.ready()
        go_on.read_bytes()
        open_now = sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        (tmp_path / "new").write_text(f"{os.getsid(0) == os.getpid()} {Path.cwd()} {open_now[:3]} {len(open_now)}")
        (tmp_path / "new").rename(facts)

    assert background(work) == ["wait for it"]
    assert not facts.exists()
    go_on.write_bytes(b"")
    deadline = time.monotonic() + 10
    while not facts.exists() and time.monotonic() < deadline:
        os.sched_yield()
    assert facts.read_text() == "True / [0, 1, 2] 4"  # 3 is the listing itself
    os.wait()


def test_an_error_before_ready_is_one_line_and_its_code() -> None:
    def work(_: Report) -> None:
        raise VolumeError("the disk is gone")

    with pytest.raises(ExitWith, match="the disk is gone") as caught:
        background(work)
    assert caught.value.code == MOUNT.failure


def test_a_warning_that_is_the_error_is_told_once() -> None:
    def work(report: Report) -> None:
        report.note("the disk is gone")
        raise VolumeError("the disk is gone")

    with pytest.raises(click.exceptions.Exit) as caught:
        background(work)
    assert caught.value.exit_code == MOUNT.failure


def test_a_death_before_ready_is_told() -> None:
    with pytest.raises(ExitWith, match="killed by signal 9") as caught:
        background(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert caught.value.code == MOUNT.internal


def test_an_early_end_is_told() -> None:
    with pytest.raises(ExitWith, match="ended with 0"):
        background(lambda _: None)
