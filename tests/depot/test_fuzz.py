"""Mutated recordings and events against the codec: replies, events or a close, and bounded memory.

`IBPFS_INPUTS` and `IBPFS_SEED` make a longer run, or the same one again.
"""

import os
import resource
from collections.abc import Callable

import pytest

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
