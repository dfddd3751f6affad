"""ibpfs export: a file of a mounted volume as an exNode."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ibpfs.config import VolumePaths, format_size, load_config, parse_size
from ibpfs.depot.address import Address
from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.documents.notation import Notation, notation_of
from ibpfs.exnode_store.lors.exporting import described, sealed_exnode, uncovered, windows
from ibpfs.exnode_store.lors.outputs import refuse_existing
from ibpfs.exnode_store.lors.plans import Range
from ibpfs.exnode_store.lors.storing import Wishes, upload
from ibpfs_tools.asking import ask
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import Pace, Places, depot_options, naming, note, pace_options, run, save
from ibpfs_tools.mounts import volume_holding
from ibpfs_tools.unlocking import Secrets
from ibpfs_tools.upload import lease_of


@command("export")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="EXNODE",
              help="Where the exNode goes: XML for .xnd, JSON for .json.  [default: FILE's name and .xnd, here]")
@click.option("--force", is_flag=True, help="Also over an exNode that exists.")
@click.option("--with-keys", is_flag=True,
              help="Of a sealed file: with the keys of its slices, so that whoever has the exNode can read this file.")
@click.option("--decrypt", is_flag=True, help="Of a sealed file: store a copy in clear, for LoRS and libdlt.")
@click.option("--copy", is_flag=True,
              help="Of a file in clear: store a copy, which stays as it is when FILE changes. --depot does, too.")
@click.option("--all-rights", is_flag=True,
              help="Of a copy: with write and manage capabilities, to renew and delete it.  [default: read only]")
@click.option("-c", "--copies", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
              help="Of what is copied: on so many depots each byte.")
@click.option("-b", "--block-size", default="4M", show_default=True, metavar="SIZE", help="Bytes of one allocation.")
@click.option("-d", "--duration", default="30d", show_default=True, metavar="DURATION",
              help="For so long, or as long as a depot leases.")
@depot_options
@pace_options
def export(
    file: Path,
    output: Path | None,
    force: bool,
    with_keys: bool,
    decrypt: bool,
    copy: bool,
    all_rights: bool,
    copies: int,
    block_size: str,
    duration: str,
    places: Places,
    pace: Pace,
) -> None:
    """Write an exNode for FILE, which is on a mounted volume.

    Of a volume in clear (mkfs.ibpfs --plain), LoRS, libdlt and ibpfs can read it: it names windows on the volume's own
    allocations, which depots close when FILE's bytes are deleted, and copies where a depot has no windows.
    Of a sealed volume, ibpfs alone can read it, on a volume with the keys, unless --with-keys puts them in or --decrypt
    stores a copy in clear. Windows and copies can only be read, and end by themselves.
    """  # fmt: skip
    paths = volume_holding(file)
    target = output or Path(f"{file.name}.xnd")
    refuse_existing(target, force)
    block = parse_size(block_size)
    if block < 1:
        raise UsageError("a block has at least one byte")
    wishes = Wishes(copies=copies, block=block, lease=lease_of(duration), streams=pace.streams)
    made = _Export(file, paths, wishes, places.addresses, pace)
    plain = load_config(paths).plain
    copied = bool(decrypt or copy or all_rights or places.addresses)
    if decrypt or (copied and plain):
        exnode = made.copied()
    elif plain:
        exnode = made.clear()
    elif copied:
        raise UsageError(f"{file}: is sealed; --decrypt stores a copy that everybody with the exNode can read")
    else:
        exnode = made.sealed(keys=with_keys)
    given = exnode if all_rights else exnode.read_only()
    save(target, given, notation_of(target) or Notation.XML, overwrite=force)
    _tell(target, exnode, pace, keys=with_keys, copied=copied)


@dataclass(frozen=True)
class _Export:
    """The ways to make an exNode of a file."""

    file: Path
    paths: VolumePaths
    wishes: Wishes
    addresses: list[Address]
    pace: Pace

    def sealed(self, *, keys: bool) -> ExNode:
        parts = self._parts(sealed=True, keys=keys)
        return sealed_exnode(self.file.name, self.file.stat(), parts)

    def clear(self) -> ExNode:
        """Windows, and copies of the rest."""
        status = self.file.stat()
        with naming(self.file):
            parts = self._parts(sealed=False, keys=False)
            rest = uncovered(parts, status.st_size)
        mappings = windows(parts, int(time.time()))
        if rest:
            mappings += self._upload(rest).mappings
        return described(self.file.name, status, mappings)

    def copied(self) -> ExNode:
        return self._upload(None)

    def _parts(self, *, sealed: bool, keys: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(
            self.paths, "export", Secrets(), title=f"exporting {self.file.name}", quiet=self.pace.quiet,
            ino=self.file.stat().st_ino, sealed=sealed, keys=keys, seconds=self.wishes.lease,
        )  # fmt: skip
        return found

    def _upload(self, ranges: list[Range] | None) -> ExNode:
        addresses = self.addresses or depots_of(ask(self.paths, "depots", Secrets()))
        return run(
            lambda depots, advance: upload(self.file, depots, addresses, self.wishes, advance, ranges),
            f"copying {self.file.name}",
            self.pace,
            addresses,
        )


def _tell(target: Path, exnode: ExNode, pace: Pace, *, keys: bool, copied: bool) -> None:
    sealed = any(one.conditioned for one in exnode.mappings)
    note(f"{target}: {format_size(exnode.size)} in {len(exnode.mappings)} allocations, "
         f"{'sealed' if sealed else 'in clear'}", pace)  # fmt: skip
    if sealed:
        who = "whoever has it can read the file" if keys else "and only on a volume that has its keys (or --with-keys)"
        note(f"{target}: is for ibpfs alone, LoRS and libdlt cannot read it; {who}", pace)
    if any(Address.of(one.capability).is_local for one in exnode.mappings if one.capability):
        way = "" if sealed else f"; {'--depot names another' if copied else '--depot copies it to another'}"
        note(f"{target}: names a depot of this computer, which others cannot reach{way}", pace)


def depots_of(rows: list[dict[str, Any]]) -> list[Address]:
    """Return the volume's depots that take bytes, its own last: others cannot reach it."""
    usable = [row for row in rows if row["role"] == "active" and row["address"].startswith("ibp")]
    return [Address.parse(row["address"]) for row in sorted(usable, key=lambda row: bool(row["embedded"]))]
