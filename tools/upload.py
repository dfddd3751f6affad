"""ibpfs upload: a file onto depots, described by an exNode."""

from pathlib import Path

import click

from ibpfs.config import format_size, parse_duration, parse_size
from ibpfs.depot.wire import Reliability
from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.notation import Notation, notation_of
from ibpfs.exnode_store.lors.outputs import refuse_existing
from ibpfs.exnode_store.lors.storing import Wishes
from ibpfs.exnode_store.lors.storing import upload as store
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import CLEAR, Pace, Places, depot_options, note, pace_options, run, save


@command("upload", epilog=CLEAR)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="EXNODE",
              help="Where the exNode goes: XML for .xnd, JSON for .json.  [default: FILE's name and .xnd, here]")
@click.option("--force", is_flag=True, help="Also over an exNode that exists.")
@depot_options
@click.option("-c", "--copies", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="On so many depots each byte.")
@click.option("-b", "--block-size", metavar="SIZE", help="Bytes of one allocation.  [default: 4M]")
@click.option("-F", "--fragments", type=click.IntRange(1), metavar="N",
              help="Instead of a block size: cut each copy into so many pieces.")
@click.option("-d", "--duration", default="1d", show_default=True, metavar="DURATION",
              help="Lease for so long, or as long as a depot does.")
@click.option("-s", "--volatile", is_flag=True, help="Depots may drop it when they need the room.")
@click.option("--function", "function", type=click.Choice(["none", "checksum"]), default="none", show_default=True,
              help="End-to-end conditioning; libdlt does not understand it.")
@pace_options
def upload(
    file: Path,
    output: Path | None,
    force: bool,
    places: Places,
    copies: int,
    block_size: str | None,
    fragments: int | None,
    duration: str,
    volatile: bool,
    function: str,
    pace: Pace,
) -> None:
    """Store FILE on depots and write an exNode that says where.

    Pieces go round the depots, copies of a piece to different ones. The exNode grants everything: who has it can read,
    change, renew and delete. Give away what 'ibpfs exnode convert --read-only' makes of it.
    """  # fmt: skip
    target = output or Path(f"{file.name}.xnd")
    refuse_existing(target, force)
    wishes = Wishes(
        copies=copies,
        block=_block(file, block_size, fragments),
        lease=lease_of(duration),
        reliability=Reliability.VOLATILE if volatile else Reliability.STABLE,
        checksum=function == "checksum",
        streams=pace.streams,
    )
    exnode = run(
        lambda depots, advance: store(file, depots, places.addresses, wishes, advance),
        f"uploading {file.name}",
        pace,
        places.addresses,
    )
    save(target, exnode, notation_of(target) or Notation.XML, overwrite=force)
    used = len({str(mapping.location) for mapping in exnode.mappings})
    note(f"{target}: {format_size(exnode.size)} in {len(exnode.mappings)} allocations on {used} depots", pace)
    ends = [mapping.end - mapping.start for mapping in exnode.mappings if mapping.end and mapping.start]
    if ends and min(ends) < wishes.lease * 1_000_000:
        note(f"some depots lease for {min(ends) / 3.6e9:.1f} hours only; renew with: ibpfs refresh {target}", pace)


def _block(file: Path, block_size: str | None, fragments: int | None) -> int:
    if block_size and fragments:
        raise UsageError("--block-size and --fragments exclude each other")
    if fragments:
        return max(-(-file.stat().st_size // fragments), 1)
    size = parse_size(block_size or "4M")
    if size < 1:
        raise UsageError("a block has at least one byte")
    return size


def lease_of(duration: str) -> int:
    seconds = int(parse_duration(duration))
    if seconds < 1:
        raise UsageError("a lease lasts at least a second")
    return seconds
