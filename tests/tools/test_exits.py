"""Errors become one line and the right number, whatever they are."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from ibpfs.control import Refused
from ibpfs.errors import DataError, UsageError, VolumeBusy, VolumeError
from ibpfs_tools.exits import COMMAND, FSCK, MOUNT, ExitCodes, ExitWith, explain


@pytest.mark.parametrize(
    ("error", "mount", "command", "fsck"),
    [
        (UsageError("x"), 1, 2, 16),
        (click.UsageError("x"), 1, 2, 16),
        (VolumeError("x"), 32, 1, 8),
        (VolumeBusy("x"), 32, 1, 8),
        (DataError("x"), 32, 1, 8),
        (Refused("x", 1), 32, 1, 8),
        (Refused("x", 2), 1, 2, 16),
        (PermissionError(13, "Permission denied", "/x"), 2, 1, 8),
        (KeyboardInterrupt(), 8, 130, 32),
        (click.Abort(), 8, 130, 32),
        (ZeroDivisionError("x"), 4, 70, 8),
        (ExitWith("x", 17), 17, 17, 17),
        (ExceptionGroup("several", [ExceptionGroup("inner", [VolumeError("x")])]), 32, 1, 8),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_table(error: BaseException, mount: int, command: int, fsck: int) -> None:
    for codes, expected in ((MOUNT, mount), (COMMAND, command), (FSCK, fsck)):
        line, code = explain(error, codes)
        assert code == expected
        assert "\n" not in line


def test_nothing_in_it_moves_a_terminal() -> None:
    line, _ = explain(VolumeError("é \x1b[2J\u202egpj\0 caf\udce9\u2028x"), COMMAND)
    assert line == "é ?[2J?gpj? caf\udce9 x"


def test_a_line_names_the_file() -> None:
    assert explain(FileNotFoundError(2, "No such file or directory", "/v/x"), COMMAND) == (
        "/v/x: No such file or directory",
        1,
    )


def test_many_lines_become_one() -> None:
    assert explain(VolumeError("a\nb\n  c"), COMMAND)[0] == "a b c"


def run(body: str) -> subprocess.CompletedProcess[str]:
    code = f"""
import click
from ibpfs_tools import exits
@click.command("tool")
def tool():
    {body}
exits.run(tool, exits.COMMAND, [])
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)


def test_no_traceback_even_for_a_bug() -> None:
    done = run("raise RuntimeError('oops')")
    assert done.returncode == COMMAND.internal
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tool: internal error: RuntimeError: oops")


def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    code = "with open('out', 'w') as file:\n        print(file.fileno(), file=file)"
    script = tmp_path / "tool.py"
    script.write_text(f"""
import sys
import click
from ibpfs_tools import exits
@click.command("tool")
def tool():
    {code}
    click.echo("noise")
    click.echo("noise", err=True)
    sys.stdin.read()
exits.run(tool, exits.COMMAND, [])
""")
    done = subprocess.run(["sh", "-c", f"{sys.executable} {script} <&- >&- 2>&-"], cwd=tmp_path, timeout=30)
    assert done.returncode == 0
    assert int((tmp_path / "out").read_text()) > 2


def test_return_values_are_exit_codes() -> None:
    assert run("return 4").returncode == 4
    assert run("pass").returncode == 0


def test_codes_of_mount8() -> None:
    assert ExitCodes(failure=32, usage=1, system=2, internal=4, interrupted=8) == MOUNT
