"""Clear frames of slices, verified: from memory, else opened from stored bytes; a replica that lies is passed over.

Knows keys and forms of slices; not which file they belong to, nor how a depot is spoken to.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ibpfs.cache.blocks import BlockReader
from ibpfs.cache.clean import Buffer, CleanCache
from ibpfs.cache.parts import Loaded, Part, StoredSource
from ibpfs.errors import DataError
from ibpfs.exnode_store.sealing import PLAIN_XXH3, FrameError, SliceForm, unseal, unseal_into
from ibpfs.memory import unfilled

__all__ = ["FrameMemory", "Loaded", "SliceReader", "StoredSlice", "StoredSource"]

_log = logging.getLogger(__name__)

#: 2,000 random reads in 256 MiB touch 1,580 frames of 64 KiB: from half of this they were a third as many.
FRAME_MEMORY = 128 * 1024 * 1024
#: Frames of a read of so many are not kept in memory: the kernel keeps what streams. They are opened into one buffer;
#: one each, joined, cost 40 us more for 1 MiB.
_STREAMED = 4
#: What a frame costs beside its bytes: key, dictionary entry, object.
_FRAME_OVERHEAD = 256

_REASON = "bytes differ from what was sealed"


class StoredSlice(Protocol):
    """A slice and where it is stored: `row` names it for good, its header begins at `segment_offset`."""

    @property
    def row(self) -> int: ...
    @property
    def form(self) -> SliceForm: ...
    @property
    def segment(self) -> int: ...
    @property
    def segment_offset(self) -> int: ...


class SliceKeys(Protocol):
    """Who knows the keys of sealed slices."""

    def slice_key(self, epoch: int, slice_id: bytes) -> bytes: ...


class FrameMemory:
    """The clear frames that were used last, at most `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.used = 0

    def get(self, row: int, number: int) -> bytes | None:
        frame = self._frames.get((row, number))
        if frame is not None:
            self._frames.move_to_end((row, number))
        return frame

    def put(self, row: int, number: int, frame: bytes) -> None:
        if (row, number) in self._frames:
            return
        self._frames[row, number] = frame
        self.used += len(frame) + _FRAME_OVERHEAD
        while self.used > self._limit:
            self.used -= len(self._frames.popitem(last=False)[1]) + _FRAME_OVERHEAD

    def clear(self) -> None:
        self._frames.clear()
        self.used = 0


class _Stored(NamedTuple):
    """Stored bytes of a run of frames; the plain function's checksums lie elsewhere."""

    body: Sequence[Part]
    checksums: Sequence[Part]


class SliceReader:
    """Reads slices. Its owner runs `serve` as a task, or nothing is loaded ahead."""

    def __init__(
        self,
        segment_length: Callable[[int], int],
        source: StoredSource,
        keys: SliceKeys,
        cache: CleanCache,
        frame_memory: int = FRAME_MEMORY,
        is_beside: Callable[[int, int], bool] = lambda *_: False,
    ) -> None:
        self._source = source
        self._keys = keys
        self._blocks = BlockReader(segment_length, source, cache, is_beside)
        self._memory = FrameMemory(frame_memory)
        self._last_key = 0, b""  # of which slice: a stream asks for it with each MiB

    async def read(self, ref: StoredSlice, start: int, stop: int) -> Buffer:
        """Return file bytes [start, stop) of the slice, verified. DataError when no replica has them sound."""
        form = ref.form
        if not 0 <= start <= stop <= form.length:
            raise ValueError("outside of the slice")
        if start == stop:
            return b""
        first, behind = form.frame_span(start, stop)
        frames = {number: self._memory.get(ref.row, number) for number in range(first, behind)}
        if lacking := [number for number, frame in frames.items() if frame is None]:
            if len(lacking) == len(frames) >= _STREAMED and form.is_sealed:
                return (await self._run(ref, lacking))[start - first * form.frame_size : stop - first * form.frame_size]
            frames |= await self._fetch(ref, lacking)
        held = [frame for frame in frames.values() if frame is not None]
        return _cut(held, start - first * form.frame_size, stop - start)

    def read_now(self, ref: StoredSlice, start: int, stop: int) -> Buffer | None:
        """As `read`, where nothing need be waited for; else None, and so for what is damaged.

        Of bytes in one frame, and of a stream that can be read past its depot.
        """
        form = ref.form
        if stop - start > form.frame_size:
            return self._run_now(ref, start, stop)
        number, skip = divmod(start, form.frame_size)
        if skip + stop - start > form.frame_size:
            return None
        frame = self._memory.get(ref.row, number)
        if frame is None and form.function != PLAIN_XXH3:
            body = self._blocks.at_hand(ref.segment, *_body_span(ref, number))
            if body is not None:
                with contextlib.suppress(FrameError):
                    (frame,) = unseal(form, self._key(ref), number, body)
                    self._memory.put(ref.row, number, frame)
        return None if frame is None else frame[skip : skip + stop - start]

    def _run_now(self, ref: StoredSlice, start: int, stop: int) -> memoryview | None:
        """All frames at once. Block by block, and through what waits, each MiB of a stream cost 130 us more."""
        form = ref.form
        first, behind = form.frame_span(start, stop)
        if behind - first < _STREAMED or not form.is_sealed:
            return None
        begin, end = form.stored_span(first, behind)
        stored = self._blocks.past_depot(ref.segment, ref.segment_offset + begin, ref.segment_offset + end)
        if stored is None:
            return None
        step = form.frame_size + form.overhead
        into = memoryview(unfilled(min(behind * form.frame_size, form.length) - first * form.frame_size))
        bodies = [stored[at : at + step] for at in range(0, len(stored), step)]
        try:
            unseal_into(form, self._key(ref), first, bodies, into)
        except FrameError:
            return None
        return into[start - first * form.frame_size : stop - first * form.frame_size]

    def prefetch(self, ref: StoredSlice, start: int, stop: int, *, stream: bool = False) -> None:
        """Have the stored bytes of [start, stop) of the slice brought into the cache soon; returns at once.

        `stream`: they are wanted once, in a moment, and memory will do.
        """
        begin, end = ref.form.stored_span(*ref.form.frame_span(start, min(stop, ref.form.length)))
        self._blocks.prefetch(ref.segment, ref.segment_offset + begin, ref.segment_offset + end, stream=stream)

    @property
    def is_loading_ahead(self) -> bool:
        """Whether what `prefetch` began has not ended, but for asking for a file that can be read past its depot."""
        return self._blocks.is_loading_ahead

    async def serve(self) -> None:
        """Load ahead, for ever; the owner runs this as a task."""
        await self._blocks.serve()

    def drop(self) -> None:
        """Forget the clear frames, and what else is in memory alone."""
        self._memory.clear()
        self._blocks.drop()

    def _key(self, ref: StoredSlice) -> bytes:
        row, key = self._last_key
        if row != ref.row:
            key = self._keys.slice_key(ref.form.epoch, ref.form.slice_id) if ref.form.is_sealed else b""
            self._last_key = ref.row, key
        return key

    async def _fetch(self, ref: StoredSlice, numbers: list[int]) -> dict[int, bytes]:
        key = self._key(ref)
        frames = await self._opened(ref, key, numbers, await self._stored(ref, numbers[0], numbers[-1] + 1))
        for number, frame in frames.items() if len(frames) < _STREAMED else ():
            self._memory.put(ref.row, number, frame)
        return frames

    async def _run(self, ref: StoredSlice, numbers: list[int]) -> memoryview:
        """Sealed frames that follow each other, as one piece."""
        key, stored = self._key(ref), await self._stored(ref, numbers[0], numbers[-1] + 1)
        if stored is not None:
            with contextlib.suppress(FrameError):
                return _open_run(ref, key, numbers, stored)
        frames = await self._opened(ref, key, numbers, stored)
        return memoryview(b"".join([frames[number] for number in numbers]))

    async def _opened(
        self, ref: StoredSlice, key: bytes, numbers: list[int], stored: _Stored | None
    ) -> dict[int, bytes]:
        """The frames, from these bytes; those that do not open, or all, from what other replicas give."""
        if stored is None:
            return await self._repair(ref, key, numbers, [])
        frames = _open(ref, key, numbers, stored)
        if bad := [number for number in numbers if number not in frames]:
            frames |= await self._repair(ref, key, bad, self._giver(ref, bad, stored))
        return frames

    async def _stored(self, ref: StoredSlice, first: int, behind: int) -> _Stored | None:
        """None where no replica has the whole blocks: these frames may still be had."""
        try:
            return await self._parts(ref, first, behind)
        except DataError as error:
            _log.debug("segment %d: %s", ref.segment, error)
            return None

    async def _parts(self, ref: StoredSlice, first: int, behind: int) -> _Stored:
        begin, end = ref.form.stored_span(first, behind)
        at = ref.segment_offset
        small = (first, behind) == (0, ref.form.frames)
        body = await self._blocks.parts(ref.segment, at + begin, at + end, small=small)
        if ref.form.function != PLAIN_XXH3:
            return _Stored(body, ())
        begin, end = ref.form.checksum_span(first, behind)
        return _Stored(body, await self._blocks.parts(ref.segment, at + begin, at + end))

    def _giver(self, ref: StoredSlice, bad: list[int], stored: _Stored) -> list[Loaded]:
        """Evict what does not open; return who gave it, when it can only be that one."""
        touched = _touched(ref, bad, stored)
        for part in touched:
            self._blocks.evict(ref.segment, part.start, part.stop)
        if all(part.origin is None for part in touched):
            _log.warning("segment %d: bytes in the local cache are damaged and are fetched again", ref.segment)
        givers = {part.origin.replica if part.origin else None: part.origin for part in touched}
        liar = next(iter(givers.values()))
        if len(givers) > 1 or liar is None:
            return []
        return [liar]

    async def _repair(self, ref: StoredSlice, key: bytes, bad: list[int], liars: list[Loaded]) -> dict[int, bytes]:
        """Open frames from the replicas that are left, each asked for just these. `liars` gave them wrong."""
        frames: dict[int, bytes] = {}
        avoid = frozenset[int]()
        for liar in liars:
            avoid |= await self._source.blame(liar.givers, _REASON)
        while bad:
            start, stop = _whole_span(ref, bad)
            try:
                loaded = await self._blocks.load(ref.segment, start, stop, avoid)
            except DataError as error:
                if not liars:
                    raise
                told = "; ".join(f"{liar.label}: {_REASON}" for liar in liars)
                raise DataError(f"segment {ref.segment}, bytes {start} to {stop}: {told}; {error}") from error
            part = [Part(start, memoryview(loaded.data), loaded)]
            frames |= _open(ref, key, bad, _Stored(part, part))
            bad = [number for number in bad if number not in frames]
            if bad:
                avoid |= await self._source.blame(loaded.givers, _REASON)
                liars = [*liars, loaded]
        return frames

def _open(ref: StoredSlice, key: bytes, numbers: list[int], stored: _Stored) -> dict[int, bytes]:
    """Return those of the frames that open."""
    frames = {}
    for number in numbers:
        body = _bytes_of(stored.body, *_body_span(ref, number))
        checksums = _bytes_of(stored.checksums, *_checksum_span(ref, number))
        with contextlib.suppress(FrameError):
            (frames[number],) = unseal(ref.form, key, number, body, checksums)
    return frames


def _open_run(ref: StoredSlice, key: bytes, numbers: list[int], stored: _Stored) -> memoryview:
    """All of the frames, which follow each other, as one piece; FrameError when one of them does not open."""
    first, form = numbers[0], ref.form
    into = memoryview(unfilled(min((numbers[-1] + 1) * form.frame_size, form.length) - first * form.frame_size))
    unseal_into(form, key, first, _bodies(ref, numbers, stored.body), into)
    return into


def _bodies(ref: StoredSlice, numbers: list[int], parts: Sequence[Part]) -> Iterator[Buffer]:
    """What is stored of each of these frames, which follow each other."""
    begin, end = ref.form.stored_span(numbers[0], numbers[-1] + 1)
    step, at = ref.form.frame_size + ref.form.overhead, 0
    for start in range(ref.segment_offset + begin, ref.segment_offset + end, step):
        stop = min(start + step, ref.segment_offset + end)
        while parts[at].stop <= start:
            at += 1
        part = parts[at]
        if stop <= part.stop:
            yield part.data[start - part.start : stop - part.start]
        else:
            yield _bytes_of(parts, start, stop)


def _body_span(ref: StoredSlice, number: int) -> tuple[int, int]:
    begin, end = ref.form.stored_span(number, number + 1)
    return ref.segment_offset + begin, ref.segment_offset + end


def _checksum_span(ref: StoredSlice, number: int) -> tuple[int, int]:
    if ref.form.function != PLAIN_XXH3:
        return 0, 0
    begin, end = ref.form.checksum_span(number, number + 1)
    return ref.segment_offset + begin, ref.segment_offset + end


def _whole_span(ref: StoredSlice, numbers: list[int]) -> tuple[int, int]:
    """The range of the segment with all that frames numbers[0] to numbers[-1] need."""
    start, stop = _body_span(ref, numbers[0])[0], _body_span(ref, numbers[-1])[1]
    return start, max(stop, _checksum_span(ref, numbers[-1])[1])


def _touched(ref: StoredSlice, numbers: list[int], stored: _Stored) -> list[Part]:
    """The parts that hold bytes of these frames."""
    spans = [(stored.body, _body_span(ref, number)) for number in numbers]
    spans += [(stored.checksums, _checksum_span(ref, number)) for number in numbers]
    touched = {part.start: part for parts, span in spans for part in _overlapping(parts, *span)}
    return list(touched.values())


def _overlapping(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    return [part for part in parts if part.start < stop and start < part.stop]


def _bytes_of(parts: Sequence[Part], start: int, stop: int) -> Buffer:
    """The bytes [start, stop) out of parts that follow each other; copied only where two parts meet."""
    pieces = [part.data[max(0, start - part.start) : stop - part.start] for part in _overlapping(parts, start, stop)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _cut(frames: list[bytes], skip: int, size: int) -> bytes:
    """`size` bytes of the frames, behind the first `skip`."""
    if len(frames) == 1:
        return frames[0][skip : skip + size]
    last = skip + size - sum(map(len, frames[:-1]))
    return b"".join([memoryview(frames[0])[skip:], *frames[1:-1], memoryview(frames[-1])[:last]])
