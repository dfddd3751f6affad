"""The depot as a whole: store, listeners, sessions, and when it ends."""

import errno
import logging
import random
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, replace
from typing import Any

import trio

from ibpfs.depot.capability import render_place
from ibpfs.depot.clock import SteadyClock
from ibpfs.depot.server import operator
from ibpfs.depot.server.access import Ip, plain_ip
from ibpfs.depot.server.certificate import tls_context
from ibpfs.depot.server.courier import Courier
from ibpfs.depot.server.leases import LeaseRules
from ibpfs.depot.server.listeners import Listener, inherit, listen_tcp, listen_unix
from ibpfs.depot.server.locking import StoreLocked, locked
from ibpfs.depot.server.peer import Peer, origin_of
from ibpfs.depot.server.reach import Reach
from ibpfs.depot.server.resources import Resources, rid_of
from ibpfs.depot.server.session import Session
from ibpfs.depot.server.settings import AT_START, Settings
from ibpfs.depot.server.shared import Shared
from ibpfs.depot.server.store import AllocationStore
from ibpfs.depot.server.supervisor import Supervisor
from ibpfs.depot.server.syncing import SyncThreads, Unsynced, settle_now
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.connection import Connection, Role
from ibpfs.errors import IbpfsError

__all__ = ["DEFAULT_PORT", "Depot", "SteadyClock", "StoreLocked", "open_depot", "operate", "run"]

log = logging.getLogger(__name__)

DEFAULT_PORT = 6714
LONGEST_REAP_PAUSE = 30.0
SHORTEST_REAP_PAUSE = 0.5
BACKOFF_PER_REJECT = 0.1
LONGEST_BACKOFF = 30.0
FURTHER_DESCRIPTORS = 64
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def run(
    settings: Settings, announce: Callable[[str], None], reread: Callable[[], Settings] | None = None
) -> None:
    """Serves until SIGTERM, SIGINT or, if so set, until nobody is connected. `announce` gets the address when ready.
    On SIGHUP `reread` says the settings anew; an IbpfsError of it leaves them as they are."""
    supervisor = Supervisor()
    settings = _within_descriptors(settings)
    with ExitStack() as stack:
        for directory in (settings.store, *(one for one, _ in settings.resources)):
            stack.enter_context(locked(directory))
        depot = stack.enter_context(open_depot(settings, SteadyClock()))
        questions = stack.enter_context(closing(listen_unix(settings.store / operator.SOCKET))).sock
        async with trio.open_nursery() as nursery:
            await nursery.start(_obey_signals, nursery.cancel_scope, depot, supervisor, reread)
            nursery.start_soon(depot.serve_operator, questions)
            announce(depot.address)
            supervisor.ready(f"serves {depot.address}")
            await depot.serve()
            nursery.cancel_scope.cancel()
        supervisor.stopping()


def _within_descriptors(settings: Settings) -> Settings:
    """A quarter of them is for files."""
    most = max(16, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FURTHER_DESCRIPTORS) * 3 // 4)
    if settings.max_connections <= most:
        return settings
    log.info("fewer connections than set, for want of descriptors max_connections=%d", most)
    return replace(settings, max_connections=most)


@contextmanager
def open_depot(settings: Settings, clock: Callable[[], float]) -> "Iterator[Depot]":
    """Without lock and signals, as tests want it."""
    resources = _open_resources(settings, clock)
    with ExitStack() as stack:
        listeners = [stack.enter_context(closing(one)) for one in _listeners(settings)]
        metrics = listen_tcp(*settings.metrics) if settings.metrics is not None else None
        if metrics is not None:
            stack.enter_context(closing(metrics))
        syncs = stack.enter_context(SyncThreads())
        shared = Shared(
            resources, syncs, settings, Courier(_reach(settings, listeners, metrics)),
            frozenset(_places(settings, listeners)),
        )  # fmt: skip
        for store in resources:
            store.deleted = shared.tell_deleted
        on_tcp = any(listener.place is not None for listener in listeners)
        tls = tls_context(settings.store) if settings.tls and on_tcp else None
        yield Depot(settings, listeners, shared, tls, metrics)


def _listeners(settings: Settings) -> Iterator[Listener]:
    yield from map(inherit, settings.inherited)
    for host, port in settings.listen:
        yield listen_tcp(host, port, settings.store)
    if settings.unix is not None:
        yield listen_unix(settings.unix)


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


def _reach(settings: Settings, listeners: list[Listener], metrics: Listener | None) -> Reach:
    """A depot that is there for this machine alone may copy within it."""
    addresses = [plain_ip(str(x.sock.getsockname()[0])) for x in listeners if x.place is not None]
    on_loopback = not addresses or any(address.is_loopback for address in addresses)
    admin_ports = {metrics.place[1]} if metrics is not None and metrics.place is not None else set()
    return replace(
        settings.reach, on_loopback=on_loopback, own=frozenset(addresses),
        admin_ports=settings.reach.admin_ports | admin_ports,
    )  # fmt: skip


def operate(settings: Settings, request: dict[str, Any]) -> dict[str, Any]:
    """Puts a request of the operator to the depot that runs on the store, or does it where none runs."""
    try:
        with locked(settings.store):
            unsynced = Unsynced()
            try:
                said = operator.answer(_open_resources(settings, SteadyClock()), request, unsynced)
                settle_now(unsynced)
                return said
            finally:
                unsynced.close()
    except StoreLocked:
        return operator.ask(settings.store, request)


