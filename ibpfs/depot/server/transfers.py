"""Bytes between a client and the allocations: STORE, WRITE, LOAD and their vectors, with and without digests."""

import os
from typing import TYPE_CHECKING, Any

import trio

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server import digests, outlet
from ibpfs.depot.server.allocation import HEADER_BYTES
from ibpfs.depot.server.landing import Landing, Spans, in_thread_if_long, refresh_digests
from ibpfs.depot.server.outlet import Source
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.digests import Deframer
from ibpfs.depot.wire.errors import DepotError, ErrorCode, error_for

if TYPE_CHECKING:
    from ibpfs.depot.server.allocation import Allocation
    from ibpfs.depot.server.conversation import Conversation
    from ibpfs.depot.server.store import AllocationStore
    from ibpfs.depot.server.target import Target

_DIGESTS_AT_ONCE = 256 * 1024  # bytes


# --- in ---------------------------------------------------------------------------------------------------


async def take_in(talk: "Conversation", request: ev.Store | ev.Write | ev.VecWrite) -> None:
    store, target = talk.shared.resources.target(CapabilityKind.WRITE, request.key.key)
    limit, wait = talk.limit(request), talk.patience(request)
    async with talk.intake.landing(
        store, target, _ranges(request), request.length, limit=limit, wait=wait
    ) as landing:
        talk.reply(ev.Ready())
        await _copy_in(talk, landing, request, limit)
        await landing.commit(talk.desk.unsynced, talk.shared.syncs)
    talk.reply(ev.Stored(request.length))


def _ranges(request: ev.Store | ev.Write | ev.VecWrite) -> Spans | None:
    if isinstance(request, ev.Store):
        return None
    return [(request.offset, request.length)] if isinstance(request, ev.Write) else list(request.ranges)


async def _copy_in(
    talk: "Conversation", landing: Landing, request: ev.Store | ev.Write | ev.VecWrite, limit: float
) -> None:
    refusal: DepotError | None = None
    deframer = Deframer(request.checksum, request.length) if request.checksum is not None else None
    while talk.connection.raw_remaining:
        data = await talk.next_piece(limit)
        if deframer is not None:
            data = memoryview(deframer.feed(data))
        if refusal is not None:
            continue  # the disk is full: what is under way must pass, or it would be read as commands
        try:
            landing.write(data)
        except DepotError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    if deframer is not None and deframer.damaged:
        raise error_for(ErrorCode.CHKSUM)


# --- out --------------------------------------------------------------------------------------------------


async def hand_out(talk: "Conversation", request: ev.Load | ev.VecRead) -> None:
    store, target = talk.shared.resources.target(CapabilityKind.READ, request.key.key)
    ranges = [(request.offset, request.length)] if isinstance(request, ev.Load) else list(request.ranges)
    source = await open_source(talk, store, target, ranges, request)
    try:
        if source.length <= outlet.INLINE and request.checksum is None and type(source) is Source:
            talk.reply(ev.Loading(source.length), b"".join(source.pieces()))
        else:
            await _send(talk, source, request)
        source.finish(talk.desk.unsynced)
    finally:
        source.close()


async def hand_over(talk: "Conversation", request: ev.Open) -> None:
    """The file itself, to be read as far as the allocation goes. Only to who may open it anyway: our own user. For
    no end of a lease takes a descriptor away."""
    if not talk.peer.is_own_user:
        raise error_for(ErrorCode.UNKNOWN_FUNCTION)
    store, target = talk.shared.resources.target(CapabilityKind.READ, request.key.key)
    if target.allocation.kind.is_queue or target.alias is not None:
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
    descriptor = store.open(target.allocation, os.O_RDONLY)
    try:
        await talk.hand_over(ev.Opened(HEADER_BYTES), descriptor)
    finally:
        os.close(descriptor)


