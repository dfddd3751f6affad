"""The verbs of `ibpfs`: each is there, under its name, and only the one that is used is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ibpfs_tools.verbs import SECTIONS, VERBS, ibpfs


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_found_by_its_name(verb: str) -> None:
    found = ibpfs.get_command(click.Context(ibpfs), verb)
    assert found is not None
    assert found.name == verb


def test_a_verb_brings_no_other_with_it() -> None:
    listed = "import sys, click; from ibpfs_tools.verbs import ibpfs; ibpfs.get_command(click.Context(ibpfs), 'flush')"
    said = subprocess.run(
        [sys.executable, "-c", f"{listed}; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "ibpfs_tools.flush" in said
    assert not {"ibpfs_tools.mail", "ibpfs_tools.doctor", "ibpfs_tools.upload"} & set(said)
    # What an owner needs, who asks him does not: each of these takes as long to import as all of `flush`.
    assert not {"trio", "cryptography", "sqlite3", "importlib.metadata", "ibpfs.ear"} & set(said)


def test_no_other_word_is_a_verb() -> None:
    assert ibpfs.get_command(click.Context(ibpfs), "exits") is None
    assert ibpfs.get_command(click.Context(ibpfs), "import_") is None


def test_help_has_a_whole_line_for_every_verb() -> None:
    said = CliRunner().invoke(ibpfs, ["--help"], prog_name="ibpfs", terminal_width=80).output
    assert said.count("...") == 1  # of the usage
    assert max(map(len, said.splitlines())) <= 80
    for verb, text in (row for section in SECTIONS.values() for row in section.items()):
        assert re.search(rf"^  {verb} +{re.escape(text)}$", said, re.MULTILINE), "too long for one line"


@pytest.mark.parametrize("words", [[], ["share"], ["trash"]])
def test_without_a_verb_the_help_is_shown_as_it_is(words: list[str]) -> None:
    code = f"import sys; sys.argv[1:] = {words}; from ibpfs_tools.ibpfs import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ibpfs")
    assert done.stderr.count("\n") > 10


@pytest.mark.parametrize(("word", "hint"), [("stauts", "mean status?"), ("snapshots", "snapshot?"), ("zzz", "'zzz'")])
def test_a_misspelt_verb(word: str, hint: str) -> None:
    with pytest.raises(click.UsageError, match=f"there is no verb.*{re.escape(hint)}"):
        ibpfs.main([word], standalone_mode=False)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sta", ["plain,stage", "plain,stat", "plain,status"]),
        ("flush h", ["plain,home", "plain,here"]),
        ("flush x", ["dir,x"]),
        ("depots add ho", ["plain,home"]),
        ("depots ho", ["plain,home"]),
        ("depots dr", ["plain,drain"]),
        ("depots ", [f"plain,{verb}" for verb in ("add", "drain", "label", "list", "pin", "remove")]),
        ("policy set ./h", ["dir,./h"]),
        ("share ./h", ["file,./h"]),
        ("share rev", ["plain,revoke"]),
    ],
)
def test_completion(tmp_path: Path, line: str, offered: list[str]) -> None:
    (tmp_path / "ibpfs" / "home").mkdir(parents=True)
    (tmp_path / "ibpfs" / "home" / "volume.toml").touch()
    (tmp_path / "here").mkdir()
    words = f"ibpfs {line}"
    asked = {"_IBPFS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(f"{words}|".split()) - 1)}
    environment = {**os.environ, **asked, "XDG_DATA_HOME": str(tmp_path)}
    tool = Path(sys.executable).parent / "ibpfs"
    done = subprocess.run([tool], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == offered
