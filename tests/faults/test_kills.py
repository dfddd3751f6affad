"""kill -9 of the mount, and of the depot, under load: what was promised is there, and nothing is sealed twice.

IBPFS_KILLS sets the number of kills (10), IBPFS_SEED the seed (fresh, printed).
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.running import BIN, kill_and_wait, until
from tests.mounted.volumes import Session, Volume

from .promises import Promises, Sealed

pytestmark = pytest.mark.faults

_FRESH = 20
KILLS = int(os.environ.get("IBPFS_KILLS", "10"))
SEED = int(os.environ.get("IBPFS_SEED", str(random.SystemRandom().randrange(1 << 32))))


@pytest.fixture
def promises(session: Session, source_tree: Path) -> Iterator[Promises]:
    with session.scratch() as path:
        yield Promises(path / "journal", source_tree.parent / "tree")


def one_kill(volume: Volume, place: Path, promises: Promises, sealed: Sealed, dice: random.Random) -> None:
    started = [promises.start(place, dice.randrange(1 << 30))]
    try:
        if dice.random() < 0.4:
            started.append(compacting(volume))
        time.sleep(dice.uniform(0.2, 2.0))
        volume.kill()
    finally:
        for process in started:
            ended(process)
    sealed.look(volume)
    if dice.random() < 0.3:  # and once more in the middle of the replay
        volume.mount()
        time.sleep(dice.uniform(0.0, 0.3))
        volume.kill()
        sealed.look(volume)
    volume.mount()


def compacting(volume: Volume) -> subprocess.Popen[bytes]:
    words = [BIN / "ibpfs", "compact", volume.mountpoint]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ended(load: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Wait for what works on a mount that is gone."""
    try:
        load.wait(seconds)
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()


def test_kills_of_the_mount_lose_nothing_that_was_promised(volume: Volume, promises: Promises) -> None:
    print(f"seed {SEED}, {KILLS} kills: IBPFS_SEED={SEED} IBPFS_KILLS={KILLS}")
    volume.expect("torn and dropped|does not answer|allocation .* append refused|wait in the spool")
    dice, sealed = random.Random(SEED), Sealed()
    held = 0
    for number in range(KILLS):
        if number % _FRESH == 0:  # a new tree, so that a long run does not compare ever more
            place, journal = volume / f"tree{number}", promises.fresh()
            place.mkdir()
        one_kill(volume, place, journal, sealed, dice)
        held += journal.check(place)
        if number % 5 == 4 or number == KILLS - 1:
            volume.umount()
            assert "clean" in volume.fsck("--data", "-n").stdout
            volume.mount()
            journal.check(place)
        if number % _FRESH == _FRESH - 1:
            shutil.rmtree(place)
    print(f"{held} files held to their promise; {sealed.slices} slices and {sealed.records} records sealed once each")
    assert held
    assert sealed.slices
    assert sealed.records


def test_kills_of_the_embedded_depot_are_not_noticed(volume: Volume, promises: Promises) -> None:
    volume.expect("does not answer|append refused|wait in the spool|depot")
    load = promises.start(volume.mountpoint, SEED, steps=400)
    try:
        kills = 0
        while load.poll() is None and kills < 6:
            time.sleep(0.5)
            depot = volume.embedded_depot()
            kill_and_wait(depot)
            kills += 1
            until(volume.embedded_depot, 30, "a new depot")
        assert load.wait(120) == 0, "the load saw an error"
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()
    volume.drop_cache()
    assert promises.check(volume.mountpoint)
    volume.umount()
    assert "clean" in volume.fsck("--data", "-n").stdout


def test_a_foreign_depot_that_dies_is_waited_for(
    volumes: Callable[..., Volume], promises: Promises
) -> None:
    volume = volumes(depots=1)
    volume.expect("does not answer|append refused|wait in the spool")
    (depot,) = volume.depots
    load = promises.start(volume.mountpoint, SEED, steps=300)
    try:
        for _ in range(2):
            time.sleep(1.0)
            depot.kill()
            time.sleep(2.0)
            depot.start()
        assert load.wait(120) == 0, "the load saw an error"
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()
    volume.drop_cache()
    assert promises.check(volume.mountpoint)


def test_two_copies_outlive_one_depot(volumes: Callable[..., Volume], promises: Promises) -> None:
    volume = volumes(depots=2)
    volume.expect("does not answer|append refused|wait in the spool")
    load = promises.start(volume.mountpoint, SEED, steps=150)
    assert load.wait(120) == 0
    volume.drop_cache()
    volume.depots[0].kill()
    assert promises.check(volume.mountpoint)
