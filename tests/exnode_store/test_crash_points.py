"""A kill at each point at which the ledger and the depots are changed: what the next owner finds, and makes of it.

At the point the volume's directory is copied, as the kill would leave it; the next owner opens the copy.
"""

import inspect
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs import config
from ibpfs.config import VolumePaths
from ibpfs.depot.client import DepotClient
from ibpfs.errors import VolumeError
from ibpfs.exnode_store import recoding
from ibpfs.exnode_store.allocator import Allocator
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.segments import Segments
from ibpfs.exnode_store.unfinished import MARK, marked
from ibpfs.exnode_store.warm_capability import open_warm_capability, write_warm_capability
from tests.cache.stack import Stack, run_depot, run_stack

NAMES = ("one", "two", "three")
FIRST, SECOND = b"first" * 20_000, b"second" * 20_000


class Killed(BaseException):
    """Nobody catches it."""


@dataclass(frozen=True)
class Point:
    """Before or after a call; `left`: allocations that nobody knows any more, and that end with their first lease."""

    owner: type
    method: str
    when: str
    left: int = 0

    def __str__(self) -> str:
        return f"{self.when} {self.method}"


class Trap:
    """Strikes once, when it is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: Point, volume: VolumePaths, copy: Path) -> None:
        self._volume = volume
        self._copy = copy
        self.armed = False
        original = getattr(point.owner, point.method)

        async def later(*arguments: Any, **more: Any) -> Any:
            if point.when == "before":
                self._strike()
            result = await original(*arguments, **more)
            if point.when == "after":
                self._strike()
            return result

        def at_once(*arguments: Any, **more: Any) -> Any:
            if point.when == "before":
                self._strike()
            result = original(*arguments, **more)
            if point.when == "after":
                self._strike()
            return result

        monkeypatch.setattr(point.owner, point.method, later if inspect.iscoroutinefunction(original) else at_once)

    def _strike(self) -> None:
        if self.armed:
            self.armed = False
            shutil.copytree(self._volume.root, self._copy)
            raise Killed


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    """Two copies of each byte on three depots."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[f"unix:{tmp_path}/{name}/depot.sock" for name in NAMES], copies=2, min_copies=2)
    return paths


async def fill(now: Stack, name: bytes, data: bytes) -> int:
    ino = now.create(name).ino
    await now.files.write(ino, 0, data)
    await now.files.fsync(ino)
    return ino


async def all_answer(now: Stack) -> None:
    with trio.fail_after(20):
        while any(depot.status is None for depot in now.depots):
            await trio.sleep(0.01)


async def close_all(now: Stack) -> None:
    """Who has appended may hold its segment for a moment longer."""
    while now.db.value("SELECT count(*) FROM segments WHERE state = 0"):
        await now.transfer.close_old(every=True)
        await trio.sleep(0.01)


async def run_into(
    point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Stack], Awaitable[None]],
    prepare: Callable[[Stack], Awaitable[None]] | None = None,
) -> None:  # fmt: skip
    """Store FIRST, closed; then run the scenario up to the point; then see what the next owner makes of it."""
    base = volume.root.parent
    copy = VolumePaths(base / "copy")
    async with AsyncExitStack() as depots:
        for name in NAMES:
            await depots.enter_async_context(run_depot(base / name))
        trap = Trap(monkeypatch, point, volume, copy.root)
        try:
            async with run_stack(volume, warming=False) as now:
                await all_answer(now)
                await fill(now, b"first", FIRST)
                await close_all(now)
                if prepare is not None:
                    await prepare(now)
                trap.armed = True
                with trio.fail_after(30):
                    await scenario(now)
                    await trio.sleep(30 if trap.armed else 0)  # the point lies in a task of its own
        except* Killed:
            pass
        assert not trap.armed, "the point was never reached"
        await assert_well(copy, point)


