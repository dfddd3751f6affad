"""The benchmark of the depot, from its command line to its JSON, with next to nothing to do."""

import json
from pathlib import Path

from click.testing import CliRunner

from ibpfs_tools.benchmarks.depot import LARGE_STORE, MANNERS, TARGETS, depot


def test_every_row_is_measured_and_every_target_has_one(tmp_path: Path) -> None:
    arguments = ["--rounds", "1", "--small", "16", "--large", "1", "--idle", "5", "--slow", "2"]
    result = CliRunner().invoke(
        depot, [*arguments, "--directory", str(tmp_path), "--json", str(tmp_path / "out.json")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out.json").read_text())
    rows = document["rows"]
    assert all(row["median"] > 0 for row in rows.values())
    assert {manner.row(LARGE_STORE) for manner in MANNERS} <= set(rows)
    assert {target.row for target in TARGETS} | {t.reference for t in TARGETS if t.reference} <= set(rows)
    assert "renew, 16 connections, pipelined" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
