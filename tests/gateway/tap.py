"""A wire that keeps what passes: TCP from a port of its own to another, in both directions."""

import contextlib
import socket
import threading


class Tap:
    """Listens while in the block. `heard`: all bytes of all connections."""

    def __init__(self, host: str, port: int) -> None:
        self._there = host, port
        self._pieces: list[bytes] = []
        self._lines: list[socket.socket] = []

    @property
    def heard(self) -> bytes:
        return b"".join(self._pieces)

    def __enter__(self) -> "Tap":
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._take, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for line in (self._door, *self._lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(self._there)
                self._lines += near, far
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._pieces.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
