"""How many times as fast ibpfs is as the others, drawn: one line of points per workload, one colour per system."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ibpfs_tools.benchmarks.measures import Measures


def draw(path: Path, measures: "Measures", names: Sequence[str]) -> None:
    """A PNG. Right of the middle line ibpfs, `names[0]`, is the faster one."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise click.ClickException("drawing needs matplotlib: pip install 'ibpfs[bench]'") from None
    workloads = list(dict.fromkeys(one.partition(" @ ")[0] for one in measures.values if " @ " in one))
    figure = Figure(figsize=(10, 1 + 0.32 * len(workloads)), layout="constrained")
    axes = figure.subplots()
    for name in names[1:]:
        ratios = [measures.ratio(f"{one} @ {names[0]}", f"{one} @ {name}") for one in workloads]
        axes.plot(ratios, range(len(workloads)), "o", label=name, alpha=0.8)
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_yticks(range(len(workloads)), workloads)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.set_xlabel(f"{names[0]} is so many times as fast")
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=110)
