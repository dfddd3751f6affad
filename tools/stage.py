"""ibpfs stage: what a link points to, copied close to the receiver before it is fetched."""

import time
from pathlib import Path

import click

from ibpfs.config import data_directory, format_size
from ibpfs.depot.address import Address
from ibpfs.errors import UsageError
from ibpfs.exnode_store.lors.work import Advance, Depots
from ibpfs.exnode_store.sharing.contents import Content
from ibpfs.exnode_store.sharing.links import Link
from ibpfs.exnode_store.sharing.staging import Staged
from ibpfs.exnode_store.sharing.staging import stage as copy_to
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import Pace, note, pace_options, printable, run
from ibpfs_tools.shared import Unlocking, open_link, read_links, unlocking_options
from ibpfs_tools.upload import lease_of


@command("stage")
@click.argument("link", metavar="LINK|FILE|-")
@click.argument("depot", metavar="ibp[s]://HOST:PORT")
@click.option("-d", "--duration", default="1d", show_default=True, metavar="DURATION",
              help="For so long, or as long as the depot leases.")
@unlocking_options
@pace_options
def stage(link: str, depot: str, duration: str, unlocking: Unlocking, pace: Pace) -> None:
    """Have the depots copy what a link points to onto DEPOT.

    From depot to depot where they let each other, else by way of this machine. `ibpfs get` of the same link, by the
    same person, then fetches it from there first.
    """
    address = Address.parse(depot)
    links = read_links(link)
    if len(links) > 1:
        raise UsageError(f"{len(links)} links in it: stage one at a time")
    content = open_link(links[0], unlocking, pace)
    made = staged_on(address, links[0], content, lease_of(duration), pace)
    made.save(place_of(links[0]))
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.until))
    note(f"{printable(content.name)}: {format_size(content.size)} on {address} until {until}", pace)


def staged_on(address: Address, link: Link, content: Content, seconds: int, pace: Pace) -> Staged:
    async def work(depots: Depots, advance: Advance) -> Staged:
        return await copy_to(depots, content, link.locator.id, address, seconds, advance, min(pace.streams, 4))

    return run(work, f"copying {printable(content.name)}", pace, pins=content.pins)


def place_of(link: Link) -> Path:
    """Where it is noted what was staged of a share."""
    return data_directory() / "staged" / f"{link.locator.id}.json"
