"""ibpfs download: the file that an exNode describes."""

from pathlib import Path, PurePosixPath

import click

from ibpfs.config import format_size
from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.lors.downloading import download as fetch
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import (
    Pace,
    Places,
    depot_options,
    document_argument,
    load,
    note,
    pace_options,
    printable,
    run,
)


@command("download")
@document_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the file goes.  [default: the name that the exNode gives, here]")
@click.option("--force", is_flag=True, help="Also over a file that exists.")
@click.option("--restart", is_flag=True, help="Do not go on with an earlier download that broke.")
@click.option("--ignore-checksums", is_flag=True, help="Take blocks whose end-to-end checksum differs.")
@depot_options
@pace_options
def download(
    document: Path,
    output: Path | None,
    force: bool,
    restart: bool,
    ignore_checksums: bool,
    places: Places,
    pace: Pace,
) -> None:
    """Fetch the file that EXNODE (XML or JSON; '-': standard input) describes.

    The file appears when all of it is there. Until then a hidden file beside it holds what was fetched, and the same
    command goes on from there. Depots that are named are tried first.
    """  # fmt: skip
    exnode, _ = load(document)
    if exnode.mode == "directory":
        raise UsageError(f"{document}: describes a directory; there is nothing to download")
    target = output or Path(file_name(exnode, document))
    resumed = run(
        lambda depots, advance: fetch(
            exnode,
            target,
            depots,
            advance,
            streams=pace.streams,
            overwrite=force,
            resume=not restart,
            verify=not ignore_checksums,
        ),
        f"downloading {printable(target.name)}",
        pace,
        places.addresses,
    )
    earlier = f", {format_size(resumed)} of it earlier" if resumed else ""
    note(f"{printable(str(target))}: {format_size(exnode.size)}{earlier}", pace)


def file_name(exnode: ExNode, document: Path) -> str:
    """The last part of the name in the document, which a stranger wrote; UsageError when it is no name."""
    name = PurePosixPath(exnode.name or document.stem).name
    if name in ("", "-", ".", "..") or not name.isprintable() or name.startswith("."):
        raise UsageError(f"{document}: gives no usable name for the file; say one with -o")
    return name
