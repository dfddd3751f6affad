"""Parts that lie close together in a run are one load: small files of a directory, a file written in pieces."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.lors.work import Depots
from ibpfs.exnode_store.sealing import MAX_SLICE, FrameError, unseal
from ibpfs.exnode_store.sharing.contents import Content, SharedPart
from ibpfs.exnode_store.sharing.fetching import best_first, fetch_part

#: Bytes that are loaded for nothing rather than asking twice.
_GAP: Final = 64 * 1024
#: Bundles whose clear bytes are held; what was let go and is asked for after all is fetched by itself.
_HELD: Final = 16


@dataclass
class _Bundle:
    parts: list[SharedPart]
    lock: trio.Lock = field(default_factory=trio.Lock)
    clear: dict[SharedPart, bytes] | None = None


class Bundles:
    """For one run of `ibpfs get`; `parts` in the order in which they are asked for, about."""

    def __init__(self, depots: Depots, content: Content, parts: Iterable[SharedPart]) -> None:
        self._depots = depots
        self._content = content
        self._of: dict[SharedPart, _Bundle] = {}
        self._held: OrderedDict[int, _Bundle] = OrderedDict()
        for together in bundled(content, parts):
            if len(together) > 1:
                self._of |= dict.fromkeys(together, _Bundle(together))

    async def fetch(self, part: SharedPart, turn: int) -> bytes:
        """As `fetch_part`, which has the last word on what a bundle does not give."""
        bundle = self._of.get(part)
        if bundle is not None:
            async with bundle.lock:
                if bundle.clear is None:
                    bundle.clear = await self._load(bundle.parts, turn)
                    self._hold(bundle)
                data = bundle.clear.get(part)
            if data is not None:
                return data
        return await fetch_part(self._depots, self._content, part, turn)

    def _hold(self, bundle: _Bundle) -> None:
        self._held[id(bundle)] = bundle
        if len(self._held) > _HELD:
            self._held.popitem(last=False)[1].clear = {}

    async def _load(self, parts: list[SharedPart], turn: int) -> dict[SharedPart, bytes]:
        """All of them from one copy, or none."""
        run, begin, _ = _place(self._content, parts[0])
        end = _place(self._content, parts[-1])[2]
        for copy in best_first(self._depots, self._content.runs[run].copies, turn):
            try:
                with self._depots.loading(copy.depot):
                    stored = await self._depots.client(copy.depot).load(copy.read, copy.base + begin, end - begin)
                return await trio.to_thread.run_sync(_opened, self._content, parts, memoryview(stored))
            except (DepotError, DepotUnreachable, FrameError) as error:
                self._depots.note(copy.depot, error)
        return {}


def bundled(content: Content, parts: Iterable[SharedPart]) -> Iterator[list[SharedPart]]:
    """All parts, in order, those together that one load of at most a slice's size has."""
    bundle: list[SharedPart] = []
    run, begin, end = -1, 0, 0
    for part in parts:
        place = _place(content, part)
        if bundle and not (place[0] == run and 0 <= place[1] - end <= _GAP and place[2] - begin <= MAX_SLICE):
            yield bundle
            bundle = []
        if not bundle:
            run, begin, _ = place
        bundle.append(part)
        end = place[2]
    if bundle:
        yield bundle


def _place(content: Content, part: SharedPart) -> tuple[int, int, int]:
    """Run, and stored bytes [begin, end) of it, that have the part."""
    slice_ = content.slices[part.slice]
    begin, end = slice_.form.stored_span(*slice_.form.frame_span(part.offset, part.offset + part.stop - part.start))
    return slice_.run, slice_.offset + begin, slice_.offset + end


def _opened(content: Content, parts: list[SharedPart], stored: memoryview) -> dict[SharedPart, bytes]:
    """Raises FrameError."""
    first = _place(content, parts[0])[1]
    found = {}
    for part in parts:
        slice_ = content.slices[part.slice]
        frame = part.offset // slice_.form.frame_size
        _, begin, end = _place(content, part)
        clear = b"".join(unseal(slice_.form, slice_.key, frame, stored[begin - first : end - first]))
        skip = part.offset - frame * slice_.form.frame_size
        found[part] = clear[skip : skip + part.stop - part.start]
    return found
