"""Policies of directories, and depots with labels, as a person sets them on a mounted volume."""

import json
import os

import pytest

from .running import run, until
from .volumes import MakeDepot, MakeVolume, Volume

pytestmark = pytest.mark.mounted


def copies_of(volume: Volume, name: str) -> list[set[str]]:
    """The depots of each segment of a file."""
    return [{replica["depot"] for replica in segment["replicas"]} for segment in volume.stat(name)["segments"]]


def labelled(volume: Volume, **sites: str) -> dict[str, str]:
    """Give the depots sites; return those by address."""
    found = {}
    for depot, site in zip(volume.depots, sites.values(), strict=True):
        run("ibpfs", "depots", "label", volume.root, depot.address, f"site={site}")
        found[depot.address] = site
    return found


def test_files_have_the_copies_of_the_directory_they_are_made_in(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "1", depots=3)
    (volume / "dear").mkdir()
    (volume / "dear" / "old").write_bytes(os.urandom(200_000))
    done = run("ibpfs", "policy", "set", volume / "dear", "copies=3", "min-copies=1")
    assert done.stdout == f"{volume / 'dear'}: 3 copies; 1 before fsync returns\n"
    (volume / "dear" / "new").write_bytes(os.urandom(200_000))
    (volume / "cheap").write_bytes(os.urandom(200_000))
    volume.flush()
    assert [len(depots) for depots in copies_of(volume, "dear/new")] == [3]
    assert [len(depots) for depots in copies_of(volume, "dear/old")] == [1]
    assert [len(depots) for depots in copies_of(volume, "cheap")] == [1]
    found = json.loads(run("ibpfs", "policy", "show", "--json", volume / "dear" / "new").stdout)
    assert (found["copies"], found["min_copies"], found["labels"]) == (3, 1, [])
    refused = run("ibpfs", "policy", "set", volume / "dear", "copies=4", code=2)
    assert "4 copies need as many depots; 3 take new bytes" in refused.stderr


def test_a_tree_takes_a_policy_with_all_that_is_stored_of_it(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=4)
    sites = labelled(volume, a="knoxville", b="knoxville", c="prague", d="prague")
    content = {f"tree/{number}": os.urandom(50_000 + number) for number in range(4)}
    (volume / "tree").mkdir()
    for name, data in content.items():
        (volume / name).write_bytes(data)
    (volume / "aside").write_bytes(b"stays" * 1000)
    volume.flush()
    for wanted in ({"copies": "2", "labels": "site"}, {"copies": "4"}, {"copies": "1"}, {"copies": "2"}):
        words = [f"{key}={value}" for key, value in wanted.items()]
        run("ibpfs", "policy", "set", "--recursive", volume / "tree", *words)
        for name in content:
            for depots in copies_of(volume, name):
                assert len(depots) == int(wanted["copies"])
                assert len({sites[depot] for depot in depots}) == min(2, len(depots))
    assert [len(depots) for depots in copies_of(volume, "aside")] == [2]
    volume.drop_cache()
    assert {name: (volume / name).read_bytes() for name in content} == content
    until(lambda: volume.status()["under_replicated_bytes"] == 0, 60)
    volume.umount()
    assert "clean" in volume.fsck("--data", "-n").stdout


def test_copies_lie_at_different_sites_when_written_repaired_and_drained(
    depots: MakeDepot, volumes: MakeVolume
) -> None:
    volume = volumes("--copies", "2", depots=3)
    sites = labelled(volume, a="knoxville", b="knoxville", c="prague")
    fourth = depots()
    run("ibpfs", "depots", "add", volume.root, fourth.address, "--label", "site=prague")
    sites[fourth.address] = "prague"
    assert "site=prague" in run("ibpfs", "depots", volume.root).stdout
    run("ibpfs", "policy", "set", volume.mountpoint, "labels=site")
    for number in range(3):
        (volume / f"{number}").write_bytes(os.urandom(100_000))
        volume.flush()
    for leaving in (volume.depots[2], volume.depots[0]):
        run("ibpfs", "depots", "drain", volume.root, leaving.address)
        for number in range(3):
            for holding in copies_of(volume, f"{number}"):
                assert leaving.address not in holding
                assert {sites[depot] for depot in holding} == {"knoxville", "prague"}