async def assert_well(copy: VolumePaths, point: Point) -> None:
    async with run_stack(copy, warming=False) as now:
        await all_answer(now)
        names = {name: now.names.lookup(1, name).ino for name in (b"first", b"second") if exists(now, name)}
        assert b"first" in names or point.method in GOING
        for name, ino in names.items():
            assert await now.files.read(ino, 0, 1 << 20) == (FIRST if name == b"first" else SECOND)
        await now.files.flush()
        assert await now.flusher.finish(10)
        await close_all(now)
        with trio.fail_after(30):
            while now.ledger.orphans() or now.warmer.under_replicated_bytes:
                await now.warmer.renew()
                await now.warmer.verify()
                await now.warmer.repair()
                await now.warmer.release_orphans()
        await now.files.drop()
        for name, ino in names.items():
            assert await now.files.read(ino, 0, 1 << 20) == (FIRST if name == b"first" else SECOND)
        assert now.db.value("SELECT count(*) FROM pending") == 0
        replicas = now.db.value("SELECT count(*) FROM replicas")
        base = copy.root.parent
        held = sum(path.is_file() for name in NAMES for path in (base / name / "allocations").rglob("*"))
        assert replicas <= held <= replicas + point.left


def exists(now: Stack, name: bytes) -> bool:
    return bool(now.db.value("SELECT count(*) FROM dentries WHERE name = ?", (name,)))


#: After these the first file may be gone: it was removed.
GOING = frozenset(("unlink", "drop_replica", "decr_all", "forget_orphan", "sync"))

ALLOCATING = [
    Point(DepotClient, "allocate", "after", left=3),
    Point(Segments, "add_pending", "before", left=3),
    Point(Segments, "add_pending", "after"),
    Point(Allocator, "extend", "after"),
    Point(DepotClient, "store", "after"),
]


