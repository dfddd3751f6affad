"""The line that says how far something is."""

import os
import pty
import subprocess
import sys
from collections.abc import Mapping

import pytest

from ibpfs_tools.progress import bar

CODE = """
from ibpfs_tools.progress import progress_bar
with progress_bar("flushing", quiet=False) as advance:
    advance(1, 2, "")
    advance(2, 2, "packing")
print("done")
"""


def on_terminal(environment: Mapping[str, str]) -> str:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-c", CODE]
    subprocess.run(words, stdout=theirs, stderr=theirs, env={**os.environ, **environment}, check=True)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # all is read, and nobody writes any more
            break
    os.close(ours)
    return said.decode()


def test_it_goes_away_when_it_is_done() -> None:
    said = on_terminal({"TERM": "xterm"})
    assert "flushing  [" in said
    assert "packing  [####" in said
    assert said.endswith("\r\x1b[Kdone\r\n")


def test_nothing_where_a_line_cannot_be_taken_back_or_nobody_looks() -> None:
    assert on_terminal({"TERM": "dumb"}) == "done\r\n"
    piped = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("done\n", "")


@pytest.mark.parametrize("columns", [1, 10, 20, 30, 40, 80, 200])
@pytest.mark.parametrize("label", ["flushing", "asking the depots for what is there"])
def test_it_stays_on_its_line(columns: int, label: str) -> None:
    for done in range(11):
        assert len(bar(label, done, 10, 100.0, columns)) < columns


def test_what_it_says() -> None:
    assert bar("flushing", 1, 4, 1.0, 40) == "flushing  [#####-----------------]  25%"
    assert bar("flushing", 1, 4, 30.0, 50) == "flushing  [#####----------------]  25%  1:30 left"
    assert bar("flushing", 9, 4, 0.0, 16) == "flushing 100%"
    assert bar("flushing", 0, 0, 9.0, 16) == "flushing   0%"
