"""A real source tree goes in and comes out, from the depot alone."""

from pathlib import Path

import pytest

from .running import run
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted


def test_source_tree_comes_back_from_the_depot(volume: Volume, source_tree: Path) -> None:
    tree = volume / "tree"
    tree.mkdir()
    run("tar", "-C", tree, "-xf", source_tree)
    run("diff", "-r", "--no-dereference", source_tree.parent / "tree", tree)
    volume.umount()
    volume.empty_cache()
    volume.mount()
    run("diff", "-r", "--no-dereference", source_tree.parent / "tree", tree)
    # Owner, modes and times, too.
    done = run("tar", "-C", tree, "--compare", "-f", source_tree)
    assert done.stdout == ""


def test_copy_of_a_copy_on_two_depots(volumes: MakeVolume, source_tree: Path) -> None:
    volume: Volume = volumes("--copies", "2", depots=2)
    email = source_tree.parent / "tree" / "email"
    run("cp", "-a", email, volume / "one")
    run("cp", "-a", volume / "one", volume / "two")
    volume.umount()
    volume.empty_cache()
    volume.depots[0].stop()
    volume.expect("depot")
    volume.mount()
    run("diff", "-r", email, volume / "two")


def test_plain_volume(volumes: MakeVolume, source_tree: Path) -> None:
    volume: Volume = volumes("--plain")
    email = source_tree.parent / "tree" / "email"
    run("cp", "-a", email, volume / "one")
    volume.remount(cold=True)
    run("diff", "-r", email, volume / "one")
    volume.umount()
    volume.fsck("--data", "-n")
