"""Depots that are killed and lose all they had: what has other copies is read, and made up again.

IBPFS_CAT_MIB sets how long the file is of which the serving depot is killed (32).
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mounted.running import run, until
from tests.mounted.volumes import Depot, MakeVolume, Volume

pytestmark = pytest.mark.faults

#: Bytes of the real tree that the test takes.
_TREE = 24 * 1024 * 1024
SIZE = int(os.environ.get("IBPFS_CAT_MIB", "32")) * 1024 * 1024


def part_of(tree: Path) -> dict[str, Path]:
    """Files of a real tree, by a name of their own, up to a size."""
    found: dict[str, Path] = {}
    size = 0
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink() and size < _TREE:
            found[str(path.relative_to(tree))] = path
            size += path.stat().st_size
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lose(depot: Depot) -> None:
    depot.kill()
    shutil.rmtree(depot.store / "allocations")  # it keeps its address and its certificate


def answering(volume: Volume) -> int:
    found = json.loads(run("ibpfs", "depots", "--json", volume.root).stdout)
    return sum(depot["state"] != "failed" and not depot["trouble"] for depot in found)


def read_all(volume: Volume, digests: dict[str, str]) -> None:
    """Every byte from a depot; an error seen by the reader fails the test."""
    assert {name: digest(volume / name) for name in digests} == digests


def test_three_copies_outlive_two_depots_and_then_the_other_two(volumes: MakeVolume, source_tree: Path) -> None:
    volume = volumes("--copies", "3", depots=4)
    volume.expect("does not answer|append refused|allocation|wait in the spool|not released|segment")
    files = part_of(source_tree.parent / "tree")
    for name, path in files.items():
        (volume / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, volume / name)
    digests = {name: digest(path) for name, path in files.items()}
    volume.flush()
    assert volume.status()["under_replicated_bytes"] == 0
    volume.drop_cache()

    first, second = volume.depots[:2], volume.depots[2:]
    for depot in first:
        lose(depot)
    read_all(volume, digests)

    for depot in first:
        before = depot.address
        depot.start()  # empty
        assert depot.address == before
    until(lambda: answering(volume) == 4, 20, "four depots that answer")
    done = json.loads(run("ibpfs", "repair", "--json", volume.root, timeout=300).stdout)
    assert (done["under_replicated_bytes"], done["at_risk_bytes"]) == (0, 0)
    assert done["repaired_bytes"] > 0
    for depot in second:
        lose(depot)
    volume.drop_cache(code=0)
    read_all(volume, digests)


def test_the_serving_depot_is_killed_in_the_middle_of_a_cat(volumes: MakeVolume) -> None:
    """Whichever of the two serves: both have their turn."""
    volume = volumes("--copies", "2", depots=2)
    volume.expect("does not answer|segment|wait in the spool")
    data = os.urandom(SIZE)
    (volume / "file").write_bytes(data)
    volume.flush()
    for depot in volume.depots:
        volume.drop_cache()
        with subprocess.Popen(["cat", volume / "file"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            assert cat.stderr is not None
            found = cat.stdout.read(SIZE // 8)
            depot.kill()
            found += cat.stdout.read()
            assert cat.stderr.read() == b""
        assert cat.returncode == 0
        assert found == data
        depot.start()
        until(lambda: answering(volume) == 2, 20, "both depots")
    status = volume.status()
    print(f"{status['reads']} reads, {status['hedged_reads']} hedged")
    assert status["reads"] > 0
    assert status["hedged_reads"] <= 0.05 * status["reads"]
