"""A volume with six depots in this process, each of which can be killed, wiped and started again."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.creation import create_volume
from tests.cache.stack import Stack, run_depot, run_stack

#: A file that fills most of two segments.
DATA = Random(1).randbytes(12 * 1024 * 1024 + 12345)
DEPOTS = 6


@dataclass
class Six:
    """The volume, and its depots by their numbers in the store."""

    paths: VolumePaths
    nursery: trio.Nursery
    scopes: dict[int, trio.CancelScope] = field(default_factory=dict)

    def directory(self, number: int) -> Path:
        return self.paths.depot if number == 1 else self.paths.root.with_name(f"depot{number}")

    async def start(self, number: int) -> None:
        self.scopes[number] = await self.nursery.start(self._run, number)

    async def _run(self, number: int, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with run_depot(self.directory(number)):
                task_status.started(scope)
                await trio.sleep_forever()

    async def kill(self, number: int) -> None:
        self.scopes.pop(number).cancel()
        while (self.directory(number) / "depot.sock").exists():
            await trio.sleep(0.01)

    async def wipe(self, number: int) -> None:
        """It comes back empty."""
        await self.kill(number)
        shutil.rmtree(self.directory(number))
        await self.start(number)

    def allocations(self, number: int) -> list[Path]:
        """The files of a depot's allocations, the longest first."""
        return sorted(self._files(number), key=lambda file: -file.stat().st_size)

    def _files(self, number: int) -> Iterator[Path]:
        for file in self.directory(number).rglob("*"):
            if file.is_file() and file.stat().st_size > 1024 * 1024:
                yield file


@asynccontextmanager
async def six_depots(root: Path, copies: int = 3, code: str = "4+2") -> AsyncIterator[Six]:
    """Made, with a policy that wants this code, and nothing in it yet."""
    paths = VolumePaths(root / "volume")
    create_volume(paths)
    async with trio.open_nursery() as nursery:
        six = Six(paths, nursery)
        for number in range(1, DEPOTS + 1):
            await six.start(number)
        async with run_stack(paths, warming=False) as now:
            with now.db.transaction() as db:
                db.execute("UPDATE policies SET copies = ?, min_copies = ?, code = ?", (copies, copies - 1, code))
                db.executemany(
                    "INSERT INTO depots (address, embedded, labels, role, seq) VALUES (?, 0, '{}', 'active', 1)",
                    [(f"unix:{six.directory(number)}/depot.sock",) for number in range(2, DEPOTS + 1)],
                )
        yield six
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def coded_stack(six: Six) -> AsyncIterator[Stack]:
    """With DATA in a file, stored as shards, as far as its segments are large; the warmer stands still."""
    async with run_stack(six.paths, warming=False) as now:
        await write(now)
        assert await now.warmer.recoding.code_some(100) >= 1
        yield now


async def write(now: Stack, name: bytes = b"file") -> int:
    await now.depots.wait_for_all(10)
    ino = now.create(name).ino
    for at in range(0, len(DATA), 1 << 20):
        await now.files.write(ino, at, DATA[at : at + (1 << 20)])
    await now.files.flush()
    assert await now.flusher.finish(10)
    await now.transfer.close_old(every=True)
    return ino


async def read(now: Stack, name: bytes = b"file") -> bytes:
    """Through no cache: from the depots."""
    await now.files.drop()
    ino = now.names.lookup(1, name).ino
    return b"".join([await now.files.read(ino, at, 1 << 20) for at in range(0, len(DATA), 1 << 20)])


def coded_segments(now: Stack) -> list[int]:
    return [segment for (segment,) in now.db.rows("SELECT segment FROM coded ORDER BY segment")]
