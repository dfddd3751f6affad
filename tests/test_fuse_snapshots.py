"""The kernel's requests for nodes of snapshots, without a kernel."""

import errno
import inspect
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
from pyfuse3 import FUSEError, SetattrFields

from ibpfs.config import VolumePaths, read_key_file
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.snapshots import DIRECTORY, node
from ibpfs.fuse_ops import Operations
from ibpfs.fuse_snapshots import SnapshotOperations
from ibpfs.mount import OpenVolume, open_volume
from ibpfs.mount_options import MountOptions

from .test_fuse_ops import CTX, HANDLERS, ROOT, Broken, refused

CHANGES = {
    "mknod", "mkdir", "symlink", "create", "link", "unlink", "rmdir", "rename", "setattr", "setxattr", "removexattr",
}  # fmt: skip
WITHOUT_NODE = {"forget", "statfs", "access", "poll", "write", "fsync", "fsyncdir", "flush", "opendir"}


@asynccontextmanager
async def snapshot_operations(tmp_path: Path) -> AsyncIterator[tuple[OpenVolume, SnapshotOperations]]:
    """A volume whose only depot never answers."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=["ibp://127.0.0.1:1"], owner=(0, 0))
    async with open_volume(paths, read_key_file(paths.key)) as volume:
        parts, describe = volume.parts, volume.services.describe
        ops = SnapshotOperations(volume.names, parts.files, MountOptions(), describe, parts.snapshots)
        yield volume, ops
        ops.left()


@pytest.mark.parametrize("name", [name for name in HANDLERS if name not in WITHOUT_NODE])
async def test_nothing_but_fuse_errors_leaves_a_handler(name: str, caplog: pytest.LogCaptureFixture) -> None:
    ops = SnapshotOperations(Broken(), Broken(), MountOptions(), Broken(), Broken())  # type: ignore[arg-type]
    for attribute in vars(ops):
        if attribute.startswith("_"):
            setattr(ops, attribute, Broken())
    handler = getattr(ops, name)
    arguments: list[Any] = [CTX if one == "ctx" else node(1, 5) for one in inspect.signature(handler).parameters]
    if name == "setattr":
        arguments = [node(1, 5), pyfuse3.EntryAttributes(), SetattrFields(), None, CTX]
    if name == "open":
        arguments[1] = 0
    await refused(errno.EROFS if name in CHANGES else errno.EIO, handler(*arguments))
    caplog.clear()


@pytest.mark.parametrize("name", HANDLERS)
def test_it_answers_like_the_others(name: str) -> None:
    mine, others = getattr(SnapshotOperations, name), getattr(Operations, name)
    assert list(inspect.signature(mine).parameters) == list(inspect.signature(others).parameters)


async def test_handles_of_other_machines_lead_up_and_down(tmp_path: Path) -> None:
    async with snapshot_operations(tmp_path) as (volume, ops):
        snapshots = volume.parts.snapshots
        directory = volume.names.create(ROOT, b"dir", NewInode(stat.S_IFDIR | 0o755, 0, 0)).ino
        await snapshots.create("one")
        volume.names.rmdir(ROOT, b"dir")

        async def found(parent: int, name: bytes) -> int:
            ino: int = (await ops.lookup(parent, name, CTX)).st_ino
            assert (await ops.getattr(ino, CTX)).st_ino == ino
            return ino

        top = await found(ROOT, b".snapshots")
        assert top == node(DIRECTORY, ROOT)
        one = await found(top, b"one")
        assert one == node(1, ROOT)
        inner = await found(one, b"dir")
        assert inner == node(1, directory)
        for place, above in ((inner, one), (one, top), (top, ROOT)):
            assert await found(place, b".") == place
            assert await found(place, b"..") == above
        await refused(errno.ENOENT, ops.lookup(top, b"two", CTX))
        await refused(errno.ENOENT, ops.lookup(one, b"none", CTX))
        await snapshots.delete("one")
        await refused(errno.ESTALE, ops.getattr(inner, CTX))
        await refused(errno.ENOENT, ops.lookup(top, b"one", CTX))


async def test_a_real_one_of_an_older_volume_comes_first(tmp_path: Path) -> None:
    async with snapshot_operations(tmp_path) as (volume, ops):
        real = volume.names.create(ROOT, b".snapshots", NewInode(stat.S_IFDIR | 0o755, 0, 0)).ino
        assert (await ops.lookup(ROOT, b".snapshots", CTX)).st_ino == real
        await ops.rmdir(ROOT, b".snapshots", CTX)
        assert (await ops.lookup(ROOT, b".snapshots", CTX)).st_ino == node(DIRECTORY, ROOT)
        with pytest.raises(FUSEError):
            await ops.rmdir(ROOT, b".snapshots", CTX)


async def test_only_some_files_of_snapshots_are_open_at_a_time(tmp_path: Path) -> None:
    async with snapshot_operations(tmp_path) as (volume, ops):
        snapshots = volume.parts.snapshots
        ino = volume.names.create(ROOT, b"file", NewInode(stat.S_IFREG | 0o644, 0, 0)).ino
        for number in range(1, 13):
            await snapshots.create(str(number))
        opened = (await ops.open(node(1, ino), os.O_RDONLY, CTX)).fh
        for _ in range(2):
            for number in range(1, 13):
                assert (await ops.lookup(node(number, ROOT), b"file", CTX)).st_ino == node(number, ino)
            assert len(snapshots._open) == 8
            assert await ops.read(opened, 0, 10) == b""
        await snapshots.delete("1")
        await refused(errno.ESTALE, ops.read(opened, 0, 10))
