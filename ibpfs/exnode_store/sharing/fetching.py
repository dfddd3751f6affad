"""Clear bytes of a shared file from whichever depots give them, verified frame by frame."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

import trio

from ibpfs.depot.tls import WrongCertificate
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, IbpfsError
from ibpfs.exnode_store.lors.work import Depots
from ibpfs.exnode_store.sealing import FrameError, unseal
from ibpfs.exnode_store.sharing.contents import Content, Copy, Entry, SharedPart

#: Zeros that are written at once.
_ZEROS: Final = bytes(1024 * 1024)
STRANGER: Final = "its certificate is not the one that the link names: it is another depot, or somebody is in between"


class Unavailable(DataError):
    """Bytes of a shared file that no depot gives, or none as they were sealed."""


async def fetch_part(depots: Depots, content: Content, part: SharedPart, turn: int = 0) -> bytes:
    """The part's file bytes. `turn` spreads equally good copies. Unavailable says what was wrong with each."""
    slice_ = content.slices[part.slice]
    form = slice_.form
    first, behind = form.frame_span(part.offset, part.offset + part.stop - part.start)
    begin, end = form.stored_span(first, behind)
    troubles: list[str] = []
    for copy in best_first(depots, content.runs[slice_.run].copies, turn):
        try:
            at = copy.base + slice_.offset + begin
            with depots.loading(copy.depot):
                stored = await depots.client(copy.depot).load(copy.read, at, end - begin)
            frames = b"".join(await trio.to_thread.run_sync(unseal, form, slice_.key, first, stored))
        except (DepotError, DepotUnreachable, FrameError) as error:
            troubles.append(told(copy, error))
            depots.note(copy.depot, error)
            continue
        skip = part.offset - first * form.frame_size
        return frames[skip : skip + part.stop - part.start]
    raise Unavailable(f"bytes {part.start} to {part.stop} cannot be had: {'; '.join(troubles[:3])}")


def best_first(depots: Depots, copies: Sequence[Copy], turn: int) -> list[Copy]:
    """Silent depots last, else as hinted, else the least busy; equals take turns."""
    shift = turn % len(copies)
    return sorted([*copies[shift:], *copies[:shift]], key=lambda one: depots.rank(one.depot))


def told(copy: Copy, error: IbpfsError) -> str:
    """What is wrong with a copy."""
    if isinstance(error, WrongCertificate):
        return f"{copy.depot}: refused: {STRANGER}"
    text = str(error)
    return text if text.startswith(str(copy.depot)) else f"{copy.depot} allocation {copy.read.label}: {text}"


async def stream(
    depots: Depots, content: Content, entry: Entry, write: Callable[[bytes], Awaitable[None]], ahead: int
) -> None:
    """Write the file's bytes in order; so many parts are fetched ahead. Raises Unavailable."""

    async def one(number: int, part: SharedPart, into: trio.MemorySendChannel[bytes]) -> None:
        await into.send(await fetch_part(depots, content, part, number))

    waiting = enumerate(entry.parts)
    window: deque[tuple[SharedPart, trio.MemoryReceiveChannel[bytes]]] = deque()
    at = 0
    async with trio.open_nursery() as nursery:
        while True:
            for number, part in islice(waiting, ahead - len(window)):
                into, out = trio.open_memory_channel[bytes](1)
                nursery.start_soon(one, number, part, into)
                window.append((part, out))
            if not window:
                break
            part, out = window.popleft()
            await _write_zeros(write, part.start - at)
            await write(await out.receive())
            at = part.stop
    await _write_zeros(write, entry.size - at)


async def _write_zeros(write: Callable[[bytes], Awaitable[None]], count: int) -> None:
    while count > 0:
        await write(_ZEROS[:count])
        count -= len(_ZEROS)
