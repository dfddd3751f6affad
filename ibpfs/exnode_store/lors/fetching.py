"""Bytes of a mapping from its depot: as stored, and as the file has them."""

from typing import Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability
from ibpfs.depot.wire import DepotError, DepotUnreachable, NoRoom
from ibpfs.errors import DataError, IbpfsError
from ibpfs.exnode_store.documents.conditioning import MAX_WHOLE, BadConditioning, WrongChecksum, stored_span, undo
from ibpfs.exnode_store.documents.exnode import Mapping
from ibpfs.exnode_store.lors.work import Depots

#: Bytes of one LOAD.
PIECE: Final = 4 * 1024 * 1024


class Unavailable(DataError):
    """A range of a file cannot be had from any of its mappings."""


async def load_stored(depots: Depots, mapping: Mapping, begin: int, end: int) -> bytes:
    """Return stored bytes [begin, end), from the mapping's own beginning.

    Raises DepotError, DepotUnreachable, BadConditioning.
    """
    if mapping.read is None:
        raise BadConditioning("the document has no read capability")
    if end - begin > MAX_WHOLE:
        raise BadConditioning(f"{end - begin} bytes would have to be read at once")
    try:
        return await _load(depots, mapping.read, mapping.alloc_offset + begin, end - begin)
    except NoRoom:
        if not mapping.doubtful:
            raise
    # libdlt's alloc_offset is the place in the file; the allocation then begins with the extent.
    return await _load(depots, mapping.read, begin, end - begin)


async def _load(depots: Depots, read: Capability, offset: int, length: int) -> bytes:
    client, found = depots.of(read), bytearray()
    with depots.loading(Address.of(read)):
        while len(found) < length:
            found += await client.load(read.wire_key, offset + len(found), min(PIECE, length - len(found)))
    return bytes(found)


async def load_clear(depots: Depots, mapping: Mapping, start: int, stop: int, *, verify: bool = True) -> bytes:
    """Return file bytes [start, stop), which the mapping has. Raises DepotError, DepotUnreachable, BadConditioning."""
    begin, end, at = stored_span(mapping, start - mapping.offset, stop - mapping.offset)
    stored = await load_stored(depots, mapping, begin, end)
    if not mapping.conditioned:
        return stored
    assert mapping.function is not None
    clear = undo(mapping.function, stored, verify=verify)
    wanted = clear[start - mapping.offset - at : stop - mapping.offset - at]
    if len(wanted) != stop - start:
        raise BadConditioning("the end-to-end functions give fewer bytes than the document says")
    return wanted


async def fetch(
    depots: Depots, mappings: list[Mapping], start: int, stop: int, *, turn: int = 0, verify: bool = True
) -> bytes:
    """Return file bytes from the best of `mappings` that gives them; `turn` spreads equally good ones.

    Unavailable says what was wrong with each.
    """
    troubles: list[str] = []
    wrong: WrongChecksum | None = None
    for mapping in best_first(depots, mappings, turn):
        try:
            return await load_clear(depots, mapping, start, stop, verify=verify)
        except (DepotError, DepotUnreachable, BadConditioning) as error:
            troubles.append(describe(mapping, error))
            wrong = error if isinstance(error, WrongChecksum) else wrong
            if mapping.read is not None:
                depots.note(Address.of(mapping.read), error)
    advice = "; LoRS of 64-bit machines writes wrong checksums: --ignore-checksums reads on" if wrong else ""
    shown = "; ".join(troubles[:3]) or "no mapping has them"
    raise Unavailable(f"bytes {start} to {stop} cannot be had: {shown}{advice}")


def best_first(depots: Depots, mappings: list[Mapping], turn: int = 0) -> list[Mapping]:
    """Silent depots last, else as hinted, else the least busy; equals take turns."""
    shift = turn % len(mappings) if mappings else 0
    turned = mappings[shift:] + mappings[:shift]
    return sorted(turned, key=lambda one: depots.rank(Address.of(one.read)) if one.read else (1 << 30, 0, 0))


def describe(mapping: Mapping, error: IbpfsError) -> str:
    """Depot, allocation by its short hash, and what it said."""
    if mapping.read is None:
        return str(error)
    text = str(error)
    place = str(Address.of(mapping.read))
    return f"{'' if text.startswith(place) else f'{place} '}allocation {mapping.read.label}: {text}"
