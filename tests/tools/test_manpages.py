"""The man pages in docs/man say what --help says."""

import subprocess
import sys
from pathlib import Path

import pytest

from ibpfs_tools.manpages import PAGES, pages

DIRECTORY = Path(__file__).parents[2] / "docs" / "man"


def test_they_are_current() -> None:
    written = {path.name: path.read_text() for path in DIRECTORY.iterdir()}
    assert written == dict(pages()), "run: python -m ibpfs_tools.manpages docs/man"


@pytest.mark.parametrize("name", [name for _, name, _ in PAGES])
def test_every_command_is_installed_and_answers(name: str) -> None:
    program, *verb = name.split()
    path = Path(sys.executable).parent / program
    for option in ("--version", "--help", "-h"):
        done = subprocess.run([path, *verb, option], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert name in done.stdout


def test_no_line_is_taken_for_a_macro() -> None:
    known = (".TH", ".SH", ".SS", ".TP", ".B ", ".PP", ".nf", ".fi")
    for _, text in pages():
        for line in text.splitlines():
            assert not line.startswith(("'", ".")) or line.startswith(known)
