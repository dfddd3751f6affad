"""Short runs of one file in one slice: which, and that they are read, overwritten and cut like any other."""

import random
from pathlib import Path

import pytest

from ibpfs.cache.bundles import seal_runs
from ibpfs.cache.dirty import DirtyFile, Flight
from ibpfs.cache.sealer import Sealer
from ibpfs.config import VolumePaths
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, never
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.sealing import FUNCTION_CODES, HEADER, unseal

from .stack import Stack, run_depot, run_stack

PAGE = 4096


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


def slices(stack: Stack, ino: int) -> int:
    return len({piece.source.row for piece in stack.ledger.extents(ino)})


async def scatter(stack: Stack, ino: int, model: bytearray, dice: random.Random, count: int) -> None:
    for _ in range(count):
        at, data = dice.randrange(200) * PAGE, dice.randbytes(PAGE)
        await stack.files.write(ino, at, data)
        model.extend(bytes(max(0, at + PAGE - len(model))))
        model[at : at + PAGE] = data


async def check(stack: Stack, ino: int, model: bytearray) -> None:
    await stack.files.drop()
    assert await stack.files.read(ino, 0, len(model) + 10) == model
    assert stack.db.value("SELECT sum(mapped) FROM slices") == stack.db.value("SELECT sum(stop - start) FROM mappings")
    assert stack.db.value("SELECT sum(live) FROM segments") == stack.db.value("SELECT sum(stored_length) FROM slices")
    assert stack.files.inode(ino).allocated == stack.ledger.extents(ino).covered


async def test_random_writes_are_few_slices(volume: VolumePaths) -> None:
    dice, model = random.Random(1), bytearray()
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"file").ino
        for number in range(10):
            await scatter(now, ino, model, dice, 50)
            await (now.files.fsync if number % 2 else now.files.store)(ino)
            assert await now.files.read(ino, 0, len(model)) == model
        assert len(now.ledger.extents(ino)) > 50
        assert slices(now, ino) <= 10
        await check(now, ino, model)
        now.files.change(ino, AttributeChange(size=70 * PAGE + 100))
        del model[70 * PAGE + 100 :]
        await check(now, ino, model)
        assert await now.flusher.finish(5)
    lines: list[str] = []
    check_store(Checkup(volume, never, lines.append))
    assert lines == []


async def test_a_cut_while_it_flies(volume: VolumePaths) -> None:
    dice, model = random.Random(2), bytearray()
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.files.write(now.create(b"first").ino, 0, b"x")
        await now.files.flush()
        ino = now.create(b"file").ino
        await scatter(now, ino, model, dice, 50)
        await now.files.fsync(ino)  # whose commit waits
        now.files.change(ino, AttributeChange(size=50 * PAGE))
        del model[50 * PAGE :]
        await scatter(now, ino, model, dice, 20)
        await check(now, ino, model)


def test_what_goes_together() -> None:
    sealer = Sealer(VolumeKeys({1: bytes(range(32))}, bytes(32)), bytes(16), FUNCTION_CODES["aes-256-gcm/1"], 65536, 7)
    one, other = DirtyFile(1, 1, 1, 0), DirtyFile(2, 1, 1, 0)
    lengths = [(one, 10), (one, 20), (other, 30), (other, 200_000), (other, 40), (one, 50)]
    runs = [(file, Flight(0, size, 1, [], size), bytes([at]) * size) for at, (file, size) in enumerate(lengths)]
    sealed = seal_runs(sealer, runs, bundled=True)
    assert [(run.form.length, run.base) for run in sealed.runs] == [
        (30, 0), (30, 10), (30, 0), (200_000, 0), (40, 0), (50, 0),
    ]  # fmt: skip
    assert sealed.length == sum(map(len, sealed.pieces))
    stored = b"".join(sealed.pieces)
    for run, (_, flight, data) in zip(sealed.runs, runs, strict=True):
        key = sealer.keys.slice_key(run.form.epoch, run.form.slice_id)
        whole = b"".join(unseal(run.form, key, 0, stored[run.at + HEADER.size : run.at + run.form.stored_length]))
        assert whole[run.base : run.base + flight.stop] == data
    assert [run.base for run in seal_runs(sealer, runs, bundled=False).runs] == [0] * 6
