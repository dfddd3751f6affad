"""`tools/bench distance`: ibpfs, and peers that can be far from what keeps their bytes, over a long and narrow link."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ibpfs_tools.benchmarks import far_workloads, references, report
from ibpfs_tools.benchmarks.chart import TURNS, draw
from ibpfs_tools.benchmarks.far_systems import Link, far_systems, relayed
from ibpfs_tools.benchmarks.far_workloads import AFTER, CACHED, KNOWN, UNTAR
from ibpfs_tools.benchmarks.measures import Target
from ibpfs_tools.benchmarks.mounts import Results, in_turn, measure_system, row, tables
from ibpfs_tools.benchmarks.systems import OURS, System
from ibpfs_tools.benchmarks.workloads import Result, Size

#: As many files are unpacked while as many round trips would take place.
PER_ROUND_TRIP = 20


def bare(link: Link) -> str:
    return f"the link alone, {link.rtt:g} ms"


def targets(link: Link) -> list[Target]:
    def ours(workload: str) -> str:
        return row(over(workload, link), OURS)

    return [
        *([Target(ours(UNTAR), PER_ROUND_TRIP * 1e3 / link.rtt)] if link.rtt >= 80 else []),
        Target(ours(AFTER), 0.8, bare(link)),
        *(Target(ours(f"{known}: {TURNS}"), 0, most=0) for known in (KNOWN, CACHED)),
    ]


def over(workload: str, link: Link) -> str:
    return f"{workload}, {link.rtt:g} ms"


class _Over(Results):
    """Results of one link, beside those of the others."""

    def __init__(self, results: Results, link: Link) -> None:
        super().__init__(results.measures, results.costs)
        self._link = link

    def add(self, system: System, result: Result) -> None:
        super().add(system, replace(result, workload=over(result.workload, self._link)))


def measure(directory: Path, links: Sequence[Link], only: Sequence[str], size: Size, rounds: int) -> Results:
    results = Results()
    source = references.source_file(directory, 16)
    for number in range(rounds):
        results.begin_round()
        for link in links:
            results.measures.add(bare(link), _bare_speed(link, source), "MB/s")
            for system in in_turn(chosen(link, only), number):
                click.echo(f"round {number + 1} of {rounds}, {link.rtt:g} ms: {system.name}", err=True)
                measure_system(_Over(results, link), directory, system, far_workloads.ALL, size)
    return results


def _bare_speed(link: Link, source: Path) -> float:
    """MB/s of one connection that only receives, once its first bytes are here."""
    with references.sending(source, 4) as port, relayed(link, f"127.0.0.1:{port}") as far:
        return references.receive(far.ports[0], 4)


def chosen(link: Link, only: Sequence[str]) -> list[System]:
    return [system for system in far_systems(link) if not only or system.name in only or system.name == OURS]


@click.command("distance")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--rtt", "rtts", type=click.FloatRange(min=0, min_open=True), multiple=True, default=(20, 80),
              show_default=True, metavar="MS", help="Of a round trip; may be given several times.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=100, show_default=True, metavar="MBIT",
              help="Of the link, each way, per second.")
@click.option("--only", multiple=True, metavar="SYSTEM",
              type=click.Choice([system.name for system in far_systems(Link(1, 1))]),
              help="Beside ibpfs, these systems alone; may be given several times.")
@click.option("--files", type=click.IntRange(min=50), default=1000, show_default=True, help="Of 4 KiB.")
@click.option("--stream", type=click.IntRange(min=4), default=64, show_default=True, metavar="MIB",
              help="How long the large file is.")
@click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="On the disk that is to be used.  [default: the system's directory for temporary files]")
@click.option("--json", "to", type=click.Path(dir_okay=False, path_type=Path), help="Write all values here.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="Draw the ratios into this PNG file.")
def distance(
    rounds: int, rtts: Sequence[float], rate: float, only: tuple[str, ...], files: int, stream: int,
    directory: Path | None, to: Path | None, chart: Path | None,
) -> None:  # fmt: skip
    """Measure file systems whose bytes are far away.

    All depots, and the server of sshfs and of rclone, are behind a relay that delays and limits both directions. The
    number in brackets says how many times as fast ibpfs is.
    """
    links = [Link(rtt, rate) for rtt in rtts]
    systems = chosen(links[0], only)
    names = [system.name for system in systems]
    with tempfile.TemporaryDirectory(prefix="ibpfs-bench-", dir=directory) as place:
        results = measure(Path(place), links, only, Size(files=files, stream=stream, synced=20), rounds)
    measures = results.measures
    beside = [f"{bare(link)}: {report.number(measures.median(bare(link)))} MB/s" for link in links]
    wanted = [target for link in links for target in targets(link)]
    print(tables(results, names, beside), "", *(report.verdict(target, measures) for target in wanted), sep="\n")
    if to is not None:
        missing = {system.name: system.missing for system in systems if system.missing}
        costs = report.rows(results.costs)
        report.write_json(to, report.as_json("distance", measures, wanted, costs=costs, missing=missing))
    if chart is not None:
        draw(chart, measures, names)