class Depot:
    """`serve` accepts connections until cancelled or unused."""

    def __init__(
        self,
        settings: Settings,
        listeners: list[Listener],
        shared: Shared,
        tls: ssl.SSLContext | None,
        metrics: Listener | None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._listeners = listeners
        self._metrics = metrics
        self._shared = shared
        self._sessions = 0
        self._rejected = 0
        self._moved = trio.Event()  # set, and replaced, when the number of sessions leaves or reaches zero

    @property
    def address(self) -> str:
        place = self._first_place()
        if place is not None:
            return f"ibp://{render_place(*place)}"
        return f"unix:{self._settings.unix or self._listeners[0].sock.getsockname()}"

    @property
    def metrics_place(self) -> tuple[str, int] | None:
        return self._metrics.place if self._metrics is not None else None

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reap)
            if self._metrics is not None:
                nursery.start_soon(self._serve_metrics, self._metrics.sock)
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, nursery)
            if self._settings.exit_when_unused is not None:
                await self._until_unused(self._settings.exit_when_unused)
                log.info("nobody connected for %g s, ending", self._settings.exit_when_unused)
                nursery.cancel_scope.cancel()

    async def serve_operator(self, listener: socket.socket) -> None:
        shared = self._shared
        await operator.serve(shared.resources, shared.syncs, listener, shared.counters)

    async def _serve_metrics(self, listener: socket.socket) -> None:
        from ibpfs.depot.server import metrics  # a volume's own depot starts quicker without

        shared = self._shared
        host, port = listener.getsockname()[:2]
        log.info("metrics served at=%s", render_place(host, port))
        await metrics.serve(metrics.page_of(shared.resources, shared.counters, shared.syncs.durations), listener)

    def reload(self, settings: Settings) -> None:
        """What can only be set at the start is named in the log, and stays."""
        before = self._settings
        for name in (one.name for one in fields(Settings) if one.name in AT_START):
            if getattr(settings, name) != getattr(before, name):
                log.warning("a setting takes effect at the next start setting=%s", name.replace("_", "-"))
                settings = replace(settings, **{name: getattr(before, name)})
        self._settings = settings = _within_descriptors(settings)
        self._shared.adopt(settings)
        self._shared.courier.reach = _reach(settings, self._listeners, self._metrics)
        for store in self._shared.resources:
            store.grace = settings.grace
            if (settings.max_lease, settings.permanent) != (before.max_lease, before.permanent):
                store.rules = LeaseRules(settings.max_lease, settings.permanent)
        if settings.capacity != before.capacity:
            self._shared.resources.first.set_capacity(settings.capacity)

    async def serve_socket(self, sock: trio.socket.SocketType, place: tuple[str, int]) -> None:
        """One connection to its end. Closes the socket."""
        shared = self._shared
        peer = Peer(sock, None if sock.family == socket.AF_UNIX else self._tls, shared.manners)
        # Local users are not sent away for being idle: their being connected is what keeps the depot alive.
        idle_limit = None if peer.local else self._settings.idle_timeout
        self._count(1)
        try:
            await Session(peer, shared, place, idle_limit=idle_limit).serve()
        except Exception:
            shared.counters.failed_sessions += 1
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
            origin = origin_of(accepted)
            if (reason := self._shared.door.refusal(origin)) is not None:
                self._shared.counters.refused[reason] += 1
                await self._reject(accepted)
            else:
                self._rejected = 0
                self._shared.counters.accepted += 1
                self._shared.door.enter(origin)  # at once: the next one may be there before this one's task runs
                nursery.start_soon(self._serve_guest, accepted, origin, self._place(listener, accepted))

    async def _serve_guest(
        self, sock: trio.socket.SocketType, origin: Ip | None, place: tuple[str, int]
    ) -> None:
        try:
            await self.serve_socket(sock, place)
        finally:
            self._shared.door.leave(origin)

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
            return str(plain_ip(host)), port
        return listener.place or self._first_place() or ("localhost", DEFAULT_PORT)

    def _first_place(self) -> tuple[str, int] | None:
        return self._settings.public or next((x.place for x in self._listeners if x.place is not None), None)

    def _count(self, change: int) -> None:
        before, self._sessions = self._sessions, self._sessions + change
        self._shared.counters.connections = self._sessions
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
                unsynced = Unsynced()
                try:
                    store.delete_ended(unsynced)
                    if unsynced.deleted:
                        await trio.to_thread.run_sync(unsynced.close)
                except (OSError, RuntimeError) as error:  # the disk refuses, or there are no more threads
                    log.warning("what has ended is not deleted: %s", error)
                finally:
                    unsynced.close()
            await trio.sleep(min(LONGEST_REAP_PAUSE, max(SHORTEST_REAP_PAUSE, self._settings.grace / 4)))


async def _obey_signals(
    scope: trio.CancelScope,
    depot: Depot,
    supervisor: Supervisor,
    reread: Callable[[], Settings] | None,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                if reread is not None:
                    _reload(depot, supervisor, reread)
                continue
            log.info("stopping on %s", signal.Signals(number).name)
            scope.cancel()
            return


def _reload(depot: Depot, supervisor: Supervisor, reread: Callable[[], Settings]) -> None:
    supervisor.reloading()
    try:
        depot.reload(reread())
    except (IbpfsError, OSError) as error:
        log.error("the settings stay as they were: %s", error)
    else:
        log.info("settings read again")
    supervisor.ready(f"serves {depot.address}")
