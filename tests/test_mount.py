"""An open volume as a whole: who may own it, what it takes over, how large its cache is. Mounts: tests/mounted."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ibpfs import kernel
from ibpfs.config import Secret, VolumePaths, read_key_file
from ibpfs.errors import IbpfsError, UsageError, VolumeError, WrongKey
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.mount import open_volume, serve
from ibpfs.mount_options import MountOptions
from ibpfs.mount_table import MountEntry, mount_entries
from ibpfs.mountinfo import FILE_SYSTEM_TYPE
from ibpfs_tools.umount import _check_spool

from .cache.stack import run_depot


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    found = VolumePaths(tmp_path / "volume")
    create_volume(found, depots=["ibp://127.0.0.1:1"])
    return found


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """`serve` sets the process's umask."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def one_error(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    return group


async def test_the_spool_is_taken_over(paths: VolumePaths, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    secret = read_key_file(paths.key)
    async with open_volume(paths, secret) as volume:
        ino = volume.names.create(1, b"file", NewInode(0o100600, 0, 0)).ino
        await volume.parts.files.write(ino, 0, b"x" * 5000)
    assert list(paths.spool.glob("*.spool"))
    with pytest.raises(IbpfsError, match="bytes wait in the spool"):
        _check_spool(paths)
    async with open_volume(paths, secret) as volume:
        assert await volume.parts.files.read(ino, 0, 5001) == b"x" * 5000
    assert "4.9 KiB of an earlier mount wait in the spool" in caplog.text


async def test_what_lacks_copies_does_not_wait_to_be_uploaded(tmp_path: Path) -> None:
    """It stays in the spool until they stand, but is where fsync and umount.ibpfs promise it to be."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[f"unix:{tmp_path}/{name}/depot.sock" for name in ("one", "two")])
    secret = read_key_file(paths.key)
    async with run_depot(tmp_path / "one"):
        async with open_volume(paths, secret) as volume:
            ino = volume.names.create(1, b"file", NewInode(0o100600, 0, 0)).ino
            await volume.parts.files.write(ino, 0, b"x" * 5000)
            await volume.services.flush(lambda *_: None)
        assert list(paths.spool.glob("*.spool"))
        _check_spool(paths)
        async with open_volume(paths, secret) as volume:
            assert not paths.safe.exists()  # who is killed now leaves none, either
            async with run_depot(tmp_path / "two"):
                with trio.fail_after(60):
                    while volume.parts.files.spool_bytes:
                        await trio.sleep(0.05)
        assert list(paths.spool.glob("*.spool")) == []


async def test_the_second_owner_waits_for_the_first(paths: VolumePaths) -> None:
    secret, order = read_key_file(paths.key), []

    async def second() -> None:
        async with open_volume(paths, secret):
            order.append("second")

    async with trio.open_nursery() as nursery, open_volume(paths, secret):
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked(0.05)
        order.append("first")
    assert order == ["first", "second"]


async def test_a_wrong_key_leaves_the_volume_free(paths: VolumePaths) -> None:
    with pytest.raises(WrongKey):
        async with open_volume(paths, Secret("keyfile", b"x" * 32)):
            pass
    async with open_volume(paths, read_key_file(paths.key)):
        pass


async def test_cache_place_and_size(paths: VolumePaths, tmp_path: Path) -> None:
    secret = read_key_file(paths.key)
    options = MountOptions(cache_dir=tmp_path / "elsewhere", cache_size=1 << 20)
    async with open_volume(paths, secret, options):
        (directory,) = (tmp_path / "elsewhere").iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError, match="cannot keep a cache there"):
        async with open_volume(paths, secret, MountOptions(cache_dir=tmp_path / "file")):
            pass


async def test_what_cannot_be_mounted_leaves_the_volume_free(paths: VolumePaths, tmp_path: Path) -> None:
    secret = read_key_file(paths.key)
    for mountpoint, options, reason in [
        (tmp_path / "missing", MountOptions(), "no such directory"),
        (paths.root, MountOptions(), "inside the mount point"),
        (tmp_path / "m", MountOptions(cache_dir=tmp_path / "m" / "cache"), "inside the mount point"),
    ]:
        with pytest.raises((UsageError, BaseExceptionGroup)) as refused:
            await serve(paths, mountpoint, options, secret, lambda: None)
        assert reason in str(one_error(refused.value))
    async with open_volume(paths, secret):
        pass


async def test_one_that_is_started_again_mounts_nothing_where_no_dead_mount_is(
    paths: VolumePaths, tmp_path: Path
) -> None:
    """Somebody has unmounted it between the end of its process and the beginning of this one."""
    (tmp_path / "mnt").mkdir()
    paths.run.mkdir(mode=0o700, exist_ok=True)
    paths.directory_below.write_text(json.dumps({str(tmp_path / "mnt"): 0o751}))
    await serve(paths, tmp_path / "mnt", MountOptions(), read_key_file(paths.key), pytest.fail, again=True)  # type: ignore[arg-type]
    assert (tmp_path / "mnt").stat().st_mode & 0o777 == 0o751
    assert not any(entry.mountpoint == tmp_path / "mnt" for entry in mount_entries())


async def test_the_cache_of_a_segment_that_a_power_cut_took_is_not_another_ones(paths: VolumePaths) -> None:
    secret = read_key_file(paths.key)
    async with open_volume(paths, secret) as volume:
        last = volume.parts.ledger.add_segment(1, [])
        for segment in (last, last + 1):
            volume.parts.clean.append(segment, 0, [b"x" * 1000])
    async with open_volume(paths, secret) as volume:
        assert volume.parts.clean.covers(last, 0, 1000)
        assert not volume.parts.clean.covers(last + 1, 0, 1000)


async def test_a_mount_of_others_over_a_dead_one_stays(
    paths: VolumePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, detached = tmp_path / "mnt", []
    table = [
        MountEntry(1, "0:1", place, (), FILE_SYSTEM_TYPE, str(paths.root)),
        MountEntry(2, "0:2", tmp_path / "dead", (), FILE_SYSTEM_TYPE, str(paths.root)),
        MountEntry(3, "0:3", place, (), "tmpfs", "tmpfs"),
    ]
    monkeypatch.setattr(kernel, "mount_entries", lambda: iter(table))
    monkeypatch.setattr(kernel, "detach", detached.append)
    await serve(paths, place, MountOptions(), read_key_file(paths.key), pytest.fail, again=True)  # type: ignore[arg-type]
    assert detached == [tmp_path / "dead"]
