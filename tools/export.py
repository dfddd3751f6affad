"""ibpfs export: a file of a mounted volume as an exNode that LoRS and libdlt can read."""

from pathlib import Path
from typing import Any

import click

from ibpfs.config import VolumePaths, format_size, load_config, parse_size
from ibpfs.depot.address import Address
from ibpfs.errors import UsageError, VolumeError
from ibpfs.exnode_store.documents.notation import Notation, notation_of
from ibpfs.exnode_store.lors.outputs import refuse_existing
from ibpfs.exnode_store.lors.storing import Wishes, upload
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import Pace, Places, depot_options, note, pace_options, run, save
from ibpfs_tools.unlocking import Secrets
from ibpfs_tools.upload import lease_of


@command("export")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="EXNODE",
              help="Where the exNode goes: XML for .xnd, JSON for .json.  [default: FILE's name and .xnd, here]")
@click.option("--force", is_flag=True, help="Also over an exNode that exists.")
@click.option("--decrypt", is_flag=True, help="Of a sealed volume: store a copy in clear.")
@click.option("--all-rights", is_flag=True,
              help="With write and manage capabilities, to renew and delete the copy.  [default: read only]")
@click.option("-c", "--copies", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="On so many depots each byte.")
@click.option("-b", "--block-size", default="4M", show_default=True, metavar="SIZE", help="Bytes of one allocation.")
@click.option("-d", "--duration", default="30d", show_default=True, metavar="DURATION",
              help="Lease the copy for so long, or as long as a depot does.")
@depot_options
@pace_options
def export(
    file: Path,
    output: Path | None,
    force: bool,
    decrypt: bool,
    all_rights: bool,
    copies: int,
    block_size: str,
    duration: str,
    places: Places,
    pace: Pace,
) -> None:
    """Write an exNode for FILE, which is on a mounted volume, that LoRS, libdlt and 'ibpfs download' can read.

    The exNode names a copy of its own, in clear: one allocation per extent, beginning at byte 0, on the volume's depots
    unless others are given. So it shows nothing of the volume's other files, stays as it is when FILE changes, and
    ends with its leases. A file of a sealed volume is copied only with --decrypt.
    """  # fmt: skip
    paths = _volume_of(file)
    if not (decrypt or load_config(paths).plain):
        raise UsageError(f"{file}: is sealed; --decrypt stores a copy that everybody with the exNode can read")
    target = output or Path(f"{file.name}.xnd")
    refuse_existing(target, force)
    addresses = places.addresses or depots_of(ask(paths, "depots", Secrets()))
    block = parse_size(block_size)
    if block < 1:
        raise UsageError("a block has at least one byte")
    wishes = Wishes(copies=copies, block=block, lease=lease_of(duration), streams=pace.streams)
    exnode = run(
        lambda depots, advance: upload(file, depots, addresses, wishes, advance),
        f"exporting {file.name}",
        pace,
        addresses,
    )
    given = exnode if all_rights else exnode.read_only()
    save(target, given, notation_of(target) or Notation.XML, overwrite=force)
    note(f"{target}: {format_size(exnode.size)} in {len(exnode.mappings)} allocations, in clear", pace)
    if any(Address.of(one.capability).is_local for one in exnode.mappings if one.capability):
        note(f"{target}: names a depot of this computer, which others cannot reach; --depot names another", pace)


def _volume_of(file: Path) -> VolumePaths:
    place = mounts.absolute(str(file))
    entry = mounts.mount_holding(place) or mounts.mount_holding(place.resolve())
    if entry is None:
        raise VolumeError(f"{file}: is not on a mounted volume of ibpfs; ibpfs upload takes any file")
    return VolumePaths(Path(entry.source))


def depots_of(rows: list[dict[str, Any]]) -> list[Address]:
    """Return the volume's depots that take bytes, its own last: others cannot reach it."""
    usable = [row for row in rows if row["role"] == "active" and row["address"].startswith("ibp")]
    return [Address.parse(row["address"]) for row in sorted(usable, key=lambda row: bool(row["embedded"]))]
