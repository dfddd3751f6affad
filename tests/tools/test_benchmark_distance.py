"""The benchmark over distance: that its targets name what is measured, and that a link is as long as it says."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ibpfs_tools.benchmarks import distance, far_workloads, references
from ibpfs_tools.benchmarks.chart import TURNS
from ibpfs_tools.benchmarks.far_systems import Link, far_systems, relayed
from ibpfs_tools.benchmarks.mounts import Results, row
from ibpfs_tools.benchmarks.systems import Mounted, System
from ibpfs_tools.benchmarks.workloads import MIB, Result, Size

TINY = Size(stream=4, files=30, synced=3)
LONG = Link(rtt=80, rate=100)


def test_every_target_is_about_something_that_is_measured(tmp_path: Path) -> None:
    turns = iter(range(1000))
    near = Mounted(tmp_path, lambda: None, lambda: None, turns=lambda: next(turns))
    results = [result for work in far_workloads.ALL for result in work(near, TINY)]
    names = [result.workload for result in results]
    assert len(set(names)) == len(names)
    assert all(result.value == 1 for result in results if result.unit == TURNS)
    # What a disk nearby reads within a second has nothing after it.
    known = {distance.over(name, LONG) for name in [*names, far_workloads.AFTER]}
    rows = {row(name, system.name) for name in known for system in far_systems(LONG)}
    assert {target.row for target in distance.targets(LONG)} <= rows


def test_only_a_link_that_is_long_wants_files_beside_round_trips() -> None:
    def wanted(rtt: float) -> list[float]:
        return [one.least for one in distance.targets(Link(rtt, 100)) if far_workloads.UNTAR in one.row]

    assert (wanted(80), wanted(20)) == ([250], [])


def test_rows_of_two_links_stay_apart() -> None:
    results = Results()
    results.begin_round()
    for link, value in ((LONG, 1.0), (Link(20, 100), 4.0)):
        distance._Over(results, link).add(System("far", nowhere), Result("read", value, "/s", math.nan))
    assert {name: results.measures.median(name) for name in results.measures.values} == {
        "read, 80 ms @ far": 1.0, "read, 20 ms @ far": 4.0,
    }  # fmt: skip


def test_a_link_carries_no_more_than_its_rate(tmp_path: Path) -> None:
    source = references.source_file(tmp_path, 1)
    with references.sending(source, 1) as port, relayed(Link(rtt=2, rate=400), f"127.0.0.1:{port}") as far:
        began = time.monotonic()
        assert references.receive(far.ports[0], 1) > 0
        assert time.monotonic() - began >= 4 * MIB / 50e6, "50 MB/s"
        assert far.turns() == 0, "who only listens waits for nothing that it asked for"


@contextmanager
def nowhere(_: Path) -> Iterator[Mounted]:
    raise AssertionError("nobody opens it")
    yield
