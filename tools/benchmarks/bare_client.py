"""A client of a depot as thin as Python allows: lines made beforehand, replies counted by their bytes."""

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

SILENCE_LIMIT = 60.0
_SCRATCH = 1 << 20


class WrongReply(Exception):
    """The depot refused, or said something else than was expected."""


class BareClient:
    """One connection. All replies of one kind have the same length, known beforehand."""

    def __init__(self, place: tuple[str, int]) -> None:
        self._sock = socket.create_connection(place)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.settimeout(SILENCE_LIMIT)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._scratch = memoryview(bytearray(_SCRATCH))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, line: bytes) -> bytes:
        """One command, one line back."""
        self._sock.sendall(line)
        reply = b""
        while not reply.endswith(b"\n"):
            reply += self._receive(1 << 16)
        return _accepted(reply)

    def exchange(
        self, requests: Sequence[bytes], reply_bytes: int, window: int, *, keep: bytearray | None = None
    ) -> None:
        """All requests; with a `window` above 1 up to twice as many are under way at once. `keep` gets the replies."""
        batches = [requests[at : at + window] for at in range(0, len(requests), window)]
        ahead = 0 if window == 1 else 1
        for batch in batches[:ahead]:
            self._sock.sendall(b"".join(batch))
        for at, batch in enumerate(batches):
            if at + ahead < len(batches):
                self._sock.sendall(b"".join(batches[at + ahead]))
            self._take(reply_bytes * len(batch), keep)
        self._require_silence()

    def _take(self, count: int, keep: bytearray | None) -> None:
        first = True
        while count:
            received = self._sock.recv_into(self._scratch[: min(count, _SCRATCH)])
            if not received or (first and self._scratch[0] != ord("1")):
                raise WrongReply(bytes(self._scratch[: min(received, 80)]).decode("ascii", "replace"))
            if keep is not None:
                keep += self._scratch[:received]
            first = False
            count -= received

    def _require_silence(self) -> None:
        """Among many replies a refusal, which has another length, shows in what is left at the end."""
        if self._poll.poll(0):
            raise WrongReply(self._receive(80).decode("ascii", "replace"))

    def _receive(self, limit: int) -> bytes:
        if received := self._sock.recv(limit):
            return received
        raise WrongReply("the connection was closed")


def _accepted(reply: bytes) -> bytes:
    if not reply.startswith(b"1 "):
        raise WrongReply(reply[:80].decode("ascii", "replace"))
    return reply


def timed_together(tasks: Sequence[Callable[[], object]]) -> float:
    """Seconds from when all may start until the last is done, each in a thread of its own."""
    if len(tasks) == 1:
        start = time.perf_counter()
        tasks[0]()
        return time.perf_counter() - start
    barrier = threading.Barrier(len(tasks) + 1)
    failures: list[BaseException] = []

    def work(task: Callable[[], object]) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as error:  # told to who waits for us
            failures.append(error)

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    return seconds
