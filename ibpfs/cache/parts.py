"""Stored bytes on their way to readers: loads, the blocks of one load, parts of blocks, and who gave them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import trio

from ibpfs.cache.clean import BLOCK, Buffer


class Loaded(Protocol):
    """Stored bytes as one replica gave them, or several together; `label` names depot and allocation for a log."""

    @property
    def data(self) -> Buffer: ...
    @property
    def replica(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def givers(self) -> Sequence[int]: ...


class OwnFiles(Protocol):
    """Segments whose bytes can be read past their depot, as far as the kernel has them in memory."""

    async def open(self, segment: int) -> bool:
        """Whether more of it can be read now than before."""

    def read_now(self, segment: int, start: int, stop: int) -> Loaded | None:
        """Return [start, stop) if that is so of all of it."""

    def has(self, segment: int, start: int, stop: int) -> bool:
        """Whether it seems to be so."""

    def forget(self, segment: int) -> None:
        """Bytes of it were wrong."""

    def close_unused(self) -> None: ...
    def close(self) -> None: ...


class StoredSource(Protocol):
    """Where stored bytes come from when they are not in the cache."""

    @property
    def own_files(self) -> OwnFiles: ...

    async def load(
        self, segment: int, start: int, stop: int, *, avoid: frozenset[int] = frozenset()
    ) -> Loaded:
        """Return bytes [start, stop) from a replica not in `avoid`; DataError when none can give them."""

    async def blame(self, givers: Sequence[int], reason: str) -> frozenset[int]:
        """What these replicas gave together is wrong: report those to blame, and return them, one at least."""

    def is_far(self, segment: int) -> bool:
        """Whether no depot that has the segment is near."""

    def holders(self, segment: int) -> frozenset[int]:
        """The depots that have something of the segment."""


class Part(NamedTuple):
    """Bytes of a segment from `start` on, and who gave them: None when the local cache did."""

    start: int
    data: memoryview
    origin: Loaded | None

    @property
    def stop(self) -> int:
        return self.start + len(self.data)


class _Share:
    """One block of several that came together."""

    __slots__ = ("_whole", "data")

    def __init__(self, whole: Loaded, data: memoryview) -> None:
        self._whole = whole
        self.data = data

    @property
    def replica(self) -> int:
        return self._whole.replica

    @property
    def label(self) -> str:
        return self._whole.label

    @property
    def givers(self) -> Sequence[int]:
        return self._whole.givers


def memory_of(loaded: Loaded) -> tuple[int, int]:
    """What stays in memory as long as this does, of a block of several all of them: its identity, and its length."""
    whole = memoryview(loaded.data).obj
    return id(whole), memoryview(whole).nbytes


def shares(loaded: Loaded, blocks: int) -> Sequence[Loaded]:
    """Each of so many blocks."""
    if blocks == 1:
        return [loaded]
    data = memoryview(loaded.data)
    return [_Share(loaded, data[at * BLOCK : (at + 1) * BLOCK]) for at in range(blocks)]


async def in_order(jobs: Sequence[Callable[[], Awaitable[Part]]]) -> list[Part]:
    """Run jobs at the same time; return their results in order, or raise one of their errors."""
    if len(jobs) <= 1:
        return [await job() for job in jobs]
    results: dict[int, Part] = {}
    errors: list[Exception] = []

    async def run(at: int, job: Callable[[], Awaitable[Part]]) -> None:
        try:
            results[at] = await job()
        except Exception as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for at, job in enumerate(jobs):
            nursery.start_soon(run, at, job)
    if errors:
        raise errors[0]
    return [results[at] for at in range(len(jobs))]
