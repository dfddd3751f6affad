"""ibpfs trim: fewer copies of what an exNode names."""

from collections.abc import Sequence
from pathlib import Path

import click

from ibpfs.depot.address import Address
from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.lors.plans import surplus
from ibpfs.exnode_store.lors.upkeep import Health, examine, releasable, without
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import Pace, change, document_argument, note, pace_options, run


@command("trim")
@document_argument
@click.option("-m", "--mapping", "numbers", type=click.IntRange(0), multiple=True, metavar="N",
              help="This one, as 'ibpfs ls' numbers them; may be given several times.")
@click.option("--depot", "depots", multiple=True, metavar="ibp://HOST:PORT", help="All on this depot.")
@click.option("--dead", is_flag=True, help="All that their depots no longer have.")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="All but N of each byte.")
@click.option("--keep-allocations", is_flag=True, help="Only forget them; their leases end by themselves.")
@click.option("--force", is_flag=True, help="Even the last copy; also over an output file that exists.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the exNode there.  [default: over the old one]")
@pace_options
def trim(
    document: Path,
    numbers: tuple[int, ...],
    depots: tuple[str, ...],
    dead: bool,
    keep: int | None,
    keep_allocations: bool,
    output: Path | None,
    force: bool,
    pace: Pace,
) -> None:
    """Take replicas out of EXNODE and give their allocations back to the depots.

    The last copy of a byte stays, unless it is known to be gone or --force is given.
    """  # fmt: skip
    if not (numbers or depots or dead or keep):
        raise UsageError("say what is to go: --mapping, --depot, --dead or --keep")
    places = {Address.parse(word).place for word in depots}
    left = []

    def work(exnode: ExNode) -> ExNode:
        health = _ask(exnode, pace) if dead or keep else None
        gone = choose(exnode, set(numbers), places, health, dead=dead, keep=keep)
        kept = _without(exnode, gone, health, force)
        left.extend(releasable(exnode, gone, kept))
        note(f"{output or document}: {len(gone)} of {len(exnode.mappings)} mappings taken out", pace)
        return kept

    change(document, output, force, work)
    if left and not keep_allocations:  # the document no longer names them
        stuck = run(lambda depots, _: depots.release(left), "giving back", pace)
        if stuck:
            note(f"{len(stuck)} allocations could not be given back; their leases end by themselves", pace)


def choose(
    exnode: ExNode,
    numbers: set[int],
    places: set[Address],
    health: Sequence[Health] | None,
    *,
    dead: bool,
    keep: int | None,
) -> set[int]:
    """Return the mappings that are to go, by number."""
    mappings = exnode.mappings
    gone = set(numbers)
    gone |= {n for n, one in enumerate(mappings) if one.capability and Address.of(one.capability).place in places}
    lost = {n for n, one in enumerate(health or []) if one.alive is False}
    if dead:
        gone |= lost
    if keep is not None:
        silent = {n for n, one in enumerate(health or []) if one.alive is None}
        rest = [n for n in range(len(mappings)) if n not in gone and n not in lost]
        worst_first = sorted(range(len(rest)), key=lambda at: (rest[at] not in silent, -at))
        chosen = surplus([mappings[n] for n in rest], exnode.size, keep, worst_first)
        gone |= {rest[at] for at in chosen}
    return gone


def _ask(exnode: ExNode, pace: Pace) -> list[Health]:
    return run(lambda depots, advance: examine(exnode, depots, advance, pace.streams), "asking depots", pace)


def _without(exnode: ExNode, gone: set[int], health: list[Health] | None, force: bool) -> ExNode:
    """What is known to be gone is no loss."""
    if health is None or force:
        return without(exnode, gone, force=force)
    lost = {number for number, one in enumerate(health) if one.alive is False}
    living = without(exnode, lost & gone, force=True)
    return without(living, _renumbered(gone - lost, lost & gone))


def _renumbered(numbers: set[int], removed: set[int]) -> set[int]:
    return {number - sum(other < number for other in removed) for number in numbers}
