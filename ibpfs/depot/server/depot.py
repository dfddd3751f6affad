"""The depot as a whole: lock, store, listeners, sessions, and when it ends."""

import errno
import fcntl
import logging
import os
import random
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from ibpfs.depot.capability import render_place
from ibpfs.depot.server.access import plain_ip
from ibpfs.depot.server.certificate import tls_context
from ibpfs.depot.server.courier import Courier
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.listeners import Listener, listen_tcp, listen_unix
from ibpfs.depot.server.operator import SOCKET, answer
from ibpfs.depot.server.operator import ask as ask_operator
from ibpfs.depot.server.operator import serve as serve_operator
from ibpfs.depot.server.peer import Peer
from ibpfs.depot.server.reach import Reach
from ibpfs.depot.server.resources import Resources, rid_of
from ibpfs.depot.server.session import Session
from ibpfs.depot.server.settings import Settings
from ibpfs.depot.server.shared import Shared
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.syncing import SyncThreads, Unsynced, settle_now
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.connection import Connection, Role
from ibpfs.errors import IbpfsError

log = logging.getLogger(__name__)

DEFAULT_PORT = 6714
LONGEST_REAP_PAUSE = 30.0
SHORTEST_REAP_PAUSE = 0.5
BACKOFF_PER_REJECT = 0.1
LONGEST_BACKOFF = 30.0
LOCK_ATTEMPTS = 5
LOCK_PAUSE = 0.04
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class StoreLocked(IbpfsError):
    """Another depot serves this store."""