async def open_source(
    talk: "Conversation", store: "AllocationStore", target: "Target", ranges: Spans, request: ev.Command
) -> Source:
    if not target.allocation.kind.is_queue:
        return outlet.open_ranges(store, target, ranges)
    if isinstance(request, ev.VecRead):
        raise error_for(ErrorCode.TYPE_NOT_SUPPORTED)
    length = ranges[0][1]
    if target.allocation.size < min(length, target.allocation.max_size):
        await talk.flush()
    gate = talk.shared.gate(target.allocation)
    return await outlet.open_queue(store, target, gate, length, talk.patience(request), talk.desk.unsynced)


async def _send(talk: "Conversation", source: Source, request: ev.Load | ev.VecRead) -> None:
    for offset, length in source.spans:
        if length > outlet.INLINE:
            os.posix_fadvise(source.fd, offset, length, os.POSIX_FADV_WILLNEED)
    limit = talk.limit(request)
    await talk.announce(ev.Loading(source.length), limit)
    await source.pour(talk.peer, limit, request.checksum)


# --- digests on disk --------------------------------------------------------------------------------------


async def get_digests(talk: "Conversation", request: ev.GetDigests) -> None:
    store, allocation = _managed(talk, request.key.key)
    if allocation.checksum is None:
        raise error_for(ErrorCode.CHKSUM)
    async with _Examined(talk, store, allocation, talk.limit(request)) as kept:
        blocks = allocation.checksum.blocks(allocation.size)
        report = ev.DigestReport(allocation.checksum, blocks, blocks * allocation.checksum.digest_size)
        if request.info_only:
            talk.reply(report)
            return
        await talk.announce(report, talk.limit(request))
        zero = await in_thread_if_long(
            allocation.checksum.block_size, lambda _: digests.zero_digest(allocation.checksum)
        )
        step = _DIGESTS_AT_ONCE // allocation.checksum.digest_size
        for first in range(0, blocks, step):
            end = min(first + step, blocks)
            data = digests.read_digests(kept.digests, allocation.checksum, first, end, zero)
            await talk.peer.send(data, talk.limit(request))


async def validate(talk: "Conversation", request: ev.ValidateDigests) -> None:
    store, allocation = _managed(talk, request.key.key)
    if allocation.checksum is None:
        talk.reply(ev.BadBlocks(0))
        return
    async with _Examined(talk, store, allocation, talk.limit(request)) as kept:
        bad: int | None = None
        with trio.move_on_after(talk.limit(request)):
            bad = await in_thread_if_long(
                allocation.size,
                lambda check: digests.count_bad(
                    kept.fd, kept.digests, allocation.checksum, allocation.size,
                    correct=request.correct, check=check,
                ),
            )  # fmt: skip
        if bad is None:
            raise error_for(ErrorCode.SERVER_TIMEOUT)
    talk.reply(ev.BadBlocks(bad))


class _Examined:
    """It is nobody's turn to store while the digests are looked at, and none of them is stale."""

    def __init__(
        self, talk: "Conversation", store: "AllocationStore", allocation: "Allocation", limit: float
    ) -> None:
        self._talk, self._store, self._allocation, self._limit = talk, store, allocation, limit
        self.fd = self.digests = -1

    async def __aenter__(self) -> "_Examined":
        self._gate = self._talk.shared.gate(self._allocation)
        with trio.move_on_after(self._limit) as waiting:
            await self._gate.writing.acquire()
        if waiting.cancelled_caught:
            raise error_for(ErrorCode.SERVER_TIMEOUT)
        try:
            self.fd = self._store.open(self._allocation)
            if self._allocation.stale[0] < self._allocation.stale[1]:
                await refresh_digests(self._store, self._allocation, self.fd, self._talk.desk.unsynced)
            self.digests = digests.open_digests(self._store.path(self._allocation))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        for fd in (self.fd, self.digests):
            if fd >= 0:
                os.close(fd)
        self._gate.writing.release()


def _managed(talk: "Conversation", key: str) -> tuple["AllocationStore", "Allocation"]:
    store = talk.shared.resources.of_key(key)
    return store, store.target(CapabilityKind.MANAGE, key).allocation
