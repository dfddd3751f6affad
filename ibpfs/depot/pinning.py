"""Getting to know a depot: whether it speaks TLS, and by which fingerprint it is known from then on."""

from collections.abc import Sequence
from typing import Final

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.tls import probe
from ibpfs.depot.wire import DepotUnreachable

PROBE_LIMIT: Final = 3.0


async def fingerprint_of(address: Address, *, wanted: bool = True) -> bytes | None:
    """None: it offers no TLS, or does not answer. Raises DepotUnreachable then, for an ibps address; no other one is
    asked unless TLS is `wanted`."""
    if address.path is not None or not (wanted or address.secure):
        return None
    found = await probe(address.host, address.port, PROBE_LIMIT)
    if found is None and address.secure:
        raise DepotUnreachable(f"{address}: nobody answers there who speaks TLS; it cannot be pinned")
    return found


async def fingerprints_of(addresses: Sequence[str], *, wanted: bool = True) -> dict[str, bytes]:
    """Of those that offer TLS; asks all at once. Raises as `fingerprint_of`, and BadAddress."""
    found: dict[str, bytes | None] = {}
    failed: list[DepotUnreachable] = []

    async def one(text: str, address: Address) -> None:
        try:
            found[text] = await fingerprint_of(address, wanted=wanted)
        except DepotUnreachable as error:
            failed.append(error)

    parsed = {text: Address.parse(text) for text in addresses}
    async with trio.open_nursery() as nursery:
        for text, address in parsed.items():
            nursery.start_soon(one, text, address)
    if failed:
        raise failed[0]
    return {text: pin for text, pin in found.items() if pin is not None}
