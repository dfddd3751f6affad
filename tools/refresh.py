"""ibpfs refresh: longer leases for what an exNode names."""

from pathlib import Path

import click

from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.lors.upkeep import Renewal
from ibpfs.exnode_store.lors.upkeep import refresh as renew
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import Pace, change, change_options, document_argument, note, pace_options, run
from ibpfs_tools.upload import lease_of


@command("refresh")
@document_argument
@click.option("-d", "--duration", default="1d", show_default=True, metavar="DURATION",
              help="From now on for so long, or as long as a depot leases; no lease is shortened.")
@change_options
@pace_options
def refresh(document: Path, duration: str, output: Path | None, force: bool, pace: Pace) -> None:
    """Renew the leases of everything that EXNODE names, and note their ends in it.

    Needs its manage capabilities. Exits with 1 when some lease could not be renewed; the others are, all the same.
    """  # fmt: skip
    lease = lease_of(duration)
    failed: dict[int, str] = {}

    def work(exnode: ExNode) -> ExNode:
        done: Renewal = run(
            lambda depots, advance: renew(exnode, depots, lease, advance, pace.streams), "renewing leases", pace
        )
        failed.update(done.failed)
        note(f"{output or document}: {done.renewed} of {len(exnode.mappings)} leases renewed", pace)
        for address, longest in done.shorter.items():
            note(f"{address} leases for {longest / 3600:.1f} hours at most", pace)
        return done.exnode

    change(document, output, force, work)
    if failed:
        number, trouble = next(iter(failed.items()))
        raise IbpfsError(f"{document}: {len(failed)} leases could not be renewed; mapping {number}: {trouble}")
