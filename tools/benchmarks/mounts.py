"""`tools/bench mounts`: ibpfs as a mounted file system, beside the disk, the ceiling of its stack, and its peers."""

import math
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import click

from ibpfs_tools.benchmarks import references, report, systems, workloads
from ibpfs_tools.benchmarks.chart import draw
from ibpfs_tools.benchmarks.measures import Measures, Target, present
from ibpfs_tools.benchmarks.references import source_file
from ibpfs_tools.benchmarks.systems import CEILING, GOCRYPTFS, OURS, RCLONE, S3QL, SSHFS, CannotMount, System
from ibpfs_tools.benchmarks.workloads import LAST_TENTH, Result, Size, Work

AHEAD = "workloads ahead of gocryptfs"
DD, SENDFILE = "dd conv=fsync", "bare sendfile loop"
METADATA = (
    "create 4 KiB files", "open + read + close, warm", "rename", "unlink", "stat, cold", "untar", "find + stat, cold",
    "git add + commit", "git status, cold", "tar c, cold", "rm -rf",
)  # fmt: skip
STORED = (
    "write 1 MiB blocks, until stored", "create 4 KiB files, until stored", "untar, until stored",
    "read 1 MiB blocks, cold", "open + read + close, cold", "random 4 KiB reads, cold", "first byte, cold",
    "tar c, cold",
)  # fmt: skip


def row(workload: str, system: str) -> str:
    return f"{workload} @ {system}"


def _target(workload: str, least: float, system: str) -> Target:
    return Target(row(workload, OURS), least, row(workload, system))


TARGETS = [
    *(_target(workload, 0.6, CEILING) for workload in METADATA),
    *(_target(workload, 1, peer) for peer in (S3QL, SSHFS, RCLONE) for workload in METADATA),
    *(_target(workload, 2.5, S3QL) for workload in STORED),
    Target(row("write 1 MiB blocks, until stored", OURS), 0.25, DD),
    Target(row("read 1 MiB blocks, cold", OURS), 0.25, SENDFILE),
    _target("create + fsync each", 1, SSHFS),
    _target("random 4 KiB writes, one fsync", 0.5, CEILING),
    _target("write 1 MiB blocks", 0.6, CEILING),
    # What the kernel has in its pages nobody is asked for.
    _target("random 4 KiB reads, in the mount's cache", 1.5, S3QL),
    Target(row(LAST_TENTH, OURS), 0.9),
    Target(AHEAD, 1 / 3),
]


@dataclass(slots=True)
class Results:
    """`costs`: microseconds of CPU time of the process that serves the kernel, per operation or MB."""

    measures: Measures = field(default_factory=Measures)
    costs: Measures = field(default_factory=Measures)

    def add(self, system: System, result: Result) -> None:
        self.measures.add(row(result.workload, system.name), result.value, result.unit)
        if not math.isnan(result.cost):
            self.costs.add(row(result.workload, system.name), result.cost, "us")

    def begin_round(self) -> None:
        self.measures.begin_round()
        self.costs.begin_round()


