"""How a command is carried to a depot and its reply back: connections, retries, what the depot is known to offer.

Raises only DepotError and DepotUnreachable.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Self, TypeAlias, TypeVar

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.later import Buffer
from ibpfs.depot.pool import ConnectionPool
from ibpfs.depot.stream import SILENCE_LIMIT, DepotStream, Meanwhile, ShortLoad, Unanswered
from ibpfs.depot.wire import DepotError, DepotUnreachable, ErrorCode, OutOfSockets, error_for
from ibpfs.depot.wire import events as ev

_CONNECTION_TRIES: Final = 4
_LONGEST_BACKOFF: Final = 5.0
_MOST_AHEAD: Final = 64  # commands that wait for their reply on one connection: some kilobytes, in every buffer
_Feature: TypeAlias = tuple[type[ev.Command], bool]  # a command, and whether with digests
#: What every depot knows.
_ALWAYS_THERE: Final = frozenset[_Feature]((kind, False) for kind in (
    ev.Allocate, ev.Store, ev.Load, ev.Probe, ev.Increment, ev.Decrement, ev.Change, ev.StatusInquire, ev.Send,
))  # fmt: skip

_Reply = TypeVar("_Reply", bound=ev.Reply)
_log = logging.getLogger(__name__)


class Calls:
    """One depot. Commands may run side by side, each on a connection of its own.

    With `fingerprint`, through TLS with the certificate that has this SHA-256; an ibps address without one takes
    the certificate of its first connection, and no other from then on.
    """

    def __init__(
        self,
        address: Address,
        *,
        fingerprint: bytes | None = None,
        max_connections: int = 12,
        silence_limit: float = SILENCE_LIMIT,
    ) -> None:
        self.address = address
        self._pin = fingerprint
        self._silence_limit = silence_limit
        self._pool = ConnectionPool(self._connect, max_connections)
        self._version: int | None = None  # None until the depot has answered in one
        self._missing: set[_Feature] = set()  # what it does not offer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def pin(self, fingerprint: bytes) -> None:
        """Through TLS with this certificate from now on."""
        self._pin = fingerprint
        self._pool.drop()

    @property
    def fingerprint(self) -> bytes | None:
        """Of the certificate by which the depot is known; None without TLS, or before the first connection."""
        return self._pin

    def drop_connections(self) -> None:
        """After a suspend: nothing waits on a connection that may be dead."""
        self._pool.drop()

    async def aclose(self) -> None:
        self._pool.close()
        await trio.lowlevel.checkpoint()

    async def _connect(self) -> DepotStream:
        pin = self._pin
        stream = await DepotStream.connect(self.address, pin=pin, silence_limit=self._silence_limit)
        if self._pin == pin:
            self._pin = pin or stream.fingerprint
            return stream
        stream.close()  # pinned meanwhile: this connection knows nothing of it
        return await self._connect()

    async def _try_version(
        self, command: ev.Command, expected: type[_Reply], *, repeatable: bool = True
    ) -> _Reply | None:
        """None: the depot hung up on version 1, as the oldest ones do; they also take one command per
        connection."""
        try:
            reply = await self._call(command, expected, repeatable=repeatable)
        except Unanswered:
            if command.version == 1 and self._version != 1:
                return None
            raise
        self._learn(command.version)
        return reply

    async def _is_one_of_the_oldest(self) -> bool:
        if self._version is None:
            await self._inquire()
        return self._version == 0

    async def _inquire(self) -> ev.StatusReport:
        # Hanging up on version 1 may have been chance: it is asked again each time.
        for version in (1,) if self._version == 1 else (1, 0):
            reply = await self._try_version(ev.StatusInquire(version=version), ev.StatusReport)
            if reply is not None:
                return reply
        raise AssertionError("unreachable")

    def _learn(self, version: int) -> None:
        if version > 0 and self._version == 0:  # then much was not missing, but misunderstood
            self._missing.clear()
        self._version = version
        self._pool.keep_connections(version > 0)

    async def _load_into(self, command: ev.Load, into: memoryview) -> None:
        reply = await self._carry(command, (), into, repeatable=True)
        if isinstance(reply, ev.Failed) and reply.code in self._nothing_there:
            raise ShortLoad
        _expect(reply, ev.Loading)

    @property
    def _nothing_there(self) -> tuple[int, ...]:
        """What a LOAD behind the last byte is answered with; the oldest depots have waited for more."""
        waited = (ErrorCode.SERVER_TIMEOUT,) if self._version == 0 else ()
        return (ErrorCode.WOULD_EXCEED_LIMIT, *waited)

    async def _call(
        self,
        command: ev.Command,
        expected: type[_Reply],
        data: Sequence[Buffer] = (),
        into: memoryview | None = None,
        *,
        repeatable: bool = True,
        patience: float = 0.0,
        stepwise: bool = False,
        meanwhile: Meanwhile | None = None,
        descriptors: list[int] | None = None,
    ) -> _Reply:
        feature = _feature(command)
        if feature in self._missing:
            raise error_for(ErrorCode.UNKNOWN_FUNCTION)
        try:
            reply = await self._carry(
                command, data, into, repeatable=repeatable, patience=patience, stepwise=stepwise, may_be_short=True,
                meanwhile=meanwhile,
                descriptors=descriptors,
            )  # fmt: skip
        except Unanswered:
            if feature in _ALWAYS_THERE or not await self._is_one_of_the_oldest():
                raise
            reply = ev.Failed(ErrorCode.UNKNOWN_FUNCTION)  # the oldest depots hang up instead of saying so
        if isinstance(reply, ev.Failed) and reply.code == ErrorCode.UNKNOWN_FUNCTION and feature not in _ALWAYS_THERE:
            self._missing.add(feature)
        reply = _expect(reply, expected)
        if isinstance(reply, ev.Allocated) and self.address.secure:
            return replace(reply, capabilities=reply.capabilities.secured())
        if isinstance(reply, ev.Loading) and isinstance(command, ev.VecRead) and reply.length < command.length:
            raise ShortLoad
        return reply

    async def _carry(
        self,
        command: ev.Command,
        data: Sequence[Buffer],
        into: memoryview | None,
        *,
        repeatable: bool,
        patience: float = 0.0,
        stepwise: bool = False,
        may_be_short: bool = False,
        meanwhile: Meanwhile | None = None,
        descriptors: list[int] | None = None,
    ) -> ev.Reply:
        # A depot of unknown age may be about to close the connection, as the oldest do after each reply.
        fresh = self._version is None and not repeatable
        for tries_left in reversed(range(_CONNECTION_TRIES)):
            is_new = True
            try:
                async with self._pool.connection(fresh=fresh) as (stream, is_new):
                    wait = stepwise or self._version == 0
                    reply = await stream.transact(
                        command, data, into, wait_for_ready=wait, may_be_short=may_be_short, patience=patience,
                        meanwhile=meanwhile,
                        descriptors=descriptors,
                    )  # fmt: skip
                    if command.version == 1 and self._version != 1:
                        self._learn(1)
                    return reply
            except Unanswered as lost:
                if is_new:
                    raise
                # A kept connection may have been closed just before our bytes came, or after.
                if not repeatable:
                    raise DepotUnreachable(str(lost)) from lost
            except OutOfSockets as busy:
                # Instead of an answer: the depot has not read the command.
                if is_new:
                    await self._back_off(busy, tries_left)
                    fresh = False  # one that works may have come free meanwhile
                    continue
            fresh = True
        raise DepotUnreachable(f"{self.address}: the depot keeps closing the connection")

    async def _carry_all(self, commands: Sequence[ev.Command], *, repeatable: bool) -> list[ev.Reply]:
        """One reply each. Many lines go out before the first reply, to depots that keep connections."""
        replies: list[ev.Reply] = []
        while rest := commands[len(replies) : len(replies) + _MOST_AHEAD]:
            before = len(replies)
            if self._version == 1:
                try:
                    async with self._pool.connection() as (stream, _):
                        await stream.transact_all(rest, replies)
                except OutOfSockets:
                    pass  # the depot has not read those that it did not answer
                except Unanswered as lost:
                    if not repeatable:
                        raise DepotUnreachable(str(lost)) from lost
            if len(replies) == before:
                replies.append(await self._carry(rest[0], (), None, repeatable=repeatable))
        return replies

    async def _back_off(self, busy: OutOfSockets, tries_left: int) -> None:
        if not tries_left or busy.backoff > _LONGEST_BACKOFF:
            raise busy
        _log.debug("%s: out of sockets, again in %.2f s", self.address, busy.backoff)
        await trio.sleep(max(busy.backoff, 0.05))


def _feature(command: ev.Command) -> _Feature:
    return type(command), getattr(command, "checksum", None) is not None


def refusal(reply: ev.Reply) -> DepotError:
    assert isinstance(reply, ev.Failed)
    return error_for(reply.code)


def _expect(reply: ev.Reply, expected: type[_Reply]) -> _Reply:
    if isinstance(reply, ev.Failed):
        raise error_for(reply.code)
    assert isinstance(reply, expected)
    return reply
