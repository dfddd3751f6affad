"""Files and a tree under random operations, held to a model at every step; across remounts, cold reads and kills.

IBPFS_SEED sets the seed (fresh, printed), IBPFS_OPERATIONS or IBPFS_MINUTES how long the files' run is.
"""

import os
import random
import time
from pathlib import Path

import pytest

from .exerciser import Exerciser
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

SEEDS = [int(word) for word in os.environ.get("IBPFS_SEEDS", "1,2,3").split(",")]
SEED = int(os.environ.get("IBPFS_SEED", str(random.SystemRandom().randrange(1 << 32))))
#: The run ends after so many operations, or else after so many minutes.
OPERATIONS = int(os.environ.get("IBPFS_OPERATIONS", "0"))
MINUTES = float(os.environ.get("IBPFS_MINUTES", "10" if os.environ.get("CI") else "0.25"))
#: Mean number of operations between two disturbances of the mount.
_UNDISTURBED = 1000


def disturb(volume: Volume, exerciser: Exerciser) -> None:
    """Something happens to the mount; every file is compared before and after."""
    exerciser.check()
    what = exerciser.dice.choice(["drop", "flush", "remount", "kill", "kill", "cold"])
    exerciser.note(what)
    if what == "drop":
        volume.drop_cache()
    elif what == "flush":
        volume.flush()
    else:
        exerciser.write_pages() if what == "kill" else None
        exerciser.close()
        volume.kill() if what == "kill" else volume.umount()
        volume.empty_cache() if what == "cold" else None
        volume.mount()
    exerciser.check()


def test_files_agree_with_their_model(volume: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nIBPFS_SEED={SEED} pytest {Path(__file__).name}")
    volume.expect("wait in the spool|torn and dropped")
    (volume / "place").mkdir()
    exerciser = Exerciser(volume / "place", random.Random(SEED))
    until = time.monotonic() + MINUTES * 60
    disturbances = 0
    try:
        while exerciser.done < OPERATIONS if OPERATIONS else time.monotonic() < until:
            exerciser.step()
            if exerciser.dice.randrange(_UNDISTURBED) == 0:
                disturb(volume, exerciser)
                disturbances += 1
        exerciser.check()
    finally:
        exerciser.close()
    volume.umount()
    volume.fsck("--data", "-n")
    with capsys.disabled():
        print(f"{exerciser.done} operations and {disturbances} disturbances agreed with the model, seed {SEED}")


class Tree:
    """Names on the mount beside the names that should be there: path -> None for a directory, bytes for a file."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.root, self.dice = root, dice
        self.model: dict[str, bytes | None] = {"": None}

    def directory(self) -> str:
        return self.dice.choice([name for name, data in self.model.items() if data is None])

    def fresh(self) -> str:
        return f"{self.directory()}/{self.dice.randrange(30)}"

    def make_directory(self) -> None:
        name = self.fresh()
        try:
            (self.root / name[1:]).mkdir()
        except FileExistsError:
            assert name in self.model
        else:
            assert name not in self.model
            self.model[name] = None

    def make_file(self) -> None:
        name, data = self.fresh(), self.dice.randbytes(self.dice.randrange(3000))
        try:
            (self.root / name[1:]).write_bytes(data)
        except IsADirectoryError:
            assert self.model[name] is None
        else:
            self.model[name] = data

    def remove(self) -> None:
        name = self.dice.choice(list(self.model))
        if not name:
            return
        path = self.root / name[1:]
        if self.model[name] is not None:
            path.unlink()
            del self.model[name]
            return
        empty = not self.below(name)
        try:
            path.rmdir()
        except OSError:
            assert not empty
        else:
            assert empty
            del self.model[name]

    def below(self, name: str) -> list[str]:
        return [other for other in self.model if other.startswith(f"{name}/")]

    def rename(self) -> None:
        name, target = self.dice.choice(list(self.model)), self.fresh()
        if not name:
            return
        try:
            (self.root / name[1:]).rename(self.root / target[1:])
        except OSError:
            assert not self.may_rename(name, target), f"{name} to {target} was refused"
            return
        assert self.may_rename(name, target), f"{name} to {target} was allowed"
        if name != target:
            self.model.pop(target, None)
            for old in [name, *self.below(name)]:
                self.model[target + old[len(name) :]] = self.model.pop(old)

    def may_rename(self, name: str, target: str) -> bool:
        if target == name:
            return True
        if f"{target}/".startswith(f"{name}/"):
            return False
        if target not in self.model:
            return True
        if (self.model[name] is None) != (self.model[target] is None):
            return False
        return self.model[target] is not None or not self.below(target)

    def check(self) -> None:
        found: dict[str, bytes | None] = {"": None}
        for path in self.root.rglob("*"):
            found[f"/{path.relative_to(self.root)}"] = path.read_bytes() if path.is_file() else None
            if path.is_dir():
                assert path.stat().st_nlink == 2 + sum(1 for one in path.iterdir() if one.is_dir())
        assert found == self.model


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tree_agrees_with_its_model(volumes: MakeVolume, seed: int) -> None:
    volume = volumes()
    dice = random.Random(seed)
    tree = Tree(volume.mountpoint, dice)
    for what in ["look", "kill", "remount", "kill", "drop"]:
        for _ in range(150):
            getattr(tree, dice.choice(["make_directory", "make_file", "make_file", "remove", "rename", "rename"]))()
        tree.check()
        if what == "kill":
            volume.kill()
            volume.mount()
        elif what == "remount":
            volume.remount(cold=True)
        elif what == "drop":
            volume.drop_cache()
        tree.check()
    volume.umount()
    volume.fsck("--data", "-n")
