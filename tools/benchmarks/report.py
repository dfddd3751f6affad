"""How results are told: a table for people, JSON for programs."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ibpfs_tools.benchmarks.measures import Measures, Target


def number(value: float) -> str:
    """Three digits are all that a benchmark knows."""
    if math.isnan(value):
        return "missing"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(lines: Iterable[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    rows = [list(line) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_aligned(row, widths).rstrip() for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])


def verdict(target: Target, measures: Measures) -> str:
    got, met = target.reached(measures), "met" if target.met(measures) else "MISSED"
    beside = f" of {target.reference}" if target.reference else f" {measures.units.get(target.row, '')}"
    bound = number(target.least) if math.isinf(target.most) else f"at most {number(target.most)}"
    return f"{met:6}  {target.row}: {number(got)}, wanted {bound}{beside}"


def as_json(bench: str, measures: Measures, targets: Sequence[Target] = (), **more: Any) -> dict[str, Any]:
    """All that was measured, with what is needed to run it again."""
    return {
        "bench": bench,
        "machine": machine(),
        "command": sys.argv[1:],
        **more,
        "rounds": measures.rounds,
        "rows": rows(measures),
        "targets": [
            {
                "row": target.row,
                "reference": target.reference,
                "least": target.least,
                "most": None if math.isinf(target.most) else target.most,
                "reached": _known(target.reached(measures)),
                "met": target.met(measures),
            }
            for target in targets
        ],
    }


def rows(measures: Measures) -> dict[str, Any]:
    return {
        row: {
            "unit": measures.units[row],
            "median": _known(measures.median(row)),
            "values": [_known(value) for value in measures.of(row)],
        }
        for row in measures.values
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "commit": commit(),
    }


def commit() -> str | None:
    """Of the checkout this runs from; None where it is installed."""
    here = Path(__file__).resolve().parent
    said = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or None
