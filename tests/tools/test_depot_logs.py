"""The lines that a depot logs."""

import json
import logging
import sys
from typing import Any

import pytest

from ibpfs_tools.depot_logs import JsonLines, Logfmt


def record(text: str, *values: Any, error: bool = False) -> logging.LogRecord:
    raised = None
    if error:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            raised = sys.exc_info()
    made = logging.LogRecord("depot", logging.WARNING, __file__, 1, text, values, raised)
    made.created = 1_700_000_000.5
    return made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain", "msg=plain"),
        ("store opened allocations=3 capacity=10", 'msg="store opened" allocations=3 capacity=10'),
        ('a "quoted" one', 'msg="a \\"quoted\\" one"'),
        ("x=1 in front", 'msg="x=1 in front"'),
        ("line\nbreak", 'msg="line\\nbreak"'),
        ("fields are not taken over level=debug a=b=c", 'msg="fields are not taken over" a="b=c"'),
    ],
)
def test_logfmt(text: str, said: str) -> None:
    line = Logfmt().format(record(text))
    assert line == f"time=2023-11-14T22:13:20.500Z level=warning logger=depot {said}"


def test_json() -> None:
    text = JsonLines().format(record("store opened allocations=%d", 3, error=True))
    assert "\n" not in text
    said = json.loads(text)
    assert said.pop("exception").endswith("ValueError: two\nlines")
    assert said == {
        "time": "2023-11-14T22:13:20.500Z", "level": "warning", "logger": "depot", "msg": "store opened",
        "allocations": "3",
    }  # fmt: skip
