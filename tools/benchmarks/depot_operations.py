"""What a depot is asked to do while it is timed, over some connections, pipelined or not."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from ibpfs_tools.benchmarks.bare_client import BareClient, timed_together

Place = tuple[str, int]
KIB, MIB = 1 << 10, 1 << 20
_DONE = len(b"1 \n")


@dataclass(frozen=True, slots=True)
class Load:
    """How much is done: `small` commands or pieces of 4 KiB and `large` pieces of 4 MiB, over all connections."""

    small: int
    large: int


@dataclass(frozen=True, slots=True)
class Manner:
    """`window` 1 = each command waits for the reply to the one before it."""

    connections: int
    pipelined: bool

    def row(self, operation: str) -> str:
        plural = "s" if self.connections > 1 else ""
        return f"{operation}, {self.connections} connection{plural}{', pipelined' if self.pipelined else ''}"

    def window(self, bytes_each: int = 0) -> int:
        """Commands sent at once; not more than a socket's buffers hold while nobody reads."""
        if not self.pipelined:
            return 1
        return 1 if bytes_each >= MIB else 64


@dataclass(frozen=True, slots=True)
class Keys:
    read: str
    write: str
    manage: str


Result = tuple[str, float, str]  # operation, value, unit


def run(place: Place, load: Load, manner: Manner) -> Iterator[Result]:
    """All operations once."""
    with ExitStack() as stack:
        clients = [stack.enter_context(BareClient(place)) for _ in range(manner.connections)]
        yield from _leases(clients, max(1, load.small // len(clients)), manner)
        yield from _pieces(clients, max(1, load.small // len(clients)), 4 * KIB, manner)
        yield from _pieces(clients, max(1, load.large // len(clients)), 4 * MIB, manner)


def _leases(clients: Sequence[BareClient], count: int, manner: Manner) -> Iterator[Result]:
    window, total = manner.window(), count * len(clients)
    replies = [bytearray() for _ in clients]
    seconds = timed_together([
        partial(_allocate, client, count, MIB, window, kept) for client, kept in zip(clients, replies, strict=True)
    ])  # fmt: skip
    yield "allocate", total / seconds, "/s"
    keys = [_keys(kept) for kept in replies]
    yield "renew", total / _each(clients, keys, _renew, window), "/s"
    yield "remove", total / _each(clients, keys, _remove, window), "/s"


def _each(
    clients: Sequence[BareClient], keys: Sequence[Sequence[Keys]], command: Callable[[Keys], bytes], window: int
) -> float:
    tasks = [
        partial(client.exchange, [command(one) for one in mine], _DONE, window)
        for client, mine in zip(clients, keys, strict=True)
    ]
    return timed_together(tasks)


def _allocate(client: BareClient, count: int, size: int, window: int, kept: bytearray) -> None:
    line = b"1 1 0 2 1 3600 %d 0\n" % size  # stable byte arrays
    kept += client.ask(line)
    client.exchange([line] * (count - 1), len(kept), window, keep=kept)


def _keys(replies: bytearray) -> list[Keys]:
    lines = replies.decode().splitlines()
    return [Keys(*(capability.split("/")[3] for capability in line.split()[1:])) for line in lines]


def _renew(keys: Keys) -> bytes:
    return f"1 9 {keys.manage} 1 43 3 {MIB} 7200 -1 0\n".encode()


def _remove(keys: Keys) -> bytes:
    return f"1 9 {keys.manage} 1 42 1 0\n".encode()


def _pieces(clients: Sequence[BareClient], count: int, length: int, manner: Manner) -> Iterator[Result]:
    """Small ones go behind one another into one allocation per connection, large ones each into their own."""
    own = length >= MIB
    window, total = manner.window(length), count * len(clients)
    keys = []
    for client in clients:
        kept = bytearray()
        _allocate(client, count if own else 1, length * (1 if own else count), 1, kept)
        keys.append(_keys(kept))
    data = secrets.token_bytes(length)
    stores = [[_store(mine[at if own else 0], data) for at in range(count)] for mine in keys]
    seconds = _together(clients, stores, _DONE + _line_bytes(length), window)
    yield f"store {_size(length)}", *_rate(total, length, seconds)
    loads = [[_load(mine[at if own else 0], 0 if own else at * length, length) for at in range(count)] for mine in keys]
    seconds = _together(clients, loads, _line_bytes(length) + length, window)
    yield f"load {_size(length)}", *_rate(total, length, seconds)
    _each(clients, keys, _remove, 1)


def _together(clients: Sequence[BareClient], requests: Sequence[Sequence[bytes]], reply: int, window: int) -> float:
    pairs = zip(clients, requests, strict=True)
    return timed_together([partial(client.exchange, mine, reply, window) for client, mine in pairs])


def _line_bytes(length: int) -> int:
    return len(f"1 {length} \n")


def _store(keys: Keys, data: bytes) -> bytes:
    return b"1 2 %s 1 %d 0\n%b" % (keys.write.encode(), len(data), data)


def _load(keys: Keys, offset: int, length: int) -> bytes:
    return f"1 8 {keys.read} 1 {offset} {length} 0\n".encode()


def _size(length: int) -> str:
    return f"{length // MIB} MiB" if length >= MIB else f"{length // KIB} KiB"


def _rate(total: int, length: int, seconds: float) -> tuple[float, str]:
    return (total * length / 1e6 / seconds, "MB/s") if length >= MIB else (total / seconds, "/s")
