"""ibpfs import: an exNode from outside as a file of a mounted volume."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from ibpfs.config import format_size
from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.documents.sealed import with_holes
from ibpfs.exnode_store.lors.downloading import download
from ibpfs.exnode_store.lors.importing import Found, PlannedPart, look, plan, request, unrenewable
from ibpfs.exnode_store.lors.outputs import put_in_place, refuse_existing
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.download import file_name
from ibpfs_tools.exnodes import Pace, document_argument, load, naming, note, pace_options, printable, run
from ibpfs_tools.mounts import volume_holding
from ibpfs_tools.unlocking import Secrets


@dataclass(frozen=True)
class _Import:
    """`told`: what depots said, nothing when nobody was asked."""

    exnode: ExNode
    parts: list[PlannedPart]
    told: Found
    own: bool


@command("import")
@document_argument
@click.argument("target", type=click.Path(path_type=Path), default=Path())
@click.option("--own", is_flag=True,
              help="The allocations become the volume's: they are released when the file is deleted. Takes manage "
                   "capabilities.  [default: they stay]")
@click.option("--copy", is_flag=True,
              help="Copy the bytes to the volume's own depots instead, sealed as all others; undoes end-to-end "
                   "functions.")
@click.option("--holes", is_flag=True, help="Bytes that no mapping has read as zeros.  [default: refused]")
@click.option("--no-look", is_flag=True, help="Do not ask the depots whether they have the allocations.")
@pace_options
def import_(document: Path, target: Path, own: bool, copy: bool, holes: bool, no_look: bool, pace: Pace) -> None:
    """Make TARGET, on a mounted volume, a file of the bytes that EXNODE names, without copying them.

    They stay in the allocations that they are in, and are read from there. The volume renews those of which EXNODE has
    the manage capability. Bytes that no volume sealed carry no checksum: they are taken as their depots give them.
    TARGET may be a directory (the default: this one); the file then has the name that EXNODE gives.
    """  # fmt: skip
    exnode, _ = load(document)
    if exnode.mode == "directory":
        raise UsageError(f"{document}: describes a directory; there is nothing to import")
    place = target / file_name(exnode, document) if target.is_dir() else target
    refuse_existing(place, overwrite=False, advice="")
    exnode = with_holes(exnode) if holes else exnode
    paths = volume_holding(place.parent)
    if copy:
        run(lambda depots, advance: download(exnode, place, depots, advance, streams=pace.streams),
            f"copying {printable(place.name)}", pace)  # fmt: skip
        note(f"{printable(str(place))}: {format_size(exnode.size)}, copied", pace)
        return
    with naming(document):
        parts = plan(exnode)
    if own and not any(exnode.mappings[number].manage for part in parts for number in part.mappings):
        raise UsageError(f"{document}: has no manage capability, so its allocations cannot become the volume's")
    told = Found()
    if parts and not no_look:
        told = run(lambda depots, advance: look(exnode, parts, depots, advance, pace.streams), "asking depots", pace)
    made = _Import(exnode, parts, told, own)
    _make(made, place, lambda ino: ask(
        paths, "import", Secrets(), title="importing", quiet=pace.quiet, ino=ino, size=exnode.size, own=own,
        parts=request(exnode, parts, told),
    ))  # fmt: skip
    _tell(made, place, pace)


def _make(made: _Import, place: Path, adopt: Callable[[int], object]) -> None:
    """Under a hidden name first: the file appears when it is complete."""
    temporary = place.with_name(f".{place.name[:200]}.import-{os.getpid()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        ino = os.fstat(descriptor).st_ino
        os.close(descriptor)
        adopt(ino)
        modified = made.exnode.modified
        if modified is not None and abs(modified) < 1 << 53:
            os.utime(temporary, ns=(time.time_ns(), modified * 1000))
        put_in_place(temporary, place, overwrite=False)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _tell(made: _Import, place: Path, pace: Pace) -> None:
    exnode, lost, shown = made.exnode, made.told.lost, printable(str(place))
    used = {number for part in made.parts for number in part.mappings if number not in lost}
    note(f"{shown}: {format_size(exnode.size)} in {len(used)} allocations, nothing copied", pace)
    if lost:
        note(f"{shown}: {len(lost)} allocations are gone and left out; {next(iter(lost.values()))}", pace)
    stuck = unrenewable(exnode, made.parts, lost)
    if stuck:
        ends = [end for number in used if (end := exnode.mappings[number].end) is not None]
        when = f"; the first lease ends on {time.strftime('%Y-%m-%d', time.localtime(min(ends) / 1e6))}" if ends else ""
        note(f"{shown}: {stuck} allocations cannot be renewed without their manage capability{when}; what is to stay "
             "must be copied (ibpfs import --copy, cp)", pace)  # fmt: skip
    if any(part.sealed is None for part in made.parts):
        note(f"{shown}: neither sealed nor with checksums; bytes are taken as the depots give them", pace)
