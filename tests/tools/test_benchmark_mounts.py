"""The benchmark of mounts: that its targets name what is measured, and what is shown of who is missing."""

import math
from contextlib import AbstractContextManager
from pathlib import Path

from ibpfs_tools.benchmarks import workloads
from ibpfs_tools.benchmarks.mounts import AHEAD, DD, SENDFILE, TARGETS, Results, rendered, row, scaled
from ibpfs_tools.benchmarks.systems import ALL, OURS, SSHFS, Mounted, System
from ibpfs_tools.benchmarks.workloads import Result, Size

TINY = Size(stream=1, reads=4, writes=4, files=4, synced=2, tree=30, many=20)


def directory(path: Path) -> Mounted:
    return Mounted(path, lambda: None, lambda: None)


def test_every_target_is_about_something_that_is_measured(tmp_path: Path) -> None:
    results = [result for work in workloads.ALL for result in work(directory(tmp_path), TINY)]
    assert all(result.value > 0 for result in results)
    names = [result.workload for result in results]
    assert len(set(names)) == len(names)
    known = {row(name, system.name) for name in names for system in ALL} | {DD, SENDFILE, AHEAD}
    named = {target.reference for target in TARGETS} - {None}
    assert {target.row for target in TARGETS} | named <= known
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["many", "pages", "small", "stream"]


def test_a_peer_that_is_not_here_has_a_column_that_says_so() -> None:
    results = Results()
    results.measures.begin_round()
    results.costs.begin_round()
    ours, theirs = (next(system for system in ALL if system.name == name) for name in (OURS, SSHFS))
    results.add(ours, Result("rename", 300.0, "/s", 25.0))
    results.add(theirs, Result("rename", 100.0, "/s", math.nan))
    absent = System("absent", opened_by_nobody, ("no-such-command",))
    assert absent.missing == ["no-such-command"]
    lines = rendered(results, [ours, theirs, absent]).splitlines()
    assert lines[1].split() == ["rename", "/s", "300", "100", "(3.00x)", "missing"]
    assert lines[-1].split() == ["rename", "us", "25.0"]


def opened_by_nobody(_: Path) -> AbstractContextManager[Mounted]:
    raise AssertionError("nobody opens what is missing")


def test_less_of_everything() -> None:
    size = scaled(0.1, many=7)
    assert (size.stream, size.files, size.many) == (25, 100, 7)
    assert scaled(0.0001, 0).reads == 4
