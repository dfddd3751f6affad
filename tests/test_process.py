import subprocess
import sys

_CYCLES = """
import gc, weakref
from ibpfs.process import calm_collector

class Node:
    pass

calm_collector()
assert gc.get_freeze_count() > 1000
first = Node()
first.itself = first
gone = weakref.ref(first)
del first
more = []
while gone() is not None:
    more.append([])
    assert len(more) < 100_000
"""


def test_a_calm_collector_still_finds_cycles_by_itself() -> None:
    subprocess.run([sys.executable, "-c", _CYCLES], check=True)
