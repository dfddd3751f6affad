"""A wire to a depot that stops when so many bytes have come from it."""

import socket
import threading
from contextlib import suppress

from .test_secrets import Relay


class Gate(Relay):
    """What comes from the depot passes while `let` allows; None: all of it."""

    def __init__(self, host: str, port: int) -> None:
        self._allowed: int | None = None
        self._turned = threading.Condition()
        self._closed = False
        self._depot = (host, port)
        super().__init__(host, port)

    def let(self, count: int | None) -> None:
        """So many bytes more."""
        with self._turned:
            self._allowed = count
            self._turned.notify_all()

    @property
    def is_shut(self) -> bool:
        return self._allowed is not None and self._allowed <= 0

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            from_depot = source.getpeername() == self._depot
            while data := source.recv(1 << 16):
                self.heard += data
                if from_depot:
                    self._pass(len(data))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _pass(self, count: int) -> None:
        with self._turned:
            self._turned.wait_for(lambda: self._closed or not self.is_shut)
            if self._allowed is not None:
                self._allowed -= count

    def close(self) -> None:
        with self._turned:
            self._closed = True
            self._turned.notify_all()
        super().close()
