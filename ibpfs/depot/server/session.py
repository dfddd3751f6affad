"""One connection from its first command to its end: who answers what."""

import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import trio

from ibpfs.depot.server import copies, transfers
from ibpfs.depot.server.conversation import Conversation
from ibpfs.depot.server.copies import CopyRefused
from ibpfs.depot.server.counters import LOST, OK
from ibpfs.depot.server.peer import Peer, PeerGone
from ibpfs.depot.server.shared import Shared
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.errors import DepotError, ErrorCode, error_for

log = logging.getLogger(__name__)

LINGER = 2.0
# Commands of one connection before the others have their turn, however many it has sent at once. Beside 50 that send
# 100,000 and read nothing, a new connection was answered after 12 s without it, after 0.2 s with it.
TURN = 16


class Session:
    """`place`: the HOST, PORT that capabilities allocated here name; `idle_limit`: None waits for ever."""

    def __init__(
        self, peer: Peer, shared: Shared, place: tuple[str, int], *, idle_limit: float | None
    ) -> None:
        self._talk = Conversation(peer, shared, place, idle_limit=idle_limit)
        self._shared = shared

    async def serve(self) -> None:
        """Until the peer closes, gets stuck, or does something after which it cannot be understood."""
        try:
            await self._serve()
        except PeerGone as gone:
            log.debug("connection lost: %s", gone)
        except OSError as error:  # of a sync, mostly: what may not be durable must not be acknowledged
            log.error("disk error, connection dropped: %s", error)
        finally:
            self._talk.end()

    async def _serve(self) -> None:
        talk, answered = self._talk, 0
        while not talk.connection.must_close:
            event = await talk.next_event()
            if event is None:
                break
            if isinstance(event, ev.ClosedByPeer):
                return
            if not isinstance(event, ev.EndOfData):
                await self._answer(event)  # type: ignore[arg-type]
                answered += 1
                if answered % TURN == 0:
                    await trio.lowlevel.checkpoint()
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        self._talk.peer.pace.begin()
        self._talk.reply(ev.Goodbye())
        await self._talk.flush()
        await self._talk.peer.linger(LINGER)

    async def _answer(self, request: ev.Request) -> None:
        talk, result = self._talk, LOST
        talk.refused = None
        talk.peer.pace.begin()
        try:
            await self._try(request)
            result = OK if talk.refused is None else result_name(talk.refused)
        finally:
            self._shared.counters.commands[_name(request), result] += 1
        await talk.flush_if_much()

    async def _try(self, request: ev.Request) -> None:
        talk = self._talk
        try:
            if not self._shared.access.permits(request, talk.peer.origin):
                raise error_for(ErrorCode.INV_IP_ADDR)
            if (answer := _ANSWERS.get(type(request))) is not None:
                await answer(talk, request)
            else:
                talk.reply(talk.desk.answer(request))
        except CopyRefused as refusal:
            talk.reply(ev.Failed(refusal.code, refusal.length))
        except DepotError as refusal:
            talk.reply(ev.Failed(refusal.code))


def _name(request: ev.Request) -> str:
    return command_name(type(request).__name__)


@cache
def command_name(event: str) -> str:
    """`StatusInquire` is status_inquire."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", event).lower()


@cache
def result_name(code: int) -> str:
    try:
        return ErrorCode(code).name.lower()
    except ValueError:  # another depot's, passed on
        return "other"


async def _change_limits(talk: Conversation, request: ev.StatusChange) -> None:
    if talk.shared.password is None:
        raise error_for(ErrorCode.INVALID_CMD)
    if not hmac.compare_digest(request.password.encode(), talk.shared.password.encode()):
        raise error_for(ErrorCode.WRONG_PASSWD)
    talk.reply(ev.Ready())
    limits = await talk.next_event()
    if not isinstance(limits, ev.NewLimits):
        raise PeerGone("closed before it said the limits")
    if limits.numbers is None:
        raise error_for(ErrorCode.BAD_FORMAT)
    talk.reply(talk.desk.change_limits(limits.numbers))


_ANSWERS: dict[type[Any], Callable[[Conversation, Any], Awaitable[None]]] = {
    ev.Store: transfers.take_in,
    ev.Write: transfers.take_in,
    ev.VecWrite: transfers.take_in,
    ev.Load: transfers.hand_out,
    ev.VecRead: transfers.hand_out,
    ev.Open: transfers.hand_over,
    ev.Send: copies.send,
    ev.Push: copies.push,
    ev.Pull: copies.pull,
    ev.Deliver: copies.deliver,
    ev.RemoteStore: copies.remote_store,
    ev.GetDigests: transfers.get_digests,
    ev.ValidateDigests: transfers.validate,
    ev.StatusChange: _change_limits,
}
