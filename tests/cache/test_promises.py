"""What an fsync has promised, after a kill, a power cut or the loss of the spool, against a model; steps at random.

A power cut here leaves the exNode store as it was when the last sync of its WAL began, and of each spool file what was
synced, if its name was. Where the spool is lost, what counts is what depots hold: exNodes say so as soon as what waits
is committed. Depots keep what they have acknowledged.
"""

import os
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from ibpfs.cache import commits, spool_file
from ibpfs.config import VolumePaths
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.wal_sync import WalSync

from .stack import Stack, run_depot, run_stack

SEED = int(os.environ.get("IBPFS_SEED", random.randrange(1 << 32)))
RUNS = int(os.environ.get("IBPFS_RUNS", "12"))
_ALL = 1 << 20


class SyncedStore:
    """Copies of the exNode store as it is on stable storage."""

    def __init__(self, volume: VolumePaths, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._volume = volume
        self._place = place
        self._copies = 0
        self._synced = self._copy()
        real, real_now = WalSync.sync, WalSync.sync_now

        async def sync(wal: WalSync) -> None:
            copy = self._copy()
            await real(wal)
            self._synced = copy

        def sync_now(wal: WalSync) -> None:
            copy = self._copy()
            real_now(wal)
            self._synced = copy

        monkeypatch.setattr(WalSync, "sync", sync)
        monkeypatch.setattr(WalSync, "sync_now", sync_now)

    def _files(self) -> list[Path]:
        return [path for end in ("", "-wal") if (path := Path(f"{self._volume.store}{end}")).exists()]

    def _copy(self) -> Path:
        self._copies += 1
        place = self._place / str(self._copies)
        place.mkdir(parents=True)
        for path in self._files():
            shutil.copy(path, place)
        return place

    def keep(self) -> Path:
        return Path(shutil.copytree(self._synced, self._place / "kept"))

    def put_back(self, kept: Path) -> None:
        for end in ("", "-wal", "-shm"):
            Path(f"{self._volume.store}{end}").unlink(missing_ok=True)
        for path in kept.iterdir():
            shutil.copy(path, self._volume.store.parent)


@dataclass
class Content:
    """One file: what it was at its last fsync that was answered, and after each change since."""

    ino: int
    states: list[bytes] = field(default_factory=lambda: [b""])
    forgotten: int = 0  # states before the first

    async def write(self, stack: Stack, dice: random.Random) -> None:
        offset, data = dice.randrange(2500), bytes([dice.randrange(1, 256)]) * dice.randrange(2, 700)
        after = bytearray(self.states[-1].ljust(offset + len(data), b"\0"))
        after[offset : offset + len(data)] = data
        await stack.files.write(self.ino, offset, data)
        self.states.append(bytes(after))

    async def overwrite(self, stack: Stack, dice: random.Random) -> None:
        data = bytes([dice.randrange(1, 256)]) * max(1, len(self.states[-1]))
        await stack.files.write(self.ino, 0, data)
        self.states.append(data)

    def truncate(self, stack: Stack, dice: random.Random) -> None:
        size = dice.randrange(3000)
        stack.files.change(self.ino, AttributeChange(size=size))
        self.states.append(self.states[-1][:size].ljust(size, b"\0"))

    async def fsync(self, stack: Stack) -> None:
        await self._make_sure(stack.files.fsync)

    async def store(self, stack: Stack) -> None:
        await self._make_sure(stack.files.store)

    async def _make_sure(self, promise: Callable[[int], Awaitable[None]]) -> None:
        at = self.forgotten + len(self.states) - 1
        await promise(self.ino)
        if at > self.forgotten:
            del self.states[: at - self.forgotten]
            self.forgotten = at

    def check(self, found: bytes) -> None:
        """Each byte is one that was there at the last fsync or later."""
        assert min(map(len, self.states)) <= len(found) <= max(map(len, self.states))
        for at, byte in enumerate(found):
            assert byte in {state[at] if at < len(state) else 0 for state in self.states}, at


async def work(stack: Stack, files: list[Content], dice: random.Random) -> None:
    async with trio.open_nursery() as nursery:
        for one in files:
            await one.fsync(stack)
        for _ in range(dice.randrange(20, 90)):
            one, what = dice.choice(files), dice.random()
            if what < 0.45:
                await one.write(stack, dice)
            elif what < 0.55:
                one.truncate(stack, dice)
            elif what < 0.65:
                await one.fsync(stack)
            elif what < 0.75:
                await overtake(one, stack, dice, nursery)
            elif what < 0.80:
                await trio.sleep(dice.choice([0, 0.001, 0.01, 0.06]))  # what waits may be committed, or not
            elif what < 0.84:
                stack.files.commit_stored()
            elif what < 0.88:
                await stack.flusher.delete_spent()
            elif what < 0.91:
                await stack.transfer.close_old(every=True)
            elif what < 0.94:
                stack.files.change(one.ino, AttributeChange(mode=0o600))
            else:
                assert await stack.files.read(one.ino, 0, _ALL) == one.states[-1]
        if dice.random() < 0.5:
            await overtake(dice.choice(files), stack, dice, nursery)
        nursery.cancel_scope.cancel()


async def overtake(file: Content, stack: Stack, dice: random.Random, nursery: trio.Nursery) -> None:
    """Others write over the bytes that an fsync waits for, before they have taken off, in the air, or landed."""
    if dice.random() < 0.8:
        await file.write(stack, dice)
    nursery.start_soon(dice.choice([file.fsync, file.store]), stack)
    await checkpoints(dice.randrange(20))
    for _ in range(dice.randrange(4)):
        await dice.choice([file.write, file.overwrite, file.overwrite])(stack, dice)
        await checkpoints(dice.randrange(20))


async def checkpoints(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("number", range(RUNS))
@pytest.mark.parametrize("end", ["kill", "power cut", "spool lost"])
@pytest.mark.parametrize("size", [spool_file.FILE_SIZE, 3000], ids=["one file", "many files"])
async def test_an_fsync_is_a_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, end: str, size: int
) -> None:
    print(f"IBPFS_SEED={SEED}")
    dice = random.Random(f"{SEED} {number} {end} {size}")
    volume = VolumePaths(tmp_path / "volume")
    create_volume(volume)
    monkeypatch.setattr(spool_file, "FILE_SIZE", size)
    monkeypatch.setattr(commits, "_GATHER", dice.choice([0.002, 0.02, 0.05, 3600.0]))
    store = SyncedStore(volume, tmp_path / "synced", monkeypatch)
    async with run_depot(volume.depot):
        async with run_stack(volume) as now:
            files = [Content(now.create(b"%d" % name).ino) for name in range(3)]
            await work(now, files, dice)
            if end == "power cut":
                kept, left = store.keep(), spool_as_synced(now)
            elif end == "spool lost":
                now.files.commit_stored()
            else:
                for one in files:
                    del one.states[:-1]
        if end != "kill":
            for path in volume.spool.iterdir():
                path.unlink()
        if end == "power cut":
            store.put_back(kept)
            for path, data in left.items():
                path.write_bytes(data + bytes(dice.choice([0, 1000])))
        async with run_stack(volume) as now:
            for one in files:
                one.check(await now.files.read(one.ino, 0, _ALL))
            await now.files.drop()
            for one in files:
                one.check(await now.files.read(one.ino, 0, _ALL))


def spool_as_synced(stack: Stack) -> dict[Path, bytes]:
    return {
        file.path: file.path.read_bytes()[: file.size - file.unsynced_bytes]
        for file in stack.files._spool._files
        if file.has_name and file.path.exists()
    }
