"""Copies to and from other depots, and raw bytes to and from a third party: SEND, PUSH, PULL, DELIVER, REMOTE_STORE."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from ibpfs.depot.capability import Capability, CapabilityKind
from ibpfs.depot.server.courier import OtherDepot, OtherRefused
from ibpfs.depot.server.peer import Peer
from ibpfs.depot.server.reach import Purpose
from ibpfs.depot.server.transfers import open_source
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.errors import DepotError, ErrorCode, error_for

if TYPE_CHECKING:
    from ibpfs.depot.server.conversation import Conversation
    from ibpfs.depot.server.landing import Spans
    from ibpfs.depot.server.outlet import Source

_PIECE = 1 << 20
_SLACK = 5.0


async def send(talk: "Conversation", request: ev.Send) -> None:
    await _copy_out(talk, request, request.target, request.offset, ev.APPEND, request.length)


async def push(talk: "Conversation", request: ev.Push) -> None:
    await _copy_out(talk, request, request.remote, request.offset, request.remote_offset, request.length)


async def pull(talk: "Conversation", request: ev.Pull) -> None:
    """A FIFO over there may give fewer bytes than were asked for."""
    if _is_here(talk, request.remote):
        async with _source(talk, request.remote.key, request.remote_offset, request.length, request) as source:
            await _land(talk, request.key.key, request.offset, source, request)
        return
    store, target = talk.shared.resources.target(CapabilityKind.WRITE, request.key.key)
    target.require_writable()
    with _length_told(request.length):
        async with _at_other_depot(talk, request.remote, request) as other:
            asked = request.remote_offset, request.length
            length = await other.begin_load(request.remote, *asked, request.target_timeout)
            if length > request.length:
                raise error_for(ErrorCode.CONNECTION)
            limit, wait = talk.limit(request), talk.patience(request)
            async with talk.intake.landing(
                store, target, _where(request.offset, length), length, limit=limit, wait=wait
            ) as landing:
                async for piece in other.pieces(talk.buffer):
                    landing.write(piece)
                await landing.commit(talk.desk.unsynced, talk.shared.syncs)
    talk.reply(ev.Stored(length))


async def deliver(talk: "Conversation", request: ev.Deliver) -> None:
    async with _source(talk, request.key.key, request.offset, request.length, request) as source:
        async with _third_party(talk, request) as peer:
            await source.pour(peer, talk.limit(request))
        source.finish(talk.desk.unsynced)
        talk.reply(ev.Stored(source.length))


async def remote_store(talk: "Conversation", request: ev.RemoteStore) -> None:
    store, target = talk.shared.resources.target(CapabilityKind.WRITE, request.key.key)
    limit, wait = talk.limit(request), talk.patience(request)
    async with (
        talk.intake.landing(store, target, None, request.length, limit=limit, wait=wait) as landing,
        _third_party(talk, request) as peer,
    ):
        talk.reply(ev.Ready())
        await talk.flush()
        left = request.length
        while left:
            received = await peer.receive_into(talk.buffer[:left], limit)
            landing.write(talk.buffer[:received])
            left -= received
        await landing.commit(talk.desk.unsynced, talk.shared.syncs)
    talk.reply(ev.Stored(request.length))


# --- from here --------------------------------------------------------------------------------------------


async def _copy_out(
    talk: "Conversation", request: ev.Send | ev.Push, to: Capability, offset: int, to_offset: int, length: int
) -> None:
    async with _source(talk, request.key.key, offset, length, request) as source:
        if _is_here(talk, to):
            await _land(talk, to.key, to_offset, source, request)
            return
        with _length_told(source.length):
            async with _at_other_depot(talk, to, request) as other:
                await other.begin_store(to, to_offset, source.length, request.target_timeout)
                await source.pour(other.peer, talk.limit(request))
                stored = await other.finish_store()
        source.finish(talk.desk.unsynced)
        talk.reply(ev.Stored(stored))


async def _land(
    talk: "Conversation", key: str, offset: int, source: "Source", request: ev.Send | ev.Push | ev.Pull
) -> None:
    """Both ends are ours."""
    store, target = talk.shared.resources.target(CapabilityKind.WRITE, key)
    limit, wait = talk.limit(request), talk.patience(request)
    async with talk.intake.landing(
        store, target, _where(offset, source.length), source.length, limit=limit, wait=wait
    ) as landing:
        for piece in source.pieces(_PIECE):
            landing.write(memoryview(piece))
            await trio.lowlevel.checkpoint()
        await landing.commit(talk.desk.unsynced, talk.shared.syncs)
    source.finish(talk.desk.unsynced)
    talk.reply(ev.Stored(source.length))


def _where(offset: int, length: int) -> "Spans | None":
    return None if offset == ev.APPEND else [(offset, length)]


@asynccontextmanager
async def _source(
    talk: "Conversation", key: str, offset: int, length: int, request: ev.Command
) -> "AsyncIterator[Source]":
    store, target = talk.shared.resources.target(CapabilityKind.READ, key)
    source = await open_source(talk, store, target, [(offset, length)], request)
    try:
        yield source
    finally:
        source.close()


# --- to there ---------------------------------------------------------------------------------------------


def _is_here(talk: "Conversation", capability: Capability) -> bool:
    place = (capability.host, capability.port)
    return place == talk.desk.place or place in talk.shared.places


@asynccontextmanager
async def _at_other_depot(
    talk: "Conversation", capability: Capability, request: ev.Send | ev.Push | ev.Pull
) -> AsyncIterator[OtherDepot]:
    # The other one may take as long as the client allows it to, and then still has to say so.
    limit = max(talk.limit(request), float(request.target_timeout)) + _SLACK
    place = capability.host, capability.port
    await talk.flush()
    async with talk.shared.courier.connected(
        Purpose.COPY, *place, talk.peer.origin, limit, secure=capability.secure
    ) as peer:
        yield OtherDepot(peer, limit)


@asynccontextmanager
async def _third_party(talk: "Conversation", request: ev.Deliver | ev.RemoteStore) -> AsyncIterator[Peer]:
    await talk.flush()
    place = request.host, request.port
    async with talk.shared.courier.connected(Purpose.RAW, *place, talk.peer.origin, talk.limit(request)) as peer:
        yield peer


@contextmanager
def _length_told(length: int) -> Iterator[None]:
    """What the other depot refused is passed on with the length."""
    try:
        yield
    except OtherRefused as refusal:
        raise CopyRefused(refusal.code, length) from None


class CopyRefused(DepotError):
    """By the other depot."""

    def __init__(self, code: int, length: int) -> None:
        self.length = length
        super().__init__(code)

