"""`tools/bench depot`: the bundled depot alone, beside the disk and the loopback that it uses."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from ibpfs_tools.benchmarks import depot_operations as operations
from ibpfs_tools.benchmarks import own_client, references, report
from ibpfs_tools.benchmarks.depot_operations import Load, Manner, Place
from ibpfs_tools.benchmarks.hostile import besieged
from ibpfs_tools.benchmarks.measures import Measures, Target

MANNERS = [Manner(connections, pipelined) for connections in (1, 4, 16) for pipelined in (False, True)]
ONE, ONE_PIPELINED, SIXTEEN = Manner(1, False), Manner(1, True), Manner(16, False)

DD, SENDFILE, APPENDS = "dd conv=fsync", "bare sendfile loop", "append 4 KiB + fdatasync, one program alone"
LARGE_STORE, LARGE_LOAD, SMALL_STORE, SMALL_LOAD = "store 4 MiB", "load 4 MiB", "store 4 KiB", "load 4 KiB"
BESIEGED = " beside hostile clients"

REFERENCES = {LARGE_STORE: DD, LARGE_LOAD: SENDFILE, SMALL_STORE: APPENDS}
TARGETS = [
    Target(ONE_PIPELINED.row("allocate"), 2500),
    Target(ONE_PIPELINED.row("renew"), 6000),
    Target(SIXTEEN.row(SMALL_STORE), 2200),
    *(Target(manner.row(LARGE_STORE), 0.6, DD) for manner in MANNERS),
    *(Target(manner.row(LARGE_LOAD), 0.6, SENDFILE) for manner in MANNERS),
    *(Target(large + own_client.THROUGH_TLS, 0.5, large) for large in (own_client.STORE, own_client.LOAD)),
]


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    load: Load
    idle: int
    slow: int


def measure(directory: Path, plan: Plan) -> Measures:
    """All rows, once per round."""
    measures = Measures()
    source = references.source_file(directory, plan.load.large)
    with running_depot(directory / "store", plan.idle + plan.slow) as (place, pid):
        for _ in _told(plan.rounds):
            measures.begin_round()
            _measure_references(measures, directory, source, plan)
            for manner in MANNERS:
                for operation, value, unit in operations.run(place, plan.load, manner):
                    measures.add(manner.row(operation), value, unit)
            for row, value, unit in own_client.run(place, plan.load.large):
                measures.add(row, value, unit)
            _measure_besieged(measures, place, pid, plan)
    return measures


def _told(rounds: int) -> Iterator[int]:
    """On standard error, where people look who wait."""
    for number in range(1, rounds + 1):
        click.echo(f"round {number} of {rounds}", err=True)
        yield number


def _measure_references(measures: Measures, directory: Path, source: Path, plan: Plan) -> None:
    measures.add(DD, references.dd_with_fsync(directory, source, plan.load.large), "MB/s")
    measures.add(SENDFILE, references.sendfile_over_loopback(source, plan.load.large), "MB/s")
    measures.add(APPENDS, references.appends_with_fdatasync(directory, plan.load.small), "/s")


def _measure_besieged(measures: Measures, place: Place, pid: int, plan: Plan) -> None:
    with besieged(place, plan.idle, plan.slow):
        for operation, value, unit in operations.run(place, Load(plan.load.small, 1), ONE):
            if operation in (SMALL_STORE, SMALL_LOAD):
                measures.add(ONE.row(operation) + BESIEGED, value, unit)
        measures.add("resident memory of the depot" + BESIEGED, resident_bytes(pid) / 2**20, "MiB")


@contextmanager
def running_depot(store: Path, connections: int) -> Iterator[tuple[Place, int]]:
    """A depot as an operator starts it, that takes so many connections; its place and process."""
    arguments = ["--listen", "127.0.0.1:0", "--store", str(store), "--max-connections", str(connections + 100)]
    depot = subprocess.Popen(
        [sys.executable, "-m", "ibpfs_tools.depot", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert depot.stdout is not None
        ready = re.search(rb"ready ibp://127\.0\.0\.1:(\d+)", depot.stdout.readline())
        if ready is None:
            raise click.ClickException(f"the depot did not start: {depot.stderr and depot.stderr.read()!r}")
        yield ("127.0.0.1", int(ready[1])), depot.pid
    finally:
        depot.terminate()
        depot.communicate()


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def rendered(measures: Measures) -> str:
    lines = [["", "median", "best", "unit", "ratio", "to"]]
    for row in measures.values:
        reference = _reference(row)
        ratio = report.number(measures.ratio(row, reference)) if reference else ""
        values = report.number(measures.median(row)), report.number(measures.best(row))
        lines.append([row, *values, measures.units[row], ratio, reference])
    return report.table(lines)


def _reference(row: str) -> str:
    if row.endswith(BESIEGED) and not row.startswith("resident"):
        return row.removesuffix(BESIEGED)
    if row.endswith(own_client.THROUGH_TLS):
        return row.removesuffix(own_client.THROUGH_TLS)
    return REFERENCES.get(row.partition(",")[0], "")


@click.command("depot")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--small", type=click.IntRange(min=1), default=2000, show_default=True,
              help="Commands, or pieces of 4 KiB, per row and round.")
@click.option("--large", type=click.IntRange(min=1), default=48, show_default=True,
              help="Pieces of 4 MiB per row and round.")
@click.option("--idle", type=click.IntRange(min=0), default=10_000, show_default=True,
              help="Hostile clients that say nothing.")
@click.option("--slow", type=click.IntRange(min=1), default=500, show_default=True,
              help="Hostile clients that say one byte per second.")
@click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="On the disk that is to be measured.  [default: the system's directory for temporary files]")
@click.option("--json", "to", type=click.Path(dir_okay=False, path_type=Path), help="Write all values here.")
def depot(
    rounds: int, small: int, large: int, idle: int, slow: int, directory: Path | None, to: Path | None
) -> None:  # fmt: skip
    """Measure the bundled depot.

    Leases, small and large pieces, over 1, 4 and 16 connections, pipelined and not; beside `dd conv=fsync` on the same
    disk and a bare `sendfile` loop over loopback in the same round; and what hostile clients leave of it.
    """
    with tempfile.TemporaryDirectory(prefix="ibpfs-bench-", dir=directory) as place:
        measures = measure(Path(place), Plan(rounds, Load(small, large), idle, slow))
    print(rendered(measures), "", *(report.verdict(target, measures) for target in TARGETS), sep="\n")
    if to is not None:
        report.write_json(to, report.as_json("depot", measures, TARGETS))
