"""`tools/bench inodes`: what a volume of very many files costs: memory of the mount, time to mount."""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import Namespace
from ibpfs_tools.benchmarks import report, systems
from ibpfs_tools.benchmarks.measures import Measures

_IN_DIRECTORY = 1000
_MIB = 1 << 20


def fill(paths: VolumePaths, count: int) -> None:
    """Make a volume with so many empty files, a thousand to a directory, without the detour through a mount."""
    create_volume(paths)
    with Database(paths.store) as db:
        names = Namespace(db, time.time_ns, Ledger(db, time.time).unmap)
        for number in range(0, count, _IN_DIRECTORY):
            with db.transaction():
                directory = names.create(1, b"%07d" % number, NewInode(0o040755, 0, 0)).ino
                for one in range(min(_IN_DIRECTORY, count - number)):
                    names.create(directory, b"file%04d" % one, NewInode(0o100644, 0, 0))


@contextmanager
def mounted(paths: VolumePaths, mountpoint: Path) -> Iterator[float]:
    """The seconds that mounting took."""
    began = time.perf_counter()
    systems.run([systems.COMMANDS / "mount.ibpfs", paths.root, mountpoint])
    try:
        yield time.perf_counter() - began
    finally:
        systems.run([systems.COMMANDS / "umount.ibpfs", mountpoint])


def resident(paths: VolumePaths) -> float:
    """MiB of all processes of the mount."""
    pids = json.loads(systems.run([systems.COMMANDS / "ibpfs", "status", "--json", paths.root]))["pids"]
    return sum(_resident_pages(pid) for pid in pids) * 4096 / _MIB


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def measure(measures: Measures, place: Path, count: int) -> None:
    paths, mountpoint = VolumePaths(place / "volume"), place / "mnt"
    mountpoint.mkdir()
    fill(paths, count)

    def add(what: str, value: float, unit: str) -> None:
        measures.add(f"{what} @ {count:,} inodes", value, unit)

    with mounted(paths, mountpoint) as seconds:
        add("mount", seconds, "s")
        add("resident", resident(paths), "MiB")
        began = time.perf_counter()
        subprocess.run(["find", str(mountpoint), "-size", "+1"], check=True, stdout=subprocess.DEVNULL)
        add("find with stat of all", count / (time.perf_counter() - began), "/s")
        add("resident, all known to the kernel", resident(paths), "MiB")


@click.command("inodes")
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--count", "counts", type=click.IntRange(min=1), multiple=True, default=(10_000, 1_000_000),
              show_default=True, help="Files; may be given several times.")
@click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="On the disk that is to be used.  [default: the system's directory for temporary files]")
@click.option("--json", "to", type=click.Path(dir_okay=False, path_type=Path), help="Write all values here.")
def inodes(rounds: int, counts: tuple[int, ...], directory: Path | None, to: Path | None) -> None:
    """Measure mounts of volumes with very many files: time to mount, resident memory."""
    measures = Measures()
    for number in range(rounds):
        measures.begin_round()
        for count in counts:
            click.echo(f"round {number + 1} of {rounds}: {count:,} inodes", err=True)
            with tempfile.TemporaryDirectory(prefix="ibpfs-bench-", dir=directory) as place:
                measure(measures, Path(place), count)
    most = max(counts)
    bounds = [(2.0, f"mount @ {most:,} inodes"), (300.0, f"resident, all known to the kernel @ {most:,} inodes")]
    print(_table(measures, counts), "", *(_verdict(measures, *bound) for bound in bounds), sep="\n")
    if to is not None:
        report.write_json(to, report.as_json("inodes", measures))


def _table(measures: Measures, counts: tuple[int, ...]) -> str:
    lines = [["", "unit", *(f"{count:,}" for count in counts)]]
    for what in dict.fromkeys(row.partition(" @ ")[0] for row in measures.values):
        rows = [f"{what} @ {count:,} inodes" for count in counts]
        lines.append([what, measures.units[rows[0]], *(report.number(measures.median(row)) for row in rows)])
    return report.table(lines)


def _verdict(measures: Measures, most: float, row: str) -> str:
    got = measures.median(row)
    said = "met" if got <= most else "MISSED"
    return f"{said:6}  {row}: {report.number(got)}, wanted at most {report.number(most)} {measures.units[row]}"

