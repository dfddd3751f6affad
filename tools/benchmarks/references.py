"""What the same disk and the same loopback give to a program that does nothing else, measured in the same round."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
_BLOCK = 4 * MIB


def source_file(directory: Path, pieces: int) -> Path:
    """`pieces` times 4 MiB that no disk can make smaller."""
    path = directory / "source"
    with path.open("wb") as file:
        for _ in range(pieces):
            file.write(os.urandom(_BLOCK))
    return path


def dd_with_fsync(directory: Path, source: Path, pieces: int) -> float:
    """MB/s of `pieces` times 4 MiB into a new file."""
    to = directory / "dd"
    start = time.perf_counter()
    _dd(source, to, pieces)
    seconds = time.perf_counter() - start
    to.unlink()
    return pieces * _BLOCK / 1e6 / seconds


def _dd(source: Path, to: Path, pieces: int) -> None:
    command = ["dd", f"if={source}", f"of={to}", "bs=4M", f"count={pieces}", "conv=fsync", "status=none"]
    subprocess.run(command, check=True)


def appends_with_fdatasync(directory: Path, count: int) -> float:
    """4 KiB appended and synced, one after another, per second."""
    path = directory / "appends"
    data = os.urandom(4096)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        start = time.perf_counter()
        for _ in range(count):
            os.write(fd, data)
            os.fdatasync(fd)
        return count / (time.perf_counter() - start)
    finally:
        os.close(fd)
        path.unlink()


def sendfile_over_loopback(source: Path, pieces: int) -> float:
    """MB/s of `pieces` times 4 MiB from the page cache to a process that throws them away."""
    with sending(source, pieces) as port:
        return receive(port, pieces)


@contextmanager
def sending(source: Path, pieces: int) -> Iterator[int]:
    """A process that sends so much to who connects to this port of loopback."""
    sender = subprocess.Popen(
        [sys.executable, __file__, str(source), str(pieces)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert sender.stdout is not None
        yield int(re.fullmatch(r"(\d+)\n", sender.stdout.readline())[1])  # type: ignore[index]
    finally:
        sender.communicate()


def receive(port: int, pieces: int) -> float:
    """MB/s, from when the first bytes are here."""
    scratch = memoryview(bytearray(MIB))
    with socket.create_connection(("127.0.0.1", port)) as sock:
        length = pieces * _BLOCK - sock.recv_into(scratch)
        start = time.perf_counter()
        left = length
        while left:
            left -= sock.recv_into(scratch) or left
        return length / 1e6 / (time.perf_counter() - start)


def _send(source: str, pieces: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    with sock, Path(source).open("rb") as file:
        for piece in range(pieces):
            left = _BLOCK
            while left:
                left -= os.sendfile(sock.fileno(), file.fileno(), (piece + 1) * _BLOCK - left, left)


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]))
