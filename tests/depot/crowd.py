"""Many bad peers of a depot at once: `python crowd.py KIND HOST:PORT NUMBER`. Says "ready", goes on until its standard
input ends, then says how many of them the depot has sent away.

They come from several addresses of this machine, since one has not enough ports for very many.
"""

import resource
import select
import socket
import sys
from collections.abc import Callable

PER_ADDRESS = 2000
EVERY = 0.2  # seconds between two bytes of those who trickle
ANNOUNCED = 1 << 30


def connect(place: tuple[str, int], number: int) -> socket.socket:
    source = (f"127.0.{1 + number // PER_ADDRESS}.1", 0)
    return socket.create_connection(place, timeout=30, source_address=source)


def writing(sock: socket.socket, length: int) -> None:
    """Gets an allocation and begins to store."""
    sock.sendall(b"1 1 1 1 1 600 %d 60\n" % length)
    reply = sock.recv(1000).split()
    key = reply[2].split(b"/")[3]
    sock.sendall(b"1 2 %b 1 %d 3600\n" % (key, length))


def idle(sock: socket.socket, number: int) -> None:
    pass


def slow(sock: socket.socket, number: int) -> None:
    """Every second one trickles data, the others a line."""
    if number % 2:
        writing(sock, 100_000)
    else:
        sock.sendall(b"1 9 ")


def announced(sock: socket.socket, number: int) -> None:
    writing(sock, ANNOUNCED)


KINDS: dict[str, Callable[[socket.socket, int], None]] = {"idle": idle, "slow": slow, "announced": announced}


def trickle(socks: list[socket.socket]) -> list[socket.socket]:
    left = []
    for sock in socks:
        try:
            sock.send(b"1")
        except OSError:
            continue
        left.append(sock)
    return left


def sent_away(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def main() -> None:
    kind, address, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = address.rpartition(":")
    socks = [connect((host, int(port)), one) for one in range(number)]
    for at, sock in enumerate(socks):
        KINDS[kind](sock, at)
    print("ready", flush=True)
    trickling = list(socks)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        if kind == "slow":
            trickling = trickle(trickling)
    print(sum(map(sent_away, socks)), flush=True)


if __name__ == "__main__":
    main()
