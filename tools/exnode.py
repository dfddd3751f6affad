"""ibpfs exnode: documents themselves: from one notation into another, and whether they can be used."""

import json
from collections.abc import Iterator
from pathlib import Path

import click

from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.documents.notation import Notation, notation_of, pick, read, read_all, recognise
from ibpfs.exnode_store.documents.sealed import BadSlice, holes_are_zeros, is_sealed, slice_of
from ibpfs.exnode_store.lors.plans import holes
from ibpfs_tools.commands import CONTEXT, command
from ibpfs_tools.exnodes import document_argument, load, naming, read_bytes, save


@click.group("exnode", context_settings=CONTEXT)
def exnode() -> None:
    """Convert and validate exNode documents; asks no depot."""


@command("convert")
@document_argument
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--to", "word", type=click.Choice(["xml", "json"]), help="Its notation.  [default: by OUTPUT's suffix]")
@click.option("--read-only", is_flag=True, help="Without write and manage capabilities: to give away.")
@click.option("--pick", "chosen", metavar="NAME", help="Of several exNodes in an array the one of this name or id.")
@click.option("--force", is_flag=True, help="Also over a file that exists.")
def convert(
    document: Path, output: Path, word: str | None, read_only: bool, chosen: str | None, force: bool
) -> None:
    """Write EXNODE to OUTPUT in LoRS' XML (.xnd) or in JSON (.json) as UNIS and libdlt have it. Nothing is lost."""
    data = read_bytes(document)
    with naming(document):
        found = read(data) if chosen is None else pick(read_all(data), chosen)
    if read_only:
        found = found.read_only()
    notation = Notation(word) if word else notation_of(output) or recognise(data)
    save(output, found, notation, overwrite=force)
    for text in caveats(found, notation):
        click.echo(f"{output}: {text}", err=True)


def caveats(found: ExNode, notation: Notation) -> list[str]:
    """Return what readers of a notation will not understand."""
    texts = []
    sealed = [one for one in found.mappings if is_sealed(one)]
    if sealed:
        texts.append("parts are sealed: LoRS and libdlt cannot read them")
    if any(one.function and one.function.key for one in sealed):
        texts.append("carries keys: whoever has it can read what they open")
    if notation is Notation.JSON and any(one.conditioned and not is_sealed(one) for one in found.mappings):
        texts.append("libdlt ignores end-to-end functions and would take stored bytes for the file's")
    if notation is Notation.JSON and any(one.alloc_offset for one in found.mappings):
        texts.append("libdlt reads allocations from byte 0, but extents begin farther on")
    if notation is Notation.XML and found.foreign:
        texts.append("extents on storage other than IBP, or only linked to, are left out")
    return texts


@command("validate")
@document_argument
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def validate(document: Path, as_json: bool) -> None:
    """Check that EXNODE can be read and names every byte of its file. Exits with 1 when not."""
    found, notation = load(document)
    faults = faults_of(found)
    if as_json:
        told = {"notation": notation.value, "size": found.size, "mappings": len(found.mappings)}
        click.echo(json.dumps({**told, "faults": faults, "notes": caveats(found, notation)}, indent=2))
    else:
        for text in caveats(found, notation):
            click.echo(f"{document}: {text}")
    if faults:
        raise IbpfsError(f"{document}: {'; '.join(faults[:3])}")
    if not as_json:
        click.echo(f"{document}: a sound exNode in {notation.value.upper()}, {len(found.mappings)} mappings")


def faults_of(found: ExNode) -> list[str]:
    gaps = [] if holes_are_zeros(found) else holes(found.mappings, found.size)
    missing = [f"no mapping has bytes {start} to {stop}" for start, stop in gaps]
    unreadable = [number for number, one in enumerate(found.mappings) if one.read is None]
    texts = [f"mapping {number} has no read capability" for number in unreadable]
    beyond = [f"mapping {n} reaches beyond the size" for n, one in enumerate(found.mappings) if one.stop > found.size]
    return [*missing, *texts, *beyond, *_bad_slices(found)]


def _bad_slices(found: ExNode) -> Iterator[str]:
    for number, mapping in enumerate(found.mappings):
        try:
            slice_of(mapping)
        except BadSlice as error:
            yield f"mapping {number}: {error}"


for verb in (convert, validate):
    exnode.add_command(verb)
