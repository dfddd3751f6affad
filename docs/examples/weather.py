"""A sensor and a forecaster that never wait for each other: measurements in a circular queue on a depot.

    python weather.py sensor ibp://HOST:PORT QUEUE [--count N] [--every SECONDS]
    python weather.py forecast QUEUE [--wait SECONDS]

The sensor leases a circular queue that holds the last KEPT measurements, and writes the capability to read it into the
file QUEUE. It appends one measurement (the load of its machine) at a time: when the queue is full the oldest ones are
pushed off, so the sensor never waits, whether anybody reads or not. The forecaster needs QUEUE and nothing else; it may
run anywhere, come late, and be away for a while: it then finds the newest KEPT measurements and knows how many it
missed. Each measurement is taken by one reader. When nothing new comes for --wait seconds it tells its forecast.
"""

import argparse
import os
import struct
import time
from pathlib import Path

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import AllocationKind

#: Number, Unix time, value. The queue's size is a multiple of it, so that whole measurements are pushed off.
MEASUREMENT = struct.Struct(">Qdd")
KEPT = 100
LEASE = 3600
#: How much a new measurement counts in the forecast.
WEIGHT = 0.3


async def sense(address: str, queue: Path, count: int, every: float) -> None:
    async with DepotClient(Address.parse(address)) as depot:
        made = await depot.allocate(KEPT * MEASUREMENT.size, LEASE, kind=AllocationKind.CIRCULAR_QUEUE)
        queue.touch(mode=0o600)  # a capability is a secret
        queue.write_text(made.read.render())
        for number in range(count):
            measured = MEASUREMENT.pack(number, time.time(), os.getloadavg()[0])
            await depot.put(made.write.wire_key, measured)
            await trio.sleep(every)


async def forecast(queue: Path, wait: int) -> None:
    read = Capability.parse(queue.read_text())
    expected = missed = seen = 0
    smoothed = None
    async with DepotClient(Address.of(read)) as depot:
        while data := await depot.take(read.wire_key, KEPT * MEASUREMENT.size, wait=wait):
            for number, _, value in MEASUREMENT.iter_unpack(data):
                missed += number - expected
                expected, seen = number + 1, seen + 1
                smoothed = value if smoothed is None else smoothed + WEIGHT * (value - smoothed)
    if smoothed is None:
        print("no measurements")
    else:
        print(f"load {smoothed:.2f} is to be expected, from {seen} measurements up to number {expected - 1};",
              f"{missed} missed")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True)
    sensor = roles.add_parser("sensor")
    sensor.add_argument("depot")
    sensor.add_argument("queue", type=Path)
    sensor.add_argument("--count", type=int, default=1000)
    sensor.add_argument("--every", type=float, default=1.0)
    reader = roles.add_parser("forecast")
    reader.add_argument("queue", type=Path)
    reader.add_argument("--wait", type=int, default=2)
    words = parser.parse_args()
    if words.role == "sensor":
        trio.run(sense, words.depot, words.queue, words.count, words.every)
    else:
        trio.run(forecast, words.queue, words.wait)


if __name__ == "__main__":
    main()
