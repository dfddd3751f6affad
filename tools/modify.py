"""ibpfs modify: what an exNode says of its file."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click

from ibpfs.errors import UsageError
from ibpfs.exnode_store.documents.exnode import ExNode, Metadata
from ibpfs.exnode_store.lors.depot_lists import parse_labels
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import change, change_options, document_argument

_FIXED = frozenset({"filename", "name", "size", "mode", "extents", "created", "modified", "mapping"})


@command("modify")
@document_argument
@click.option("--name", metavar="NAME", help="Another name for the file.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Add or replace metadata.")
@click.option("--unset", "removed", multiple=True, metavar="NAME", help="Remove metadata.")
@click.option("--read-only", is_flag=True, help="Take write and manage capabilities out. They are lost with that.")
@change_options
def modify(
    document: Path,
    name: str | None,
    settings: tuple[str, ...],
    removed: tuple[str, ...],
    read_only: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Change the name, the metadata or the rights in EXNODE. Asks no depot."""
    values = parse_labels(settings)
    for word in (*values, *removed):
        if word in _FIXED:
            raise UsageError(f"{word}: is not free metadata")

    def work(exnode: ExNode) -> ExNode:
        changed = with_metadata(exnode, values, removed)
        changed = changed if name is None else replace(changed, name=name)
        return changed.read_only() if read_only else changed

    change(document, output, force, work)


def with_metadata(exnode: ExNode, values: dict[str, str], removed: Iterable[str]) -> ExNode:
    """UsageError when something is to be removed that is not there."""
    there = {one.name for one in exnode.metadata} | exnode.fields.keys()
    missing = sorted(set(removed) - there)
    if missing:
        raise UsageError(f"{missing[0]}: there is no such metadata")
    gone = {*values, *removed}
    kept = tuple(one for one in exnode.metadata if one.name not in gone)
    fields = {name: value for name, value in exnode.fields.items() if name not in gone}
    fields |= {name: value for name, value in values.items() if name in exnode.fields}
    new = tuple(Metadata(name, "string", value) for name, value in values.items() if name not in exnode.fields)
    return replace(exnode, metadata=(*kept, *new), fields=fields)
