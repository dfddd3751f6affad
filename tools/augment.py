"""ibpfs augment: more copies of what an exNode names."""

from pathlib import Path

import click

from ibpfs.depot.wire import Reliability
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.lors.augmenting import augment as copy
from ibpfs.exnode_store.lors.storing import Wishes
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import (
    Pace,
    Places,
    change,
    change_options,
    depot_options,
    document_argument,
    note,
    pace_options,
    run,
)
from ibpfs_tools.upload import lease_of


@command("augment")
@document_argument
@depot_options
@click.option("-c", "--copies", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="So many more of each byte.")
@click.option("-d", "--duration", default="1d", show_default=True, metavar="DURATION",
              help="Lease for so long, or as long as a depot does.")
@click.option("-s", "--volatile", is_flag=True, help="Depots may drop it when they need the room.")
@change_options
@pace_options
def augment(
    document: Path,
    places: Places,
    copies: int,
    duration: str,
    volatile: bool,
    output: Path | None,
    force: bool,
    pace: Pace,
) -> None:
    """Copy everything that EXNODE names to the depots given, and note the copies in it.

    No copy goes to a depot that has the same bytes already. Stored bytes are copied as they are, conditioned or not:
    depots send them to each other, and where they do not, the bytes come and go by this machine.
    """  # fmt: skip
    wishes = Wishes(
        copies=copies,
        lease=lease_of(duration),
        reliability=Reliability.VOLATILE if volatile else Reliability.STABLE,
        streams=pace.streams,
    )

    def work(exnode: ExNode) -> ExNode:
        done, sent = run(
            lambda depots, advance: copy(exnode, depots, places.addresses, wishes, advance),
            f"copying {document.name}",
            pace,
        )
        more = len(done.mappings) - len(exnode.mappings)
        note(f"{output or document}: {more} allocations more, {sent} of them sent from depot to depot", pace)
        return done

    change(document, output, force, work)
