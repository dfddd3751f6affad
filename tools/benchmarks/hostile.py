"""Clients that mean a depot no good: many that only stay, some that speak one byte at a time."""

import resource
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_RESET = struct.pack("ii", 1, 0)  # closing leaves no port in TIME_WAIT
_HOSTS = 200  # loopback addresses that they come from
_PAUSE = 1.0


@contextmanager
def besieged(place: tuple[str, int], idle: int, slow: int) -> Iterator[None]:
    """While it lasts, `idle` connections say nothing and `slow` ones a byte of a command per second."""
    allow_descriptors()
    with ExitStack() as stack:
        for number in range(idle):
            stack.enter_context(_connected(place, number))
        crawling = [stack.enter_context(_connected(place, number)) for number in range(slow)]
        stop = threading.Event()
        thread = threading.Thread(target=_crawl, args=(crawling, stop))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield


def allow_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _connected(place: tuple[str, int], number: int) -> socket.socket:
    sock = socket.create_connection(place, timeout=60, source_address=(f"127.0.1.{1 + number % _HOSTS}", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return sock


def _crawl(sockets: list[socket.socket], stop: threading.Event) -> None:
    while True:
        for sock in sockets:
            if stop.wait(_PAUSE / len(sockets)):
                return
            try:
                sock.send(b"1")
            except OSError:  # sent away
                continue
