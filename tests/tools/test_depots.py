"""The verbs of `ibpfs depots`, on a volume that is not mounted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def call(*words: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run([BIN / "ibpfs", "depots", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    words = (BIN / "mkfs.ibpfs", tmp_path / "v", "--depot", "ibp://127.0.0.1:1")
    subprocess.run(words, check=True, capture_output=True)
    return tmp_path / "v"


def test_listing_is_the_verb_that_may_be_left_out(volume: Path) -> None:
    named = json.loads(call("list", volume, "--json").stdout)
    assert json.loads(call(volume, "--json").stdout) == named
    assert json.loads(call("--json", volume).stdout) == named
    assert [depot["address"] for depot in named] == ["ibp://127.0.0.1:1"]


def test_one_more_and_one_less(volume: Path) -> None:
    call("add", volume, "ibp://127.0.0.1:2", "--no-tls")
    assert "127.0.0.1:2" in call(volume).stdout
    assert "first: ibpfs depots drain VOLUME" in call("remove", volume, "ibp://127.0.0.1:2", code=2).stderr


@pytest.mark.parametrize("words", [(), ("add",), ("drain", "v"), ("pin", "v", "x"), ("--nonsense", "v")])
def test_wrong_calls_are_one_line(words: tuple[str, ...]) -> None:
    assert len(call(*words, code=2).stderr.splitlines()) == 1
    assert call("--version").stdout.startswith("ibpfs depots ")