def measure(directory: Path, chosen: Sequence[System], size: Size, rounds: int) -> Results:
    """Systems take turns; in every round another one begins, so that none always comes after the same."""
    results = Results()
    measures = results.measures
    pieces = max(16, size.stream // 4)
    source = source_file(directory, pieces)
    for number in range(rounds):
        results.begin_round()
        measures.add(DD, references.dd_with_fsync(directory, source, pieces), "MB/s")
        measures.add(SENDFILE, references.sendfile_over_loopback(source, pieces), "MB/s")
        for system in in_turn(chosen, number):
            click.echo(f"round {number + 1} of {rounds}: {system.name}", err=True)
            measure_system(results, directory, system, workloads.ALL, size)
    if beside := _ratios(measures, GOCRYPTFS):
        measures.add(AHEAD, sum(ratio > 1 for ratio in beside) / len(beside), "of all")
    return results


def _ratios(measures: Measures, name: str) -> list[float]:
    return present([measures.ratio(row(one, OURS), row(one, name)) for one in workloads_in(measures)])


def in_turn(chosen: Sequence[System], number: int) -> list[System]:
    """Those that are here, in the order of this round."""
    here = [system for system in chosen if not system.missing]
    return here[number % len(here) :] + here[: number % len(here)]


def measure_system(results: Results, directory: Path, system: System, works: Sequence[Work], size: Size) -> None:
    """A peer that fails costs its own rows alone."""
    with tempfile.TemporaryDirectory(prefix="system-", dir=directory) as place:
        try:
            with system.opened(Path(place)) as mounted:
                for work in works:
                    for result in work(mounted, size):
                        results.add(system, result)
        except (CannotMount, OSError) as error:
            click.echo(f"{system.name}: {error}", err=True)
            if system.name.startswith(OURS):
                traceback.print_exc()


def rendered(results: Results, chosen: Sequence[System]) -> str:
    """Medians, and behind each that of another system how many times as fast, or as costly, ibpfs is."""
    measures, names = results.measures, [system.name for system in chosen]
    beside = [f"{name}: {report.number(measures.median(name))} MB/s" for name in (DD, SENDFILE)]
    return tables(results, names, beside)


def tables(results: Results, names: Sequence[str], beside: Sequence[str]) -> str:
    costly = [name for name in names if any(one.endswith(f" @ {name}") for one in results.costs.values)]
    costs = ["", "CPU time of the process that serves the kernel, per operation or MB:", _table(results.costs, costly)]
    return "\n".join([_table(results.measures, names), *beside, *(costs if costly else [])])


def _table(measures: Measures, names: Sequence[str]) -> str:
    lines = [["", "unit", *names]]
    for workload in workloads_in(measures):
        known = [measures.units[row(workload, name)] for name in names if row(workload, name) in measures.units]
        lines.append([workload, known[0], *(_cell(measures, workload, name) for name in names)])
    return report.table(lines)


def _cell(measures: Measures, workload: str, name: str) -> str:
    median = report.number(measures.median(row(workload, name)))
    if name == OURS or median == "missing":
        return median
    ratio = measures.ratio(row(workload, OURS), row(workload, name))
    return median if math.isnan(ratio) else f"{median} ({report.number(ratio)}x)"


def workloads_in(measures: Measures) -> list[str]:
    return list(dict.fromkeys(one.partition(" @ ")[0] for one in measures.values if " @ " in one))


def _systems(chosen: Sequence[str]) -> list[System]:
    return [system for system in systems.ALL if not chosen or system.name in chosen or system.name == OURS]


@click.command("mounts", epilog=f"Systems: {'; '.join(system.name for system in systems.ALL)}.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice([system.name for system in systems.ALL]), metavar="SYSTEM",
              help="Beside ibpfs, these systems alone; may be given several times.")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1, show_default=True,
              help="How much of the usual work is done.")
@click.option("--many", type=click.IntRange(min=0), default=0, show_default=True,
              help="Also fill one directory with so many files.")
@click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="On the disk that is to be measured.  [default: the system's directory for temporary files]")
@click.option("--json", "to", type=click.Path(dir_okay=False, path_type=Path), help="Write all values here.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="Draw the ratios into this PNG file.")
def mounts(
    rounds: int, only: tuple[str, ...], scale: float, many: int, directory: Path | None, to: Path | None,
    chart: Path | None,
) -> None:  # fmt: skip
    """Measure mounted file systems.

    The same work on ibpfs, on the disk below it, on a file system of the same stack that keeps everything in memory,
    and on peers. The number in brackets says how many times as fast ibpfs is. What is not installed is missing.
    """
    chosen, size = _systems(only), scaled(scale, many)
    with tempfile.TemporaryDirectory(prefix="ibpfs-bench-", dir=directory) as place:
        results = measure(Path(place), chosen, size, rounds)
    measures = results.measures
    known = [target for target in TARGETS if (target.reference or target.row) in measures.values]
    print(rendered(results, chosen), "", *(report.verdict(target, measures) for target in known), sep="\n")
    if to is not None:
        costs = report.rows(results.costs)
        missing = {system.name: system.missing for system in chosen if system.missing}
        report.write_json(to, report.as_json("mounts", measures, TARGETS, costs=costs, missing=missing))
    if chart is not None:
        draw(chart, measures, [system.name for system in chosen])


def scaled(scale: float, many: int) -> Size:
    usual = Size()
    values = {one.name: max(4, int(getattr(usual, one.name) * scale)) for one in fields(Size)}
    return Size(**{**values, "many": many})
