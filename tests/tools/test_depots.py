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
    said = call("add", volume, "ibp://127.0.0.1:2", "--no-tls").stderr
    assert said == "ibp://127.0.0.1:2: does not answer (nobody listens there); nothing is kept there until it does\n"
    assert "  2  failed      ibp://127.0.0.1:2, free space not known; nobody listens there\n" in call(volume).stdout
    for depot in ("ibp://127.0.0.1:2", 2):
        assert "first: ibpfs depots drain VOLUME ibp://127.0.0.1:2" in call("remove", volume, depot, code=2).stderr
    for _ in range(2):
        call("drain", volume, 2)
    for known in ("", " (it was removed before)"):
        assert call("remove", volume, 2).stdout == f"2: is no depot of this volume any more{known}\n"
    call("remove", volume, "ibp://127.0.0.1:2")
    assert "3 is no depot of this volume" in call("remove", volume, 3, code=2).stderr
    assert "there is no depot 2 whose certificate" in call("pin", volume, 2, code=2).stderr
    assert "ibp://127.0.0.1:1: offers no TLS, or does not" in call("pin", volume, "ibp://127.0.0.1:1", code=2).stderr


@pytest.mark.parametrize("verb", ["drain", "remove", "pin", "label"])
def test_no_depot_has_so_long_a_number(volume: Path, verb: str) -> None:
    said = call(verb, volume, "9" * 5000, code=2).stderr
    assert ("depot" in said, "internal error" in said, len(said.splitlines())) == (True, False, 1)


def test_depots_have_labels_from_mkfs_on(tmp_path: Path) -> None:
    depots = ("--depot", "ibp://127.0.0.1:1,site=knoxville,owner=loci", "--depot", "ibp://127.0.0.1:2")
    subprocess.run((BIN / "mkfs.ibpfs", tmp_path / "v", "--no-tls", *depots), check=True, capture_output=True)
    call("add", tmp_path / "v", "ibp://127.0.0.1:3", "--no-tls", "--label", "site=prague")
    call("label", tmp_path / "v", 2, "site=brno")
    call("label", tmp_path / "v", "ibp://127.0.0.1:4", "site=brno", code=2)
    assert "site: a label is NAME=VALUE" in call("label", tmp_path / "v", "ibp://127.0.0.1:2", "site", code=2).stderr
    found = json.loads(call(tmp_path / "v", "--json").stdout)
    for label, warns in (("site", False), ("stie", True)):
        words = (BIN / "ibpfs", "policy", "set", tmp_path / "v", f"labels={label}")
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        assert ("no depot has a label stie: that keeps no copies apart" in done.stderr) is warns
    assert [depot["labels"] for depot in found] == [
        {"site": "knoxville", "owner": "loci"}, {"site": "brno"}, {"site": "prague"},
    ]  # fmt: skip


@pytest.mark.parametrize("words", [(), ("add",), ("drain", "v"), ("pin", "v"), ("--nonsense", "v")])
def test_wrong_calls_are_one_line(words: tuple[str, ...]) -> None:
    assert len(call(*words, code=2).stderr.splitlines()) == 1
    assert call("--version").stdout.startswith("ibpfs depots ")
