"""Slices that are sealed while they are written, against plain bytes: no frame of them has two contents."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ibpfs.cache import begun, spool_file
from ibpfs.cache.begun import begun_by, sealed_by
from ibpfs.cache.dirty import DirtyFile, Flight
from ibpfs.cache.flusher import _filed
from ibpfs.cache.sealer import Sealer
from ibpfs.cache.spool import Spool
from ibpfs.cache.spool_file import Record
from ibpfs.config import VolumePaths
from ibpfs.errors import DataError
from ibpfs.exnode_store.attributes import AttributeChange
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.keys import make_keys
from ibpfs.exnode_store.sealing import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    HEADER,
    PLAIN_XXH3,
    TAG_SIZE,
    Sealing,
    SliceForm,
    parse_header,
    seal,
    unseal,
)

from .stack import Stack, run_depot, run_stack

FRAME = 16
SLICE = 4 * FRAME
SIZE = 3 * SLICE
VOLUME = bytes(range(16))
KEYS = make_keys()

MIB = 1 << 20


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begun, "MAX_SLICE", SLICE)
    monkeypatch.setattr(begun, "_LEAST", FRAME)


def sealer(function: int = AES_256_GCM) -> Sealer:
    return Sealer(KEYS, VOLUME, function, FRAME, 7)


class Model:
    """One file, its records in a spool, and its bytes as an array. What flies is compared, and lands or does not."""

    def __init__(self, directory: Path, function: int = AES_256_GCM) -> None:
        self.sealer = sealer(function)
        self.spool = Spool(directory, KEYS, VOLUME)
        self.file = DirtyFile(1, 1, 1, 0)
        self.content = bytearray(SIZE)
        self.records: dict[Record, bytes] = {}
        self.frames: dict[tuple[bytes, int], bytes] = {}  # what each nonce of a slice's key has sealed
        self.taken = 0

    def write(self, offset: int, frames: int) -> None:
        data = os.urandom(frames * FRAME)
        sealing = begun_by(self.sealer, self.file, offset, len(data))
        self.file.version += 1
        record = self.spool.append(1, 1, offset, self.file.version, 0, data, sealing)
        self.file.add(record, offset, offset + len(data))
        self.content[offset : offset + len(data)] = data
        self.records[record] = data
        if record.frames is not None:
            self.note_record(record)

    def note_record(self, record: Record) -> None:
        assert record.frames is not None
        path, stored = record.file.path, record.length // FRAME * (FRAME + TAG_SIZE)
        raw = path.read_bytes()[record.file.size - stored : record.file.size]
        self.note(record.frames.form, record.frames.first, raw)

    def note(self, form: SliceForm, first: int, stored: bytes) -> None:
        for at in range(0, len(stored), FRAME + TAG_SIZE):
            name = form.slice_id, first + at // (FRAME + TAG_SIZE)
            frame = stored[at : at + FRAME + TAG_SIZE]
            assert self.frames.setdefault(name, frame) == frame

    def fly(self, *, lands: bool) -> None:
        for run in self.file.ready(SLICE, SIZE):
            flight = self.file.take_off(run)
            sealing = sealed_by(flight)
            if sealing is not None:
                self.taken += 1
                self.check(flight, sealing)
            (self.file.landed if lands else self.file.grounded)(flight)

    def check(self, flight: Flight, sealing: Sealing) -> None:
        parts = [piece.source.file.stored(piece.source).read() for piece in flight.pieces]
        form, stored = sealing.form, b"".join([sealing.form.header(), *parts])
        assert form == parse_header(stored, VOLUME)
        assert sealing.digest() == self.sealer.digest([stored])
        self.note(form, 0, stored[HEADER.size :])
        clear = b"".join(unseal(form, KEYS.slice_key(form.epoch, form.slice_id), 0, stored[HEADER.size :]))
        assert clear == self.content[flight.start : flight.stop]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("on"), st.integers(1, 4)),
        st.tuples(st.just("on"), st.integers(1, 4)),
        st.tuples(st.just("write"), st.integers(0, SIZE - SLICE), st.integers(1, 4)),
        st.tuples(st.just("cut"), st.integers(0, SIZE)),
        st.tuples(st.just("fly"), st.booleans()),
    ),
    max_size=25,
)


@pytest.mark.usefixtures("short")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=operations)
def test_whatever_is_written_and_cut_what_flies_is_what_was_written(tmp_path: Path, steps: list[tuple[int]]) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    model, end = Model(tmp_path), 0
    try:
        for what, *numbers in steps:
            if what == "on":
                end = end if end + SLICE <= SIZE else 0
                model.write(end, numbers[0])
                end += numbers[0] * FRAME
            elif what == "write":
                model.write(numbers[0], numbers[1])
                end = numbers[0] + numbers[1] * FRAME
            elif what == "cut":
                model.file.truncate(numbers[0])
                model.content[numbers[0] :] = bytes(SIZE - numbers[0])
            else:
                model.fly(lands=bool(numbers[0]))
        # Another owner finds the same.
        found = Spool(tmp_path, KEYS, VOLUME).replay()
        assert [one.file.read(one) for one in found] == list(model.records.values())
        assert all(one.file.read(one) == data for one, data in model.records.items())
        for one in {one.file for one in found}:
            one.close()
    finally:
        for file in model.spool._files:
            file.close()


@pytest.fixture
def model(tmp_path: Path, short: None) -> Iterator[Model]:
    made = Model(tmp_path / "spool")
    yield made
    for file in made.spool._files:
        file.close()


@pytest.mark.parametrize("function", [AES_256_GCM, CHACHA20_POLY1305])
@pytest.mark.usefixtures("short")
def test_a_stream_flies_as_it_was_written(tmp_path: Path, function: int) -> None:
    model = Model(tmp_path, function)
    for at in range(0, SIZE, 2 * FRAME):
        model.write(at, 2)
        if not (at + 2 * FRAME) % SLICE:
            model.fly(lands=True)
    assert model.taken == 3
    assert len(model.frames) == SIZE // FRAME
    model.spool._files[0].close()


def test_it_is_what_would_have_been_sealed_in_one_piece(model: Model) -> None:
    for at in range(0, SLICE, FRAME):
        model.write(at, 1)
    assert model.file.begun is not None
    form = model.file.begun.sealing.form
    whole = seal(form, KEYS.slice_key(form.epoch, form.slice_id), bytes(model.content[:SLICE]))
    parts = [one.file.stored(one).read() for one in model.records]
    assert b"".join(whole) == b"".join([form.header(), *parts])


def test_nothing_is_begun_where_nothing_is_sealed(tmp_path: Path, short: None) -> None:
    assert begun_by(sealer(PLAIN_XXH3), DirtyFile(1, 1, 1, 0), 0, FRAME) is None


@pytest.mark.parametrize("length", [0, 1, FRAME - 1, FRAME + 1, SLICE + FRAME])
def test_nothing_is_begun_with_what_is_no_run_of_frames(short: None, length: int) -> None:
    assert begun_by(sealer(), DirtyFile(1, 1, 1, 0), 0, length) is None


def test_after_a_flight_in_vain_it_is_sealed_anew(model: Model) -> None:
    model.write(0, 4)
    model.fly(lands=False)
    model.fly(lands=True)
    assert model.taken == 1


def test_a_part_of_it_flies_sealed_anew_and_the_next_begins_behind(model: Model) -> None:
    model.write(0, 2)
    model.fly(lands=True)
    for at in range(2 * FRAME, 2 * FRAME + SLICE, FRAME):
        model.write(at, 1)
    model.fly(lands=True)
    assert model.taken == 1


def test_what_was_overwritten_is_sealed_anew(model: Model) -> None:
    model.write(0, 4)
    model.write(FRAME, 1)
    model.fly(lands=True)
    assert model.taken == 0


# Over a real depot


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


def sealed_as_written(stack: Stack, ino: int) -> set[bytes]:
    """The ids of those of its records' slices."""
    return {record.frames.form.slice_id for record in stack.flusher.files[ino].held if record.frames is not None}


