"""How many times as fast ibpfs is as the others, drawn: one line of points per workload, one colour per system."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import click

#: The unit of what is better the less there is of it, and not drawn.
TURNS = "round trips"

if TYPE_CHECKING:
    from ibpfs_tools.benchmarks.measures import Measures


def draw(path: Path, measures: "Measures", names: Sequence[str]) -> None:
    """A PNG. Right of the middle line ibpfs, `names[0]`, is the faster one."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.ClickException("drawing needs matplotlib: pip install 'ibpfs[bench]'") from None
    rates = [one for one in measures.values if " @ " in one and measures.units[one] != TURNS]
    workloads = list(dict.fromkeys(one.partition(" @ ")[0] for one in rates))
    figure = Figure(figsize=(11, 1.6 + 0.3 * len(workloads)), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(names[1:], cycle("osD^vPX*"), strict=False):
        ratios = [measures.ratio(f"{one} @ {names[0]}", f"{one} @ {name}") for one in workloads]
        axes.plot(ratios, range(len(workloads)), marker, label=name, alpha=0.85, markersize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(workloads)), workloads)
    axes.set_ylim(len(workloads) - 0.5, -0.5)
    for band in range(0, len(workloads), 2):
        axes.axhspan(band - 0.5, band + 0.5, color="grey", alpha=0.08, linewidth=0)
    axes.grid(axis="x", which="major", alpha=0.4)
    axes.set_xlabel(f"left: the other one is faster      {names[0]} is so many times as fast      right: it is faster")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=110)
