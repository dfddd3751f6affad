"""A producer and a consumer on different machines, joined by a FIFO on a depot.

    python pipeline.py produce ibp://HOST:PORT PIPE FILE
    python pipeline.py consume PIPE FILE

The producer leases a FIFO of 64 KiB, writes both of its capabilities into the file PIPE, and sends FILE through it in
blocks. It is never more than the FIFO's size ahead: the depot lets it wait for room, and lets the consumer wait for
bytes. Neither knows the other's address, and neither must be reachable from outside. When it is through, the consumer
gives the FIFO back; if one of the two dies, the other gives up after PATIENCE, and the depot when the lease ends.
"""

import argparse
import struct
from pathlib import Path

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability, Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import AllocationKind

SIZE = 64 * 1024
BLOCK = 16 * 1024
#: Before every block; 0 says that there are no more.
LENGTH = struct.Struct(">I")
LEASE = 3600
#: Seconds that one waits for the other.
PATIENCE = 30


async def produce(address: str, pipe: Path, source: Path) -> None:
    async with DepotClient(Address.parse(address)) as depot:
        made = await depot.allocate(SIZE, LEASE, kind=AllocationKind.FIFO)
        pipe.touch(mode=0o600)  # capabilities are secrets
        pipe.write_text(f"{made.read.render()}\n{made.manage.render()}\n")
        with source.open("rb") as file:
            while block := file.read(BLOCK):
                await depot.put(made.write.wire_key, LENGTH.pack(len(block)) + block, wait=PATIENCE)
        await depot.put(made.write.wire_key, LENGTH.pack(0), wait=PATIENCE)
    print(f"sent {source.stat().st_size} bytes")


async def consume(pipe: Path, target: Path) -> None:
    read, manage = map(Capability.parse, pipe.read_text().split())
    async with DepotClient(Address.of(read)) as depot:
        with target.open("wb") as file:
            while length := LENGTH.unpack(await take_exactly(depot, read.wire_key, LENGTH.size))[0]:
                file.write(await take_exactly(depot, read.wire_key, length))
        await depot.decr(manage.wire_key)
    print(f"received {target.stat().st_size} bytes")


async def take_exactly(depot: DepotClient, read: Key, length: int) -> bytes:
    """A FIFO is a stream: it gives what there is."""
    found = b""
    while len(found) < length:
        more = await depot.take(read, length - len(found), wait=PATIENCE)
        if not more:
            raise SystemExit("the producer has gone silent")
        found += more
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True)
    producer = roles.add_parser("produce")
    producer.add_argument("depot")
    consumer = roles.add_parser("consume")
    for role in (producer, consumer):
        role.add_argument("pipe", type=Path)
        role.add_argument("file", type=Path)
    words = parser.parse_args()
    if words.role == "produce":
        trio.run(produce, words.depot, words.pipe, words.file)
    else:
        trio.run(consume, words.pipe, words.file)


if __name__ == "__main__":
    main()