def stored(stack: Stack, ino: int) -> list[bytes]:
    return [piece.source.form.slice_id for piece in stack.ledger.extents(ino)]


async def write_stream(stack: Stack, ino: int, content: bytes | bytearray) -> None:
    """As the kernel asks for it."""
    for at in range(0, len(content), MIB):
        await stack.files.write(ino, at, bytes(content[at : at + MIB]))


async def test_a_stream_is_stored_as_it_lies_in_the_spool(volume: VolumePaths) -> None:
    content = os.urandom(10 * MIB + 5)
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        ino = now.create(b"stream").ino
        await write_stream(now, ino, content[: 8 * MIB])
        ids = sealed_as_written(now, ino)
        await now.files.write(ino, 8 * MIB, content[8 * MIB :])
        assert await now.files.read(ino, 0, 16 * MIB) == content
        await now.files.flush()
        assert len(ids) == 2
        assert ids == set(stored(now, ino)[:2])
        assert len(stored(now, ino)) == 3
        await now.files.drop()
        assert await now.files.read(ino, 0, 16 * MIB) == content


async def test_what_is_overwritten_and_cut_meanwhile_is_read_as_it_is(volume: VolumePaths) -> None:
    content = bytearray(os.urandom(8 * MIB))
    async with run_depot(volume.depot), run_stack(volume) as now:
        ino = now.create(b"changed").ino
        await write_stream(now, ino, content[: 8 * MIB])
        content[MIB + 3 : MIB + 6] = b"new"
        await now.files.write(ino, MIB + 3, b"new")
        now.files.change(ino, AttributeChange(size=7 * MIB))
        ids = sealed_as_written(now, ino)
        await now.files.flush()
        assert not ids & set(stored(now, ino))
        await now.files.drop()
        assert await now.files.read(ino, 0, 16 * MIB) == content[: 7 * MIB]


