"""A depot in numbers, as Prometheus reads them: one page over HTTP."""

import logging
import socket
from collections.abc import Callable, Iterator

import trio
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ibpfs.depot.server.counters import SYNC_CLASSES, Counters, Durations
from ibpfs.depot.server.resources import Resources

log = logging.getLogger(__name__)

_LONGEST_REQUEST = 8192
_PATIENCE = 10.0
_AT_ONCE = 16

#: Of each resource: name, help, how it is read.
_GAUGES = (
    ("capacity_bytes", "What may be allocated", lambda s: s.capacity),
    ("allocated_bytes", "What is allocated", lambda s: s.table.allocated),
    ("volatile_bytes", "What is allocated and may be revoked", lambda s: s.table.allocated - s.table.stable_allocated),
    ("stored_bytes", "What allocations hold", lambda s: s.table.stored),
    ("free_bytes", "What can still be allocated", lambda s: s.free()),
    ("allocations", "Allocations there are", lambda s: len(s.table)),
)
_COUNTERS = (
    ("allocated", "Allocations made", lambda s: s.allocated_ever),
    ("leases_ended", "Allocations deleted after their lease and grace time", lambda s: s.ended),
    ("revocations", "Volatile allocations revoked", lambda s: s.revoked),
)


class DepotCollector(Collector):
    """Reads the numbers when it is asked; it keeps none."""

    def __init__(self, resources: Resources, counters: Counters, syncs: Durations) -> None:
        self._resources, self._counters, self._syncs = resources, counters, syncs

    def describe(self) -> list[Metric]:
        return []  # what there is needs a depot that runs

    def collect(self) -> Iterator[Metric]:
        yield from self._of_resources()
        yield from self._of_connections()
        yield self._of_syncs()
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield GaugeMetricFamily("ibpfs_depot_tasks", "Tasks there are", tasks)

    def _of_resources(self) -> Iterator[Metric]:
        for kind, metrics in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, text, read in metrics:
                family = kind(f"ibpfs_depot_{name}", text, labels=["resource"])
                for store in self._resources:
                    family.add_metric([store.rid], read(store))
                yield family

    def _of_connections(self) -> Iterator[Metric]:
        counters = self._counters
        yield GaugeMetricFamily("ibpfs_depot_connections", "Connections that are open", counters.connections)
        yield CounterMetricFamily("ibpfs_depot_accepted", "Connections let in", counters.accepted)
        for name, text, by_reason in (
            ("refused", "Connections not let in", counters.refused),
            ("dismissed", "Connections that the depot ended", counters.dismissed),
        ):
            family = CounterMetricFamily(f"ibpfs_depot_{name}", text, labels=["reason"])
            for reason, count in by_reason.items():
                family.add_metric([reason], count)
            yield family
        yield CounterMetricFamily("ibpfs_depot_failed_sessions", "Defects of the depot", counters.failed_sessions)
        yield CounterMetricFamily("ibpfs_depot_received_bytes", "From all peers", counters.traffic.received)
        yield CounterMetricFamily("ibpfs_depot_sent_bytes", "To all peers", counters.traffic.sent)
        commands = CounterMetricFamily("ibpfs_depot_commands", "Commands answered", labels=["command", "result"])
        for labels, count in counters.commands.items():
            commands.add_metric(labels, count)
        yield commands

    def _of_syncs(self) -> Metric:
        classes, below = [], 0
        for end, count in zip((*map(str, SYNC_CLASSES), "+Inf"), self._syncs.classes, strict=True):
            below += count
            classes.append((end, below))
        name, text = "ibpfs_depot_sync_seconds", "Waiting for stable storage, once per batch of replies"
        return HistogramMetricFamily(name, text, buckets=classes, sum_value=self._syncs.total)


def page_of(resources: Resources, counters: Counters, syncs: Durations) -> Callable[[], bytes]:
    registry = CollectorRegistry()
    registry.register(DepotCollector(resources, counters, syncs))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return lambda: generate_latest(registry)


async def serve(page: Callable[[], bytes], listener: socket.socket) -> None:
    """Until cancelled."""
    sock = trio.socket.from_stdlib_socket(listener)
    places = trio.Semaphore(_AT_ONCE)

    async def answer(accepted: trio.socket.SocketType) -> None:
        with accepted, trio.move_on_after(_PATIENCE):
            try:
                await _answer(accepted, page)
            except OSError as error:
                log.debug("a question for metrics failed: %s", error)
        places.release()

    async with trio.open_nursery() as nursery:
        while True:
            await places.acquire()
            try:
                accepted, _ = await sock.accept()
            except OSError as error:  # it went away, or we are out of descriptors
                log.debug("cannot accept a question for metrics: %s", error)
                places.release()
                await trio.sleep(0.1)
                continue
            nursery.start_soon(answer, accepted)


async def _answer(sock: trio.socket.SocketType, page: Callable[[], bytes]) -> None:
    request = b""
    while b"\r\n\r\n" not in request and b"\n\n" not in request:
        piece = await sock.recv(_LONGEST_REQUEST)
        request += piece
        if not piece or len(request) > _LONGEST_REQUEST:
            return
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD") or path not in (b"/", b"/metrics"):
        await _send(sock, b"404 Not Found", b"text/plain", b"only GET /metrics\n")
        return
    body = page()
    await _send(sock, b"200 OK", CONTENT_TYPE_PLAIN_0_0_4.encode(), body, head=method == b"HEAD")


async def _send(
    sock: trio.socket.SocketType, status: bytes, kind: bytes, body: bytes, *, head: bool = False
) -> None:
    lines = (
        b"HTTP/1.1 " + status, b"Content-Type: " + kind, b"Content-Length: %d" % len(body), b"Connection: close", b"",
    )  # fmt: skip
    data = memoryview(b"\r\n".join((*lines, b"" if head else body)))
    while data:
        data = data[await sock.send(data) :]
