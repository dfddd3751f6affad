"""Which allocations of an exNode a file can be made of as they are, and whether they are there. Copies nothing."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability
from ibpfs.depot.wire import DepotError, DepotUnreachable, NoRoom
from ibpfs.errors import DataError, UsageError
from ibpfs.exnode_store.documents.exnode import MAX_MAPPINGS, BadDocument, ExNode, Mapping
from ibpfs.exnode_store.documents.lifetimes import MICRO
from ibpfs.exnode_store.documents.sealed import BadSlice, holes_are_zeros, slice_of
from ibpfs.exnode_store.ledger_rows import pack_key
from ibpfs.exnode_store.lors.downloading import check_complete
from ibpfs.exnode_store.lors.fetching import describe
from ibpfs.exnode_store.lors.plans import pieces
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel
from ibpfs.exnode_store.sealing import ForeignSlice

#: The owner of the volume keeps a watch on every depot that imported bytes are on.
MOST_DEPOTS: Final = 64
#: The volume's record of a file grows with it.
MOST_BYTES: Final = 16 << 40
#: Replicas of a range that are taken over; a document may claim any number.
MOST_REPLICAS: Final = 8


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """File bytes [start, stop) and the mappings, by number, that have them raw, or as part of one sealed slice."""

    start: int
    stop: int
    mappings: tuple[int, ...]
    sealed: ForeignSlice | None = None


@dataclass(slots=True)
class Found:
    """What depots said: `lost` mappings by number and why, where a mapping really begins, until when it is leased."""

    lost: dict[int, str] = field(default_factory=dict)
    begins: dict[int, int] = field(default_factory=dict)
    lease_ends: dict[int, float | None] = field(default_factory=dict)


def plan(exnode: ExNode) -> list[PlannedPart]:
    """Return the parts, in order.

    Raises Unavailable for bytes that no mapping has and that are not known to be zeros, UsageError for what can only be
    copied, BadDocument.
    """
    if not holes_are_zeros(exnode):
        check_complete(exnode)
    if exnode.size > MOST_BYTES:
        raise UsageError(f"claims {exnode.size} bytes; at most {MOST_BYTES} are imported")
    slices = _slices(exnode)
    parts = [
        _part(exnode, slices, piece.start, piece.stop, piece.mappings)
        for piece in pieces(exnode.mappings, exnode.size)
        if piece.mappings
    ]
    if sum(len(part.mappings) for part in parts) > MAX_MAPPINGS:
        raise UsageError(f"its mappings overlap in more than {MAX_MAPPINGS} parts")
    used = {number for part in parts for number in part.mappings}
    depots = {Address.of(_read(exnode.mappings[number])) for number in used}
    if len(depots) > MOST_DEPOTS:
        raise UsageError(f"names {len(depots)} depots; at most {MOST_DEPOTS} are imported, --copy takes any number")
    return parts


def _slices(exnode: ExNode) -> dict[int, ForeignSlice]:
    found = {}
    for number, mapping in enumerate(exnode.mappings):
        try:
            slice_ = slice_of(mapping)
        except BadSlice as error:
            raise BadDocument(f"mapping {number}: {error}") from None
        if slice_ is not None:
            found[number] = slice_
    return found


def _part(
    exnode: ExNode, slices: dict[int, ForeignSlice], start: int, stop: int, numbers: Sequence[int]
) -> PlannedPart:
    readable = [number for number in numbers if exnode.mappings[number].read is not None]
    raw = [number for number in readable if not exnode.mappings[number].conditioned]
    if raw:
        return PlannedPart(start, stop, tuple(raw[:MOST_REPLICAS]))
    sealed = [number for number in readable if number in slices]
    if sealed:
        first = _at(slices[sealed[0]], exnode.mappings[sealed[0]], start)
        alike = [n for n in sealed if _at(slices[n], exnode.mappings[n], start) == first]
        return PlannedPart(start, stop, tuple(alike[:MOST_REPLICAS]), first)
    if not readable:
        raise UsageError(f"bytes {start} to {stop}: the document has no read capability for them")
    mapping = exnode.mappings[readable[0]]
    names = ", ".join(one.name[:40] for one in mapping.function.chain()) if mapping.function else ""
    raise UsageError(f"bytes {start} to {stop} are conditioned ({names!a}) and cannot be used as they are; --copy does")


def _at(slice_: ForeignSlice, mapping: Mapping, start: int) -> ForeignSlice:
    return ForeignSlice(slice_.form, slice_.offset + start - mapping.offset, slice_.key)


def _read(mapping: Mapping) -> Capability:
    assert mapping.read is not None
    return mapping.read


# --- asking


async def look(
    exnode: ExNode, parts: Sequence[PlannedPart], depots: Depots, advance: Advance, streams: int = 8
) -> Found:
    """Ask for every allocation once; depots that are silent are taken at the document's word.

    Raises DataError when a part has no allocation left.
    """
    found = Found()
    numbers = sorted({number for part in parts for number in part.mappings})
    counter = Counter(len(numbers), advance)

    async def one(number: int) -> None:
        mapping = exnode.mappings[number]
        try:
            await _look_at(mapping, number, depots, found)
        except DepotError as error:
            found.lost[number] = describe(mapping, error)
        except DepotUnreachable as error:
            depots.note(Address.of(_read(mapping)), error)
        counter.add(1)

    await in_parallel(numbers, one, streams)
    for part in parts:
        left = [number for number in part.mappings if number not in found.lost]
        if not left:
            raise DataError(f"bytes {part.start} to {part.stop} are gone: {found.lost[part.mappings[0]]}")
    return found


async def _look_at(mapping: Mapping, number: int, depots: Depots, found: Found) -> None:
    read = _read(mapping)
    client = depots.of(read)
    length = mapping.alloc_length if mapping.conditioned else mapping.length
    begin = mapping.alloc_offset
    try:
        await client.load(read.wire_key, begin + length - 1, 1)
    except NoRoom:
        if not mapping.doubtful:
            raise
        begin = found.begins[number] = 0  # libdlt's alloc_offset is the place in the file
        await client.load(read.wire_key, length - 1, 1)
    if mapping.manage is not None:
        left = (await client.probe(mapping.manage.wire_key)).seconds_left
        found.lease_ends[number] = None if left is None else time.time() + left


# --- what the volume's owner is told


def request(exnode: ExNode, parts: Sequence[PlannedPart], found: Found) -> list[dict[str, Any]]:
    """Return the parts as the owner takes them. Holds capabilities."""
    return [
        {
            "start": part.start,
            "stop": part.stop,
            "sealed": None if part.sealed is None else part.sealed.as_row(),
            "replicas": _replicas(exnode, part, found),
        }
        for part in parts
    ]


def _replicas(exnode: ExNode, part: PlannedPart, found: Found) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number in part.mappings:
        if number in found.lost:
            continue
        mapping = exnode.mappings[number]
        base = found.begins.get(number, mapping.alloc_offset)
        base += 0 if part.sealed else part.start - mapping.offset
        row: dict[str, Any] = {"address": str(Address.of(_read(mapping))), "base": base}
        for capability in (mapping.read, mapping.write, mapping.manage):
            if capability is not None:
                row[capability.kind.name.lower()] = pack_key(capability.wire_key)
        hint = None if mapping.end is None else mapping.end / MICRO
        row["lease_end"] = found.lease_ends.get(number, hint)
        rows.setdefault((row["address"], row["read"], base), row)  # a document may say the same twice
    return list(rows.values())


def unrenewable(exnode: ExNode, parts: Sequence[PlannedPart], lost: Collection[int]) -> int:
    """How many of the allocations nobody here can renew."""
    used = {number for part in parts for number in part.mappings if number not in lost}
    return sum(exnode.mappings[number].manage is None for number in used)
