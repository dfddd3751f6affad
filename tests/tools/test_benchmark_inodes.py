"""The benchmark of many inodes: that it makes what it says."""

import time
from pathlib import Path

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.database import Database
from ibpfs_tools.benchmarks import inodes
from ibpfs_tools.benchmarks.measures import Measures


def test_a_volume_of_many_files(tmp_path: Path) -> None:
    paths, began = VolumePaths(tmp_path / "volume"), time.time_ns()
    inodes.fill(paths, 2500)
    with Database(paths.store) as db:
        assert db.files == 2500 + 3 + 1
        assert db.value("SELECT count(*) FROM dentries WHERE parent != 1") == 2500
        assert db.value("SELECT min(birth_ns) FROM inodes") >= began


def test_what_is_told_of_a_bound() -> None:
    measures = Measures()
    measures.begin_round()
    measures.add("mount @ 10 inodes", 1.5, "s")
    assert inodes._verdict(measures, 2.0, "mount @ 10 inodes").startswith("met ")
    assert inodes._verdict(measures, 1.0, "mount @ 10 inodes").startswith("MISSED ")
    assert inodes._table(measures, (10,)).splitlines()[1].split() == ["mount", "s", "1.50"]
