"""mkfs.ibpfs as a person calls it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, load_config
from ibpfs.errors import UsageError
from ibpfs.exnode_store.checkpoints.recovery_string import parse_recovery
from ibpfs_tools.mkfs import parse_owner
from ibpfs_tools.warm import timer_command


def mkfs(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    code = "from ibpfs_tools.mkfs import main; main()"
    words = [sys.executable, "-c", code, *arguments]
    return subprocess.run(words, input=text, capture_output=True, text=True, timeout=60, start_new_session=True)


def test_a_volume(tmp_path: Path) -> None:
    done = mkfs(str(tmp_path / "v"))
    assert done.returncode == 0, done.stderr
    assert "one copy, on this disk" in done.stdout
    assert "leases" not in done.stdout
    assert not done.stderr
    recovery = next(line for line in done.stdout.splitlines() if line.startswith("  ")).strip()
    (place,) = parse_recovery(recovery).places
    assert place.embedded
    assert not load_config(VolumePaths(tmp_path / "v")).plain
    again = mkfs(str(tmp_path / "v"))
    assert (again.returncode, again.stderr) == (1, f"mkfs.ibpfs: {tmp_path}/v: is a volume already\n")


def test_depots_that_do_not_answer_are_named(tmp_path: Path) -> None:
    done = mkfs(str(tmp_path / "v"), "--no-tls", "--depot", "ibp://192.0.2.1", "--depot", "ibp://127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert "without TLS" not in done.stdout  # that is about those that answer
    assert "ibp://192.0.2.1:6714: does not answer" in done.stderr
    assert "ibp://127.0.0.1:6714: does not answer (nobody listens there); nothing is kept there" in done.stderr
    assert "no depot has a checkpoint yet, so the string opens the keys alone" in done.stdout
    assert "2 of 2 depots hold each byte, 1 before fsync returns" in done.stdout
    assert "their leases end: a mount renews them, or ibpfs warm " in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "systemctl" in line]
    assert line.strip() == timer_command(tmp_path / "v", for_all=os.geteuid() == 0)
    assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
    assert "one copy, on that depot" in mkfs(str(tmp_path / "one"), "--depot", "ibp://127.0.0.1").stdout
    refused = mkfs(str(tmp_path / "w"), "--no-tls", "--depot", "ibps://127.0.0.1:1")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "nobody answers there who speaks TLS" in refused.stderr
    assert not (tmp_path / "w").exists()


def test_passphrase_from_standard_input(tmp_path: Path) -> None:
    done = mkfs(str(tmp_path / "v"), "--passphrase-file", "-", "-q", text="hush\n")
    assert done.returncode == 0, done.stderr
    assert parse_recovery(done.stdout)
    assert "hush" not in (tmp_path / "v" / "volume.toml").read_text()
    assert not (tmp_path / "v" / "volume.key").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "Missing argument"),
        (("v", "--nonsense"), "No such option"),
        (("/v/v", "--copies", "2"), "2 copies need 2 depots"),
        (("/v/v", "--copies", "0"), "copies must be at least 1"),
        (("/v/v", "--passphrase"), "no terminal to ask for the passphrase"),
        (("/v/v", "--owner", "nobody-of-that-name"), "there is no user"),
        (("/v/v", "--passphrase-file", "/does/not/exist"), "cannot read the passphrase"),
        (("/v/v", "--passphrase-file", "-"), "holds no passphrase"),
    ],
)
def test_usage_errors_are_one_line_and_2(arguments: tuple[str, ...], line: str) -> None:
    done = mkfs(*arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_version() -> None:
    assert mkfs("--version").stdout.startswith("mkfs.ibpfs ")
    assert mkfs("-h").stdout == mkfs("--help").stdout != ""


def test_owner() -> None:
    assert parse_owner("root") == (0, 0)
    assert parse_owner("4711") == (4711, 4711)
    assert parse_owner("4711:12") == (4711, 12)
    assert parse_owner("root:root") == (0, 0)
    with pytest.raises(UsageError):
        parse_owner("root:no-such-group")
