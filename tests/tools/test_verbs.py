"""The verbs of `ibpfs`: each is there, under its name, and only the one that is used is imported."""

import subprocess
import sys

import click
import pytest

from ibpfs_tools.ibpfs import VERBS, ibpfs


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_found_by_its_name(verb: str) -> None:
    found = ibpfs.get_command(click.Context(ibpfs), verb)
    assert found is not None
    assert found.name == verb


def test_a_verb_brings_no_other_with_it() -> None:
    listed = "import sys, click; from ibpfs_tools.ibpfs import ibpfs; ibpfs.get_command(click.Context(ibpfs), 'flush')"
    said = subprocess.run(
        [sys.executable, "-c", f"{listed}; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "ibpfs_tools.flush" in said
    assert not {"ibpfs_tools.mail", "ibpfs_tools.doctor", "ibpfs_tools.upload"} & set(said)


def test_no_other_word_is_a_verb() -> None:
    assert ibpfs.get_command(click.Context(ibpfs), "exits") is None
    assert ibpfs.get_command(click.Context(ibpfs), "import_") is None