@pytest.mark.parametrize(
    "point",
    [*ALLOCATING, Point(Ledger, "commit", "before"), Point(Ledger, "commit", "after"),
     Point(Database, "sync", "after", left=3)],  # while depots are asked for a segment
    ids=str,
)  # fmt: skip
async def test_a_write(point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(now: Stack) -> None:
        await fill(now, b"second", SECOND)

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [Point(Segments, "close_segment", "before"), Point(Segments, "close_segment", "after"),
     Point(DepotClient, "truncate", "after")],
    ids=str,
)  # fmt: skip
async def test_a_segment_that_is_closed(
    point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(now: Stack) -> None:
        await fill(now, b"second", SECOND)
        await close_all(now)

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [Point(Segments, "drop_replica", "after"), Point(Database, "sync", "after"),
     Point(DepotClient, "decr_all", "after"), Point(Segments, "forget_orphan", "before"),
     Point(Segments, "forget_orphan", "after")],
    ids=str,
)  # fmt: skip
async def test_a_release(point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(now: Stack) -> None:
        now.files.unlinked(now.names.unlink(1, b"first"))
        while not now.ledger.orphans():
            await trio.sleep(0.01)
        await now.warmer.release_orphans()

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [*ALLOCATING, Point(Segments, "add_replica", "before"), Point(Segments, "add_replica", "after")],
    ids=str,
)
async def test_a_copy_that_a_repair_makes(
    point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(now: Stack) -> None:
        now.ledger.drop_replica(now.ledger.replicas(1)[0])
        await now.warmer.repair()

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [Point(DepotSet, "drain", "after"), *ALLOCATING[2:], Point(Segments, "add_replica", "after"),
     Point(Segments, "drop_replica", "before"), Point(Segments, "drop_replica", "after"),
     Point(DepotClient, "decr_all", "after")],
    ids=str,
)  # fmt: skip
async def test_a_drain(point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(now: Stack) -> None:
        draining = Draining(now.db, now.ledger, now.depots, now.transfer, now.warmer)
        depot = now.depots.get(now.ledger.replicas(1)[0].depot)
        await draining.drain(depot.address, lambda done, total, text: None)

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [*ALLOCATING[2:], Point(Ledger, "move", "before"), Point(Ledger, "move", "after")],
    ids=str,
)
async def test_packing(point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(now: Stack) -> None:
        with now.db.transaction() as db:  # as if most of the segment had been given up
            db.execute("UPDATE segments SET length = length * 3")
            now.ledger.forget_length(1)
        await now.warmer.pack(1 << 30)

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [Point(DepotClient, "change", "after"), Point(Segments, "renewed", "before"), Point(Segments, "renewed", "after")],
    ids=str,
)
async def test_a_renewal(point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(now: Stack) -> None:
        await now.warmer.renew(every=True)

    await run_into(point, volume, monkeypatch, scenario)


@pytest.mark.parametrize(
    "point",
    [Point(DepotClient, "allocate", "after", left=3), Point(Segments, "add_pending", "after", left=3),
     Point(DepotClient, "store", "after", left=3), Point(Allocator, "extend", "after", left=2),
     Point(Segments, "recode", "before"), Point(Segments, "recode", "after"), Point(Database, "sync", "after", left=2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("back", [False, True], ids=["shards", "copies"])
async def test_shards_in_place_of_copies(
    point: Point, back: bool, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recoding, "LARGE", 1000)
    with Database(volume.store) as db, db.transaction():
        db.execute("UPDATE policies SET code = '2+1'")

    async def code(now: Stack) -> None:
        await now.warmer.recoding.code_some(1)

    async def uncode(now: Stack) -> None:
        await now.warmer.recoding.uncode(1)

    await run_into(point, volume, monkeypatch, uncode if back else code, code if back else None)


@pytest.mark.parametrize("point", [Point(Segments, "suspect", "after"), Point(Segments, "verified", "after")], ids=str)
async def test_a_verification(point: Point, volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(now: Stack) -> None:
        now.transfer.report(now.ledger.replicas(1)[0].id, "as if it had been wrong")
        await now.warmer.verify()

    await run_into(point, volume, monkeypatch, scenario)


def test_mkfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """volume.toml comes last; without it there is no volume, and the next mkfs takes away what is there."""
    paths = VolumePaths(tmp_path / "volume")
    copies: list[VolumePaths] = []

    def watched(module: str, name: str) -> None:
        call = getattr(sys.modules[module], name)

        def dying(*words: Any, **more: Any) -> Any:
            for moment in ("before", "after"):
                result = call(*words, **more) if moment == "after" else None
                copies.append(VolumePaths(tmp_path / f"{name} {moment} {len(copies)}"))
                shutil.copytree(paths.root, copies[-1].root)
            return result

        monkeypatch.setattr(f"{module}.{name}", dying)

    for name in ("write_private", "write_key_file", "create_database", "sync_file"):
        watched("ibpfs.exnode_store.creation", name)
    create_volume(paths)
    monkeypatch.undo()
    assert sorted(path.name for path in paths.root.iterdir()) == sorted(
        [path.name for path in paths.directories] + ["exnode_store.sqlite", "volume.key", "volume.toml"]
    )
    assert len(copies) == 8
    for copy in copies[:-1]:
        with pytest.raises(VolumeError, match=r"volume.toml: missing"):
            config.load_config(copy)
        create_volume(copy)
        config.load_config(copy)
    with pytest.raises(VolumeError, match="is a volume already"):
        create_volume(copies[-1])


def test_mkfs_takes_away_nothing_else(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    paths.spool.mkdir(parents=True)
    with pytest.raises(VolumeError, match="is not empty"):
        create_volume(paths)  # a volume of which volume.toml was lost may look so
    (paths.root / MARK).touch()
    (paths.root / "thesis.tex").touch()
    with pytest.raises(VolumeError, match=r"not finished, and thesis\.tex is not of it; move that away first"):
        create_volume(paths)
    assert paths.spool.exists()
    (paths.root / "thesis.tex").unlink()
    with marked(paths.root), pytest.raises(VolumeError, match="another process is making a volume there"):
        create_volume(paths)
    assert paths.spool.exists()


async def test_a_warm_capability(volume: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    base = volume.root.parent
    file = base / "file"
    async with AsyncExitStack() as depots:
        for name in NAMES:
            await depots.enter_async_context(run_depot(base / name))
        async with run_stack(volume, warming=False) as now:
            await all_answer(now)
            await fill(now, b"first", FIRST)
            await close_all(now)
            await now.db.sync()
            write_warm_capability(volume.store, file, now.db.facts)
            before = file.read_bytes()
            with monkeypatch.context() as patched:
                patched.setattr("ibpfs.exnode_store.warm_capability._sync", lambda path: dying(path, base))
                with pytest.raises(Killed):
                    write_warm_capability(volume.store, file, now.db.facts)
            assert file.read_bytes() == before
            shutil.copy(base / "left", base / ".file.1")  # what a kill leaves, which takes nothing away
            await fill(now, b"second", SECOND)
            await close_all(now)
            assert write_warm_capability(volume.store, file, now.db.facts)["segments"] == 2
    with open_warm_capability(file) as db:
        assert db.value("SELECT count(*) FROM segments") == 2


def dying(path: Path, base: Path) -> None:
    shutil.copy(path, base / "left")
    raise Killed
