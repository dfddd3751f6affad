"""A file and a tree under random operations, held to a model at every step; across remounts, cold reads and kills."""

import mmap
import os
import random
from pathlib import Path

import pytest

from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

LIMIT = 1_500_000
SEEDS = [int(word) for word in os.environ.get("IBPFS_SEEDS", "1,2,3").split(",")]


class File:
    """One open file on the mount beside the bytes it should have."""

    def __init__(self, path: Path, dice: random.Random) -> None:
        self.path, self.dice, self.model = path, dice, bytearray()
        self.descriptor = -1
        self.log: list[str] = []
        self.open(os.O_CREAT)

    def open(self, flags: int = 0) -> None:
        self.descriptor = os.open(self.path, os.O_RDWR | flags)

    def close(self) -> None:
        os.close(self.descriptor)

    def span(self, longest: int) -> tuple[int, int]:
        start = self.dice.randrange(LIMIT)
        if self.dice.random() < 0.3:
            start = start // 65536 * 65536  # where frames, pages and blocks meet
        return start, min(LIMIT, start + self.dice.choice([1, 17, 4096, 65536, self.dice.randrange(1, longest)]))

    def put(self, start: int, data: bytes) -> None:
        if start > len(self.model):
            self.model.extend(bytes(start - len(self.model)))
        self.model[start : start + len(data)] = data

    def write(self) -> None:
        start, stop = self.span(400_000)
        data = self.dice.randbytes(stop - start)
        self.log.append(f"write {start} {stop}")
        assert os.pwrite(self.descriptor, data, start) == len(data)
        self.put(start, data)

    def read(self) -> None:
        start, stop = self.span(400_000)
        self.log.append(f"read {start} {stop}")
        found = os.pread(self.descriptor, stop - start, start)
        assert found == self.model[start:stop], self.log[-15:]

    def truncate(self) -> None:
        size = self.dice.choice([0, len(self.model), self.dice.randrange(LIMIT), len(self.model) * 3 // 4])
        self.log.append(f"truncate {size}")
        os.ftruncate(self.descriptor, size)
        self.model[size:] = bytes(max(0, size - len(self.model)))

    def map(self) -> None:
        if len(self.model) < 2:
            return
        start, stop = sorted(self.dice.randrange(len(self.model)) for _ in range(2))
        stop = min(stop, start + 100_000)
        data = self.dice.randbytes(stop - start)
        self.log.append(f"map {start} {stop}")
        with mmap.mmap(self.descriptor, 0) as view:
            assert view[start:stop] == self.model[start:stop], self.log[-15:]
            view[start:stop] = data
        self.model[start:stop] = data

    def append(self) -> None:
        data = self.dice.randbytes(self.dice.randrange(1, 5000))
        if len(self.model) + len(data) > LIMIT:
            return
        self.log.append(f"append {len(self.model)} {len(data)}")
        with self.path.open("ab", buffering=0) as file:
            file.write(data)
        self.model += data

    def copy_range(self) -> None:
        if len(self.model) < 10:
            return
        start, stop = sorted(self.dice.randrange(len(self.model)) for _ in range(2))
        target = self.dice.randrange(LIMIT)
        size = min(stop - start, LIMIT - target, 100_000)
        if size <= 0 or abs(target - start) < size:
            return
        self.log.append(f"copy {start} {size} {target}")
        done = os.copy_file_range(self.descriptor, self.descriptor, size, start, target)
        self.put(target, bytes(self.model[start : start + done]))

    def sync(self) -> None:
        self.log.append("sync")
        os.fsync(self.descriptor)

    def reopen(self) -> None:
        self.close()
        self.open()

    def check(self) -> None:
        assert os.fstat(self.descriptor).st_size == len(self.model), self.log[-15:]
        found = os.pread(self.descriptor, LIMIT + 1, 0)
        assert len(found) == len(self.model), self.log[-15:]
        differing = next((at for at in range(len(found)) if found[at] != self.model[at]), None)
        assert differing is None, f"byte {differing} differs after {self.log[-25:]}"


STEPS = ["write", "write", "write", "read", "read", "truncate", "map", "append", "copy_range", "sync", "reopen"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_agrees_with_its_model(volume: Volume, seed: int) -> None:
    dice = random.Random(seed)
    file = File(volume / "f", dice)
    for _ in range(8):
        for _ in range(40):
            getattr(file, dice.choice(STEPS))()
        file.check()
        what = dice.choice(["drop", "flush", "remount", "kill", "cold"])
        file.log.append(what)
        if what == "drop":
            volume.drop_cache()
        elif what == "flush":
            volume.flush()
        else:
            # What lies in pages changed through mmap alone is the kernel's until it is synced.
            os.fsync(file.descriptor) if what == "kill" else None
            file.close()
            volume.kill() if what == "kill" else volume.umount()
            volume.empty_cache() if what == "cold" else None
            volume.mount()
            file.open()
        file.check()
    file.close()
    volume.umount()
    volume.fsck("--data", "-n")


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
