"""Mutated recordings and events against the codec and a depot: replies, events or a close, and bounded memory.

`IBPFS_INPUTS` and `IBPFS_SEED` make a longer run, or the same one again.
"""

import os
import random
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.depot.server.reach import Places, Reach

from . import fuzzing

INPUTS = int(os.environ.get("IBPFS_INPUTS", "6000"))
SEED = int(os.environ.get("IBPFS_SEED", "20261120"))
MORE_MEMORY = 64 << 20


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("target", [fuzzing.to_server, fuzzing.to_client, fuzzing.round_trip])
def test_codec(target: Callable[[fuzzing.Inputs], None]) -> None:
    inputs = fuzzing.Inputs(SEED)
    before = peak_memory()
    done = 0
    try:
        while done < INPUTS // 3:
            target(inputs)
            done += 1
    finally:
        print(f"seed {SEED}: {done} inputs {target.__name__}, peak memory {peak_memory() >> 20} MiB")
    assert peak_memory() - before < MORE_MEMORY


class Nowhere(trio.abc.HostnameResolver):
    """No name of an input is asked for outside."""

    async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "not here")

    async def getnameinfo(self, *_: Any) -> Any:
        raise AssertionError("nobody asks")


KINDS = ("1 1 1 {} 1 600 5000 1", "1 1 1 {} 2 600 5000 1", "1 1 1 {} 3 600 5000 1", "1 1 1 {} 4 600 5000 1",
         "1 29 1 64 1 {} 1 600 5000 1")  # fmt: skip


def living_keys(client: Any, dice: random.Random) -> list[bytes]:
    """Of new allocations of every kind."""
    keys = []
    for line in KINDS:
        reply = client.ask(line.format(dice.choice((1, 1, 1, 2))))
        assert reply.startswith(b"1 ibp://")
        keys += [capability.split(b"/")[3] for capability in reply.split()[1:]]
        client.store(keys[-2].decode(), dice.randbytes(dice.randrange(1, 2000)))
    return keys


def test_depot(in_process: Callable[..., Any], tmp_path: Path) -> None:
    everywhere = tuple(map(Places.parse, ("0.0.0.0/0", "::/0")))
    depot = in_process(longest_timeout=0.01, idle_timeout=5, reach=Reach(copy_denied=everywhere, raw_denied=everywhere))
    depot.call(lambda _: trio.socket.set_custom_hostname_resolver(Nowhere()))
    inputs = fuzzing.Inputs(SEED)
    client = depot.connect()
    inputs.keys = living_keys(client, inputs.dice)
    before, done = peak_memory(), 0
    try:
        while done < INPUTS // 5:
            fuzzing.to_depot(inputs, depot.connect)
            done += 1
            if done % 100 == 0:  # the old ones have been deleted, filled or renamed; all leases end
                depot.clock.now += 1e6
                inputs.keys = living_keys(client, inputs.dice)
    finally:
        print(f"seed {SEED}: {done} inputs to_depot, peak memory {peak_memory() >> 20} MiB")
    assert depot.call(lambda depot: depot._shared.counters.failed_sessions) == 0
    assert peak_memory() - before < MORE_MEMORY
    client.close()
