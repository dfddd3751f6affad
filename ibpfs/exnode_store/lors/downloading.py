"""Fetching the file that an exNode describes, from whichever depots give it."""

from collections.abc import Iterator
from pathlib import Path

import trio

from ibpfs.exnode_store.documents.exnode import ExNode
from ibpfs.exnode_store.documents.sealed import holes_are_zeros
from ibpfs.exnode_store.lors.fetching import PIECE, Unavailable, fetch
from ibpfs.exnode_store.lors.outputs import refuse_existing
from ibpfs.exnode_store.lors.partial import PartialFile, identity
from ibpfs.exnode_store.lors.plans import Unit, holes, units
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel


async def download(
    exnode: ExNode,
    path: Path,
    depots: Depots,
    advance: Advance,
    *,
    streams: int = 8,
    overwrite: bool = False,
    resume: bool = True,
    verify: bool = True,
) -> int:
    """Fetch the file to `path`; return how many bytes an earlier, broken download had left.

    Raises Unavailable; then what was fetched stays for the next time.
    """
    refuse_existing(path, overwrite)
    if not holes_are_zeros(exnode):
        check_complete(exnode)
    partial = PartialFile(path, identity(exnode), exnode.size, resume=resume)
    try:
        before = partial.done_bytes
        await _fetch_all(exnode, partial, depots, Counter(exnode.size, advance, before), streams, verify)
        partial.finish(overwrite=overwrite)
    finally:
        partial.close()
        if not partial.done_bytes:
            partial.discard()
    return before


def check_complete(exnode: ExNode) -> None:
    """Unavailable names the bytes that no mapping has."""
    missing = holes(exnode.mappings, exnode.size)
    if missing:
        shown = ", ".join(f"{start} to {stop}" for start, stop in missing[:3])
        more = f" and {len(missing) - 3} more ranges" if len(missing) > 3 else ""
        elsewhere = "; some extents are on storage other than IBP, or only linked to" if exnode.foreign else ""
        raise Unavailable(f"no mapping has bytes {shown}{more}{elsewhere}")


async def _fetch_all(
    exnode: ExNode, partial: PartialFile, depots: Depots, counter: Counter, streams: int, verify: bool
) -> None:
    missing: list[Unavailable] = []
    in_vain = 0

    def wanted() -> Iterator[tuple[int, Unit]]:
        for turn, unit in enumerate(units(exnode.mappings, exnode.size, PIECE)):
            if in_vain > 2 * streams:
                return
            if unit.mappings and not partial.has(unit.start, unit.stop):
                yield turn, unit

    async def one(job: tuple[int, Unit]) -> None:
        nonlocal in_vain
        turn, unit = job
        candidates = [exnode.mappings[number] for number in unit.mappings]
        try:
            data = await fetch(depots, candidates, unit.start, unit.stop, turn=turn, verify=verify)
        except Unavailable as error:  # what the others have is fetched all the same, for the next time
            missing.append(error)
            in_vain += 1
            return
        in_vain = 0
        async with writing:
            await trio.to_thread.run_sync(partial.write, unit.start, data)
        counter.add(len(data))

    writing = trio.Lock()
    await in_parallel(wanted(), one, streams)
    if missing:
        raise missing[0]
