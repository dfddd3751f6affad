"""What a volume's owner told of a file, as mappings of an exNode. Pure."""

import os
import time
import uuid
from collections.abc import Mapping as Row
from collections.abc import Sequence
from typing import Any

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability, CapabilityKind
from ibpfs.errors import DataError, UsageError
from ibpfs.exnode_store.documents.exnode import ExNode, Mapping
from ibpfs.exnode_store.documents.lifetimes import MICRO
from ibpfs.exnode_store.documents.sealed import sealed_function, with_holes
from ibpfs.exnode_store.ledger_rows import unpack_key
from ibpfs.exnode_store.lors.plans import Range, holes
from ibpfs.exnode_store.sealing import ForeignSlice

Parts = Sequence[Row[str, Any]]


def sealed_exnode(name: str, status: os.stat_result, parts: Parts) -> ExNode:
    """The file as it is stored, for ibpfs alone. DataError when some of it cannot be reached now."""
    for part in parts:
        if not part["replicas"]:
            raise DataError(f"{name}: bytes {part['start']} to {part['stop']} are on no depot that answers")
    mappings = windows(parts, int(time.time()))
    exnode = described(name, status, mappings)
    return with_holes(exnode) if holes(mappings, exnode.size) else exnode


def described(name: str, status: os.stat_result, mappings: Sequence[Mapping]) -> ExNode:
    return ExNode(
        name=name,
        size=status.st_size,
        created=int(time.time()) * MICRO,
        modified=int(status.st_mtime) * MICRO,
        mappings=tuple(mappings),
        fields={"id": str(uuid.uuid4())},
    )


def windows(parts: Parts, now: int) -> tuple[Mapping, ...]:
    """The mappings of those parts that depots have windows on."""
    return tuple(_mapping(part, row, now) for part in parts for row in part["replicas"])


def uncovered(parts: Parts, size: int) -> list[Range]:
    """What must be copied: parts without a window, and holes, which LoRS and libdlt do not know. UsageError names
    what is sealed."""
    sealed = next((part for part in parts if part["sealed"]), None)
    if sealed is not None:
        raise UsageError(
            f"bytes {sealed['start']} to {sealed['stop']} are sealed; --decrypt stores a copy that everybody with the"
            " exNode can read"
        )
    return holes(windows(parts, 0), size)


def _mapping(part: Row[str, Any], row: Row[str, Any], now: int) -> Mapping:
    sealed, length = part["sealed"], part["stop"] - part["start"]
    address, key = Address.parse(row["address"]), unpack_key(row["read"])
    end = row["lease_end"]
    return Mapping(
        offset=part["start"],
        length=length,
        alloc_offset=row["base"],
        alloc_length=row["length"],
        clear_block=length if sealed else 0,
        function=None if sealed is None else sealed_function(ForeignSlice.from_row(sealed)),
        read=Capability(address.host, address.port, key.key, key.type_key, CapabilityKind.READ, address.secure),
        start=now * MICRO,
        end=None if end is None else int(end) * MICRO,
        location=str(address),
    )