async def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM, SIGINT or, if so set, until nobody is connected. `announce` gets the address when ready."""
    with ExitStack() as stack:
        for directory in (settings.store, *(one for one, _ in settings.resources)):
            stack.enter_context(_locked(directory))
        depot = stack.enter_context(open_depot(settings, SteadyClock()))
        operator = None
        if settings.exit_when_unused is None:  # otherwise it is a volume's own, and has no operator
            operator = listen_unix(settings.store / SOCKET).sock
            stack.callback((settings.store / SOCKET).unlink, missing_ok=True)
            stack.enter_context(closing(operator))
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, nursery.cancel_scope)
            if operator is not None:
                nursery.start_soon(depot.serve_operator, operator)
            announce(depot.address)
            await depot.serve()
            nursery.cancel_scope.cancel()


@contextmanager
def open_depot(settings: Settings, clock: Callable[[], float]) -> "Iterator[Depot]":
    """Without lock and signals, as tests want it."""
    resources = _open_resources(settings, clock)
    with ExitStack() as stack:
        listeners: list[Listener] = []
        for host, port in settings.listen:
            listeners.append(listen_tcp(host, port, settings.store))
            stack.enter_context(closing(listeners[-1].sock))
        if settings.unix is not None:
            listeners.append(listen_unix(settings.unix))
            stack.callback(settings.unix.unlink, missing_ok=True)
            stack.enter_context(closing(listeners[-1].sock))
        syncs = stack.enter_context(SyncThreads())
        shared = Shared(
            resources, syncs, settings.idle_timeout, settings.access, Courier(_reach(settings, listeners)),
            settings.password, frozenset(_places(settings, listeners)),
        )  # fmt: skip
        for store in resources:
            store.deleted = shared.tell_deleted
        tls = tls_context(settings.store) if settings.tls and settings.listen else None
        yield Depot(settings, listeners, shared, tls)


def _open_resources(settings: Settings, clock: Callable[[], float]) -> Resources:
    rules = LeaseRules(settings.max_lease, settings.permanent)
    directories = [(settings.store, settings.capacity), *settings.resources]
    return Resources([
        AllocationStore(
            directory, rules=rules, grace=settings.grace, clock=clock, capacity=capacity,
            rid=rid_of(directory, str(number)),
        )
        for number, (directory, capacity) in enumerate(directories, 1)
    ])  # fmt: skip


def _places(settings: Settings, listeners: list[Listener]) -> Iterator[tuple[str, int]]:
    if settings.public is not None:
        yield settings.public
    for listener in listeners:
        if listener.place is not None and not listener.is_wildcard:
            yield listener.place


def _reach(settings: Settings, listeners: list[Listener]) -> Reach:
    """A depot that is there for this machine alone may copy within it."""
    addresses = [plain_ip(str(x.sock.getsockname()[0])) for x in listeners if x.place is not None]
    on_loopback = not addresses or any(address.is_loopback for address in addresses)
    return replace(settings.reach, on_loopback=on_loopback, own=frozenset(addresses))


def operate(settings: Settings, request: dict[str, Any]) -> dict[str, Any]:
    """Puts a request of the operator to the depot that runs on the store, or does it where none runs."""
    try:
        with _locked(settings.store):
            unsynced = Unsynced()
            try:
                said = answer(_open_resources(settings, SteadyClock()), request, unsynced)
                settle_now(unsynced)
                return said
            finally:
                unsynced.close()
    except StoreLocked:
        return ask_operator(settings.store, request)


class Depot:
    """`serve` accepts connections until cancelled or unused."""

    def __init__(
        self, settings: Settings, listeners: list[Listener], shared: Shared, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._listeners = listeners
        self._shared = shared
        self._sessions = 0
        self._rejected = 0
        self._moved = trio.Event()  # set, and replaced, when the number of sessions leaves or reaches zero

    @property
    def address(self) -> str:
        place = self._first_place()
        return f"unix:{self._settings.unix}" if place is None else f"ibp://{render_place(*place)}"

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reap)
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, nursery)
            if self._settings.exit_when_unused is not None:
                await self._until_unused(self._settings.exit_when_unused)
                log.info("nobody connected for %g s, ending", self._settings.exit_when_unused)
                nursery.cancel_scope.cancel()

    async def serve_operator(self, listener: socket.socket) -> None:
        await serve_operator(self._shared.resources, self._shared.syncs, listener)

    async def serve_socket(self, sock: trio.socket.SocketType, place: tuple[str, int]) -> None:
        """One connection to its end. Closes the socket."""
        peer = Peer(sock, None if sock.family == socket.AF_UNIX else self._tls)
        # Local users are not sent away for being idle: their being connected is what keeps the depot alive.
        idle_limit = None if peer.local else self._settings.idle_timeout
        self._count(1)
        try:
            await Session(peer, self._shared, place, idle_limit=idle_limit).serve()
        except Exception:
            log.exception("session failed")
        finally:
            peer.close()
            self._count(-1)

    # --- connections --------------------------------------------------------------------------------------

    async def _accept(self, listener: Listener, nursery: trio.Nursery) -> None:
        sock = trio.socket.from_stdlib_socket(listener.sock)
        while True:
            try:
                accepted, _ = await sock.accept()
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    log.warning("cannot accept: %s", error)
                    await trio.sleep(BACKOFF_PER_REJECT)
                continue  # otherwise the peer went away while it was in the queue
            if self._sessions >= self._settings.max_connections:
                await self._reject(accepted)
            else:
                self._rejected = 0
                nursery.start_soon(self.serve_socket, accepted, self._place(listener, accepted))

    async def _reject(self, sock: trio.socket.SocketType) -> None:
        self._rejected += 1
        backoff = min(LONGEST_BACKOFF, BACKOFF_PER_REJECT * self._rejected + random.random() / 4)
        with sock, trio.move_on_after(0.1):
            await sock.send(Connection(Role.SERVER).send(ev.Goodbye(backoff)))

    def _place(self, listener: Listener, accepted: trio.socket.SocketType) -> tuple[str, int]:
        if self._settings.public is not None:
            return self._settings.public
        if listener.is_wildcard:  # the address under which this client found us works for this client
            host, port = accepted.getsockname()[:2]
            return host, port
        return listener.place or self._first_place() or ("localhost", DEFAULT_PORT)

    def _first_place(self) -> tuple[str, int] | None:
        return self._settings.public or next((x.place for x in self._listeners if x.place is not None), None)

    def _count(self, change: int) -> None:
        before, self._sessions = self._sessions, self._sessions + change
        if not (before and self._sessions):
            self._moved.set()
            self._moved = trio.Event()

    async def _until_unused(self, seconds: float) -> None:
        while True:
            moved = self._moved
            if self._sessions:
                await moved.wait()
                continue
            with trio.move_on_after(seconds):
                await moved.wait()
                continue
            return

    async def _reap(self) -> None:
        while True:
            for store in self._shared.resources:
                store.delete_ended()
            await trio.sleep(min(LONGEST_REAP_PAUSE, max(SHORTEST_REAP_PAUSE, self._settings.grace / 4)))


class SteadyClock:
    """Unix seconds that go on evenly: a wall clock that is set while we run ends no lease early."""

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def __call__(self) -> float:
        return self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(fd):
            raise StoreLocked(f"another depot serves {store}")
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    # Whoever asks whether a depot runs holds the lock for an instant: that is no other depot.
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE)
        else:
            return True
    return False


async def _stop_on_signal(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            scope.cancel()
            return
