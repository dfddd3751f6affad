"""`tools/bench`: the command with its benchmarks."""

import click

from ibpfs_tools import exits
from ibpfs_tools.benchmarks.depot import depot
from ibpfs_tools.benchmarks.distance import distance
from ibpfs_tools.benchmarks.inodes import inodes
from ibpfs_tools.benchmarks.mounts import mounts
from ibpfs_tools.commands import CONTEXT


@click.group("bench", context_settings=CONTEXT)
def bench() -> None:
    """Measure ibpfs beside what the machine can do and beside its peers."""


bench.add_command(depot)
bench.add_command(mounts)
bench.add_command(distance)
bench.add_command(inodes)

if __name__ == "__main__":
    exits.run(bench, exits.COMMAND)