async def test_a_spool_of_a_killed_owner_is_sealed_anew(volume: VolumePaths) -> None:
    content = os.urandom(5 * MIB)
    async with run_stack(volume) as now:
        ino = now.create(b"killed").ino
        await write_stream(now, ino, content[: 5 * MIB])
        ids = sealed_as_written(now, ino)
    async with run_depot(volume.depot), run_stack(volume) as now:
        assert now.recovered == 5 * MIB
        assert await now.files.read(ino, 0, 8 * MIB) == content
        await now.files.flush()
        assert not ids & set(stored(now, ino))
        await now.files.drop()
        assert await now.files.read(ino, 0, 8 * MIB) == content


async def test_a_flight_in_vain_over_a_depot_that_is_away(volume: VolumePaths) -> None:
    content = os.urandom(4 * MIB)
    async with run_stack(volume) as now:
        ino = now.create(b"vain").ino
        await write_stream(now, ino, content[: 4 * MIB])
        ids = sealed_as_written(now, ino)
        while now.flusher.trouble is None:
            await now.flusher.wait_landing(0.1)
        async with run_depot(volume.depot):
            await now.files.flush()
            assert not ids & set(stored(now, ino))
            await now.files.drop()
            assert await now.files.read(ino, 0, 8 * MIB) == content


async def test_a_spool_that_is_damaged_before_it_flies(volume: VolumePaths) -> None:
    async with run_stack(volume) as now:
        ino = now.create(b"damaged").ino
        await write_stream(now, ino, os.urandom(4 * MIB))
        (path,) = volume.spool.iterdir()
        os.truncate(path, 2 * MIB)
        async with run_depot(volume.depot):
            with pytest.raises(DataError), trio.fail_after(20):
                await now.files.fsync(ino)
            other = now.create(b"other").ino
            await now.files.write(other, 0, b"sound")
            await now.files.fsync(other)


async def test_what_is_overwritten_while_it_flies_keeps_its_place_in_the_spool(
    volume: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent from there."""
    monkeypatch.setattr(spool_file, "FILE_SIZE", 4 * MIB)  # what overwrites it lies in another file
    async with run_stack(volume) as now:
        ino = now.create(b"flying").ino
        await write_stream(now, ino, os.urandom(4 * MIB))
        file = now.flusher.files[ino]
        flight = file.take_off(file.ready(4 * MIB, 4 * MIB)[0])
        sealing = sealed_by(flight)
        assert sealing is not None
        held = now.flusher._hold([flight])
        await now.files.write(ino, 0, bytes(4 * MIB))
        await now.flusher.delete_spent()
        assert sealing.digest() == now.flusher.sealer.digest(_filed(flight, sealing))
        now.flusher._let_go(held)
        assert [one for one in now.files._spool.spent() if one is flight.pieces[0].source.file]
        file.grounded(flight)


async def test_the_clear_bytes_of_a_whole_slice_are_let_go_of(volume: VolumePaths) -> None:
    content = os.urandom(5 * MIB)
    async with run_stack(volume) as now:
        ino = now.create(b"stream").ino
        await write_stream(now, ino, content[: 5 * MIB])
        assert now.files._memory._size == MIB
        for at in (0, 65_535, 3 * MIB + 7):
            assert await now.files.read(ino, at, 100_000) == content[at : at + 100_000]


@pytest.mark.parametrize("header", [4096, 100_000, 3 * MIB])
async def test_a_stream_behind_something_else_flies_as_it_was_written(volume: VolumePaths, header: int) -> None:
    content = os.urandom(header + 12 * MIB)
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        ino = now.create(b"stream").ino
        for at in range(0, header, 65_000):
            await now.files.write(ino, at, content[at : min(at + 65_000, header)])
        ids: set[bytes] = set()
        for at in range(header, header + 12 * MIB, MIB):
            await now.files.write(ino, at, content[at : at + MIB])
            ids |= sealed_as_written(now, ino)
        await now.files.flush()
        assert len(ids) == 3
        assert ids < set(stored(now, ino))
        await now.files.drop()
        assert await now.files.read(ino, 0, 16 * MIB) == content
