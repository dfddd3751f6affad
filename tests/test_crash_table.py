"""The table of crash points in the documents: each point has a test, and each test exists."""

import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
LINES = (TOP / "docs" / "crashes.md").read_text().splitlines()
ROWS = [line for line in LINES if line.startswith("|") and not line.startswith(("| point |", "|---"))]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def functions_of(path: str) -> set[str]:
    return set(re.findall(r"^ *(?:async )?def (test_\w+)\(", (TOP / path).read_text(), re.MULTILINE))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_point_has_tests_that_exist(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 4
    named = NAMED.findall(cells[3])
    assert named
    assert re.sub(r"`[^`]*`|[, ]", "", cells[3]) == ""
    for path, name in named:
        assert name in functions_of(path), f"{path} has no {name}"


def test_there_is_a_table() -> None:
    assert len(ROWS) > 40
