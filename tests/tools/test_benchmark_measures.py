"""Medians, ratios per round, and how they are told."""

import json
import math

import pytest

from ibpfs_tools.benchmarks import report
from ibpfs_tools.benchmarks.measures import Measures, Target


def three_rounds() -> Measures:
    measures = Measures()
    for ours, theirs in ((10.0, 20.0), (90.0, 100.0), (30.0, 50.0)):
        measures.begin_round()
        measures.add("ours", ours, "/s")
        measures.add("theirs", theirs, "/s")
    return measures


def test_the_ratio_is_the_median_of_the_rounds_ratios_not_that_of_the_medians() -> None:
    measures = three_rounds()
    assert measures.median("ours") == 30.0
    assert measures.best("ours") == 90.0
    assert measures.ratio("ours", "theirs") == pytest.approx(0.6)  # of 0.5, 0.9, 0.6


def test_what_a_round_lacks_counts_in_no_median_and_no_ratio() -> None:
    measures = Measures()
    measures.begin_round()
    measures.add("ours", 4.0, "/s")
    measures.begin_round()
    measures.add("ours", 6.0, "/s")
    measures.add("late", 3.0, "/s")
    assert measures.ratio("ours", "late") == 2.0
    assert measures.median("late") == 3.0
    assert math.isnan(measures.of("late")[0])
    assert math.isnan(measures.median("never measured"))
    assert math.isnan(measures.ratio("ours", "never measured"))


def test_a_reference_of_nothing_gives_no_ratio() -> None:
    measures = Measures()
    measures.begin_round()
    measures.add("ours", 4.0, "/s")
    measures.add("theirs", 0.0, "/s")
    assert math.isnan(measures.ratio("ours", "theirs"))


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("ours", 30), True),
        (Target("ours", 31), False),
        (Target("ours", 0.6, "theirs"), True),
        (Target("ours", 0.61, "theirs"), False),
        (Target("never measured", 1), False),
        (Target("ours", 0, most=30), True),
        (Target("ours", 0, most=29), False),
    ],
)
def test_targets(target: Target, met: bool) -> None:
    assert target.met(three_rounds()) is met


def test_what_is_written_can_be_read_by_any_reader_of_json() -> None:
    measures = three_rounds()
    measures.begin_round()
    measures.add("ours", 20.0, "/s")
    document = report.as_json("test", measures, [Target("never measured", 1)], extra=7)
    read = json.loads(json.dumps(document, allow_nan=False))
    assert read["rows"]["theirs"] == {"unit": "/s", "median": 50.0, "values": [20.0, 100.0, 50.0, None]}
    assert read["targets"] == [
        {"row": "never measured", "reference": None, "least": 1, "most": None, "reached": None, "met": False}
    ]
    assert read["rounds"] == 4
    assert read["extra"] == 7


def test_a_table_is_aligned_and_says_what_is_missing() -> None:
    lines = [["", "median"], ["rename", report.number(1234.4)], ["untar", report.number(math.nan)]]
    assert report.table(lines) == "         median\nrename    1,234\nuntar   missing"


@pytest.mark.parametrize(("value", "text"), [(0.6012, "0.60"), (12.34, "12.3"), (99.94, "99.9"), (1234.5, "1,234")])
def test_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text
