"""Which stores are older than the depots, and which are not: logs that are past, and logs that a recovery gave up."""

import shutil
import stat
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.checkpoints.log_rows import CHECKPOINT
from ibpfs.exnode_store.checkpoints.rebuilding import rebuild

from .places import Owner, Site, come_back, log_files, owner, site


def touch(now: Owner, name: str) -> None:
    now.names.create(1, name.encode(), NewInode(stat.S_IFREG | 0o644, 0, 0))


async def make_full(place: Site, name: str) -> bytes:
    """A checkpoint in a log of its own; the log's id."""
    (place.paths.run / "checkpoint").unlink(missing_ok=True)
    async with owner(place.paths) as now:
        touch(now, name)
        await now.checkpoints.make()
        return now.checkpoints.rows.in_use(CHECKPOINT)[0].log


def spoil(place: Site, log: bytes, numbers: object = range(3)) -> None:
    """Turn over bytes of every record of a log's copies; once more: they are sound again."""
    for number in numbers:  # type: ignore[attr-defined]
        for path in log_files(place.store(number)):
            raw = bytearray(path.read_bytes())
            if log in raw[:8192]:
                at = raw.find(b"rec1", raw.find(b"IBPRLOG1"))
                while at >= 0:
                    raw[at + 40] ^= 1
                    at = raw.find(b"rec1", at + 4)
                path.write_bytes(raw)


async def test_a_depot_that_was_away_knows_only_a_log_that_is_past(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await make_full(place, "a")
        await place.stop(0)
        for name in "bc":
            await make_full(place, name)
        async with owner(place.paths) as now:
            await now.checkpoints.check()
            await now.warmer.release_orphans()
        await place.start(0, place.addresses[0])
        async with owner(place.paths) as now:
            await now.checkpoints.check()
            touch(now, "d")
            await now.checkpoints.make()


async def test_what_a_recovery_gave_up_makes_no_store_old(tmp_path: Path) -> None:
    new = VolumePaths(tmp_path / "new")
    async with site(tmp_path) as place:
        await make_full(place, "a")
        newest = await make_full(place, "b")
        async with owner(place.paths) as now:
            recovery = now.recovery(place.secret)
        spoil(place, newest)
        found = await rebuild(new, recovery)
        assert any("is given up" in note for note in found.notes), found.notes
        for is_sound in (False, True):
            if is_sound:
                spoil(place, newest)
            shutil.copytree(new.root, tmp_path / f"copy{is_sound}")
            async with owner(VolumePaths(tmp_path / f"copy{is_sound}")) as now:
                await now.checkpoints.check()
        async with owner(new) as now:
            await now.checkpoints.check()
            touch(now, "c")
            await now.checkpoints.make()
        for older in (place.paths.root, tmp_path / "copyTrue"):
            async with owner(VolumePaths(older)) as now:
                with pytest.raises(VolumeError, match="older than the depots by"):
                    await now.checkpoints.check()
        assert (await come_back(recovery, tmp_path / "again")).commit.files == 3  # the root, a and c


async def test_a_recovery_without_the_depot_that_has_the_last_increment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes back when the volume has a new owner, whose own checkpoints count from then on."""
    new = VolumePaths(tmp_path / "new")
    async with site(tmp_path) as place:
        await make_full(place, "a")
        await place.stop(1)
        await place.stop(2)
        async with owner(place.paths) as now:
            touch(now, "b")
            await now.checkpoints.make()
            recovery = now.recovery(place.secret)
        await place.stop(0)
        for number in (1, 2):
            await place.start(number, place.addresses[number])
        found = await rebuild(new, recovery)
        said = f"{place.addresses[0]} does not answer: a later checkpoint that it may have is given up"
        assert (found.commit.files, said in found.notes) == (2, True)
        async with owner(new) as now:
            await now.checkpoints.check()
            for name in "cd":
                touch(now, name)
            await now.checkpoints.make()
        await place.start(0, place.addresses[0])
        async with owner(new) as now:
            await now.checkpoints.check()
            await now.checkpoints.make()
        assert (await come_back(recovery, tmp_path / "again")).commit.files == 4
    assert "does not answer" in caplog.text


async def test_a_second_recovery_finds_what_the_first_one_s_owner_did(tmp_path: Path) -> None:
    new = VolumePaths(tmp_path / "new")
    async with site(tmp_path) as place:
        await make_full(place, "a")
        async with owner(place.paths) as now:
            recovery = now.recovery(place.secret)
        await rebuild(new, recovery)
        async with owner(new) as now:
            touch(now, "b")
            await now.checkpoints.make()
        for number in range(5):
            assert (await come_back(recovery, tmp_path / f"again{number}")).commit.files == 3
