"""Where a depot can be reached: its listening sockets, and the port that it keeps from one start to the next."""

import os
import random
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ibpfs.depot.capability import BadCapability, parse_place, render_place
from ibpfs.depot.server.syncing import sync_directory
from ibpfs.errors import IbpfsError

BACKLOG = 1024
ADDRESS_FILE = "address"
_SUN_PATH = 107  # bytes that fit into a Unix address
#: For a first start. Above lie the ports that systems give to outgoing connections: one of those may have taken ours
#: at the next start, and links and exported exNodes name the port.
_QUIET_PORTS = range(20_000, 32_768)
_TRIES = 20


class CannotListen(IbpfsError):
    """An address is taken, not ours, or not allowed."""


@dataclass(frozen=True, slots=True)
class Listener:
    """`place` is None on a Unix socket, and `name` its path, device and inode where it was made here."""

    sock: socket.socket
    place: tuple[str, int] | None
    name: tuple[Path, int, int] | None = None

    @property
    def is_wildcard(self) -> bool:
        return self.place is not None and self.place[0] in ("0.0.0.0", "::", "")

    def close(self) -> None:
        """The name goes, too, unless it is another socket's: where this store was deleted, a new one may lie by now."""
        if self.name is not None:
            path = self.name[0]
            with suppress(OSError):
                if _named(path) == self.name:
                    path.unlink()
        self.sock.close()


def listen_tcp(host: str, port: int, store: Path | None = None) -> Listener:
    """Port 0: with a store the port of its last start if that is free, else a quiet one, which is recorded there;
    without one a port of the system's choice."""
    if port or store is None:
        return _bind_tcp(host, port)
    recorded = _recorded_port(store)
    for wanted in (*((recorded,) if recorded else ()), *random.sample(_QUIET_PORTS, _TRIES)):
        try:
            listener = _bind_tcp(host, wanted)
            break
        except CannotListen:
            continue
    else:
        listener = _bind_tcp(host, 0)
    _record(store, listener)
    return listener


def _bind_tcp(host: str, port: int) -> Listener:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(f"cannot listen on {render_place(host, port)}: {_reason(error)}") from None
    return Listener(sock, (host, sock.getsockname()[1]))


def _reason(error: OSError) -> str:
    # create_server repeats the address in its text; a failed look-up of a name has numbers of its own.
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or error)
    return os.strerror(error.errno)


def listen_unix(path: Path) -> Listener:
    """Replaces a socket that an earlier depot left; the caller holds the store's lock, so nobody listens on it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        _bind_unix(sock, path)
        sock.listen(BACKLOG)
        return Listener(sock, None, _named(path))
    except OSError as error:
        sock.close()
        raise CannotListen(f"cannot listen on {path}: {_reason(error)}") from None


def _named(path: Path) -> tuple[Path, int, int]:
    found = path.lstat()
    return path, found.st_dev, found.st_ino


def _bind_unix(sock: socket.socket, path: Path) -> None:
    mask = os.umask(0o177)
    try:
        if len(os.fsencode(path)) <= _SUN_PATH:
            sock.bind(str(path))
            return
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    finally:
        os.umask(mask)


def inherit(descriptor: int) -> Listener:
    """A socket that the service manager listens on."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise CannotListen(f"descriptor {descriptor} was passed on, and is no socket: {_reason(error)}") from None
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listening:
        sock.close()
        raise CannotListen(f"descriptor {descriptor} was passed on, and is no listening stream socket")
    if sock.family == socket.AF_UNIX:
        return Listener(sock, None)
    host, port = sock.getsockname()[:2]
    return Listener(sock, (host, port))


def _recorded_port(store: Path) -> int:
    try:
        text = (store / ADDRESS_FILE).read_text().strip()
        return parse_place(text.removeprefix("ibp://"))[1]
    except (OSError, ValueError, BadCapability):
        return 0


def _record(store: Path, listener: Listener) -> None:
    assert listener.place is not None
    temporary = store / f"{ADDRESS_FILE}.new"
    with temporary.open("w") as file:
        file.write(f"ibp://{render_place(*listener.place)}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(store / ADDRESS_FILE)
    sync_directory(store)  # after a power cut, too, volumes look for it where it was
