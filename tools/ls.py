"""ibpfs ls: what an exNode names, and whether it is still there."""

import json
import time
from pathlib import Path
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs.depot.address import Address
from ibpfs.exnode_store.documents.exnode import ExNode, Mapping
from ibpfs.exnode_store.documents.lifetimes import MICRO
from ibpfs.exnode_store.lors.plans import pieces
from ibpfs.exnode_store.lors.upkeep import Health, examine
from ibpfs_tools.commands import command
from ibpfs_tools.exnodes import Pace, document_argument, load, pace_options, printable, run


@command("ls")
@document_argument
@click.option("--no-probe", is_flag=True, help="Ask no depot; tell what the document says.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@pace_options
def ls(document: Path, no_probe: bool, as_json: bool, pace: Pace) -> None:
    """List the mappings of EXNODE, with what the depots say of them. Shows no capability."""
    exnode, _ = load(document)
    health: list[Health] | None = None
    if not no_probe:
        health = run(lambda depots, advance: examine(exnode, depots, advance, pace.streams), "asking depots", pace)
    found = describe(exnode, health, time.time())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for line in lines(found):
        click.echo(line)


def describe(exnode: ExNode, health: list[Health] | None, now: float) -> dict[str, Any]:
    """Return what is known, without secrets. `copies` counts what is alive, where depots were asked."""
    dead = {number for number, one in enumerate(health or []) if not one.alive}
    alive = [mapping for number, mapping in enumerate(exnode.mappings) if number not in dead]
    return {
        "name": printable(exnode.name),
        "size": exnode.size,
        "mode": printable(exnode.mode),
        "copies": min((len(piece.mappings) for piece in pieces(alive, exnode.size)), default=0),
        "foreign_extents": len(exnode.foreign),
        "mappings": [
            _row(number, mapping, health[number] if health else None, now)
            for number, mapping in enumerate(exnode.mappings)
        ],
    }


def _row(number: int, mapping: Mapping, health: Health | None, now: float) -> dict[str, Any]:
    capability = mapping.capability
    rights = ((mapping.read, "read"), (mapping.write, "write"), (mapping.manage, "manage"))
    row = {
        "number": number,
        "offset": mapping.offset,
        "length": mapping.length,
        "depot": str(Address.of(capability)) if capability else None,
        "allocation": mapping.read.label if mapping.read else None,
        "rights": "".join(word[0] for one, word in rights if one),
        "functions": [printable(one.name) for one in mapping.function.chain()] if mapping.function else [],
        "lease_seconds": None if mapping.end is None else round(mapping.end / MICRO - now),
    }
    if health is not None:
        row |= {"alive": health.alive, "permanent": health.permanent, "trouble": printable(health.trouble) or None}
        row["lease_seconds"] = None if health.seconds_left is None else round(health.seconds_left)
    return row


def lines(found: dict[str, Any]) -> list[str]:
    """Return them for a person."""
    copies = {0: "not complete", 1: "one copy"}.get(found["copies"], f"{found['copies']} copies")
    more = f", {found['foreign_extents']} extents elsewhere" if found["foreign_extents"] else ""
    size = format_size(found["size"])
    head = f"{found['name'] or '(no name)'}: {size}, {copies if found['size'] else 'empty'}{more}"
    return [head, *(_line(row) for row in found["mappings"])]


def _line(row: dict[str, Any]) -> str:
    functions = f"  {'+'.join(row['functions'])}" if row["functions"] else ""
    span = f"{row['offset']}-{row['offset'] + row['length']}"
    place = f"{row['depot'] or '(no capability)'} {row['allocation'] or ''}"
    return f"{row['number']:>4}  {span:<24} {row['rights']:<4} {place}{functions}  {_state(row)}"


def _state(row: dict[str, Any]) -> str:
    if row.get("trouble"):
        return f"{'GONE' if row['alive'] is False else 'no answer'}: {row['trouble']}"
    if row.get("permanent") and row["alive"]:
        return "permanent"
    left = row["lease_seconds"]
    if left is None:
        return "lease not known"
    return f"leased for {left / 3600:.1f} hours" if left > 0 else "lease has ended, says the document"
