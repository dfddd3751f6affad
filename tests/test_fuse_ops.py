"""The kernel's requests, without a kernel: nothing but FUSEError leaves a handler, and the right errno does."""

import ast
import errno
import inspect
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError, RequestContext, SetattrFields

from ibpfs import errors, fuse_ops
from ibpfs.config import VolumePaths, read_key_file
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.fuse_errors import ERRNO, Deadlines, answered, errno_of, is_news
from ibpfs.fuse_ops import INFO_ATTRIBUTE, Operations
from ibpfs.mount import open_volume
from ibpfs.mount_options import MountOptions, parse_mount_options

from .cache.stack import run_depot

ROOT = 1
CTX = RequestContext()
HANDLERS = [
    name for name, method in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction) if name[0] != "_"
]


class Broken:
    """Whatever is asked of it fails as nobody expects."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    def __getitem__(self, number: object) -> Any:
        raise ZeroDivisionError(number)

    def __contains__(self, item: object) -> bool:
        raise ZeroDivisionError(item)


@asynccontextmanager
async def operations(tmp_path: Path, *words: str) -> AsyncIterator[Operations]:
    """A volume whose only depot never answers: names and new bytes are at hand all the same."""
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=["ibp://127.0.0.1:1"], owner=(0, 0))
    options = parse_mount_options(words)
    async with open_volume(paths, read_key_file(paths.key), options) as volume:
        ops = Operations(volume.names, volume.parts.files, options, volume.services.describe)
        yield ops
        ops.left()


async def refused(code: int, call: Any) -> None:
    with pytest.raises(FUSEError) as error:
        await call
    assert error.value.errno == code


def test_every_handler_is_ours() -> None:
    assert len(HANDLERS) >= 29
    for name in HANDLERS:
        assert getattr(Operations, name) is not getattr(pyfuse3.Operations, name), name


@pytest.mark.parametrize("name", HANDLERS)
async def test_an_unexpected_exception_is_eio_and_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    ops = Operations(Broken(), Broken(), MountOptions(sync="close"), Broken())  # type: ignore[arg-type]
    for attribute in vars(ops):
        if attribute.startswith("_"):
            setattr(ops, attribute, Broken())
    handler = getattr(ops, name)
    arguments: list[Any] = [CTX if one == "ctx" else 1 for one in inspect.signature(handler).parameters]
    if name == "forget":
        await ops.forget([(1, 1)])
    elif name in ("access", "poll"):  # not asked for, by choice
        await refused(errno.ENOSYS, handler(*arguments))
        return
    elif name == "setattr":
        await refused(errno.EIO, ops.setattr(1, pyfuse3.EntryAttributes(), SetattrFields(), None, CTX))
    else:
        await refused(errno.EIO, handler(*arguments))
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_every_error_has_an_errno() -> None:
    ours = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.IbpfsError)]
    assert len(ours) >= 15
    for kind in ours:
        assert errno_of(kind("text"), "read") > 0
    assert errno_of(DepotUnreachable("gone"), "read") == errno.EIO
    assert errno_of(ExceptionGroup("", [errors.NoSpace("full")]), "write") == errno.ENOSPC
    assert set(ERRNO.values()) >= {errno.ENOENT, errno.ENOSPC, errno.EIO, errno.ENODATA}


async def test_a_deadline_is_eio(caplog: pytest.LogCaptureFixture, autojump_clock: object) -> None:
    ops = Operations(Broken(), Broken(), MountOptions(deadline=2.0), Broken())  # type: ignore[arg-type]
    assert ops.deadlines == Deadlines(2.0, 2.0)

    class Slow:
        def read_now(self, ino: int, offset: int, size: int) -> None:
            return

        async def read(self, *_: int) -> bytes:
            await trio.sleep(3600)
            return b""

    class OneFile:
        def __getitem__(self, _: int) -> Any:
            return type("OpenFile", (), {"ino": 1, "touched": True})

    ops._files, ops._open = Slow(), OneFile()  # type: ignore[assignment]
    began = trio.current_time()
    await refused(errno.EIO, ops.read(1, 0, 4096))
    assert trio.current_time() - began == pytest.approx(2.0)
    assert "deadline" in caplog.text


@pytest.mark.parametrize(("limit", "seconds"), [("read", 20.0), ("fsync", 30.0)])
@pytest.mark.parametrize("chosen", [None, 1.5])
async def test_each_kind_of_request_has_its_deadline(
    limit: str, seconds: float, chosen: float | None, autojump_clock: object
) -> None:
    class Stuck:
        deadlines = Deadlines.of(MountOptions(deadline=chosen))

        @answered(limit)
        async def request(self) -> None:
            await trio.sleep_forever()

    began = trio.current_time()
    await refused(errno.EIO, Stuck().request())
    assert trio.current_time() - began == pytest.approx(chosen or seconds)


def test_that_the_kernel_waits_no_more_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("pyfuse3")
    log.addFilter(is_news)
    try:
        for code in (errno.ENOENT, errno.EIO):
            log.error("fuse_release(): fuse_reply_* failed with %s", os.strerror(code))
        log.error("something else: %s", os.strerror(errno.ENOENT))
    finally:
        log.removeFilter(is_news)
    assert [record.args for record in caplog.records] == [(os.strerror(errno.EIO),), (os.strerror(errno.ENOENT),)]


def test_what_waits_has_a_deadline() -> None:
    """But `write`, which the cache bounds."""
    (operations_class,) = (
        one for one in ast.parse(inspect.getsource(fuse_ops)).body
        if isinstance(one, ast.ClassDef) and one.name == "Operations"
    )  # fmt: skip
    handlers = [one for one in operations_class.body if isinstance(one, ast.AsyncFunctionDef)]
    waits = {one.name for one in handlers if any(isinstance(node, ast.Await | ast.AsyncWith) for node in ast.walk(one))}
    bounded = {one.name for one in handlers for mark in one.decorator_list if isinstance(mark, ast.Call) and mark.args}
    assert waits - {"write", "_make_sure"} <= bounded
    assert bounded >= {"read", "fsync", "fsyncdir", "flush"}


def test_a_depot_that_swallows_everything_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[f"unix:{tmp_path}/depot/depot.sock"], owner=(0, 0))

    async def store() -> None:
        async with run_depot(tmp_path / "depot"), open_volume(paths, read_key_file(paths.key)) as volume:
            ino = volume.names.create(ROOT, b"file", NewInode(0o100600, 0, 0)).ino
            await volume.parts.files.write(ino, 0, b"x" * 1000)
            await volume.parts.files.drop()

    async def wait_in_vain() -> None:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        with listening:
            (tmp_path / "depot" / "depot.sock").unlink(missing_ok=True)
            await listening.bind(str(tmp_path / "depot" / "depot.sock"))
            listening.listen(100)
            async with open_volume(paths, read_key_file(paths.key)) as volume:
                ops = Operations(volume.names, volume.parts.files, MountOptions(), volume.services.describe)
                entry = await ops.lookup(ROOT, b"file", CTX)
                opened = await ops.open(entry.st_ino, os.O_RDWR, CTX)
                assert await refused_after(ops.read(opened.fh, 0, 100)) == pytest.approx(20, abs=0.1)
                began = trio.current_time()
                await ops.fsync(opened.fh, True)
                assert await ops.write(opened.fh, 0, b"y") == 1
                assert trio.current_time() - began < 0.5
                assert await refused_after(ops.fsync(opened.fh, True)) == pytest.approx(30, abs=0.1)
                await ops.release(opened.fh)
                ops.left()

    trio.run(store)
    trio.run(wait_in_vain, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def refused_after(call: Any) -> float:
    """Seconds until a request is answered with EIO."""
    began = trio.current_time()
    await refused(errno.EIO, call)
    return trio.current_time() - began


async def test_names_and_bytes_without_any_depot(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        opened, entry = await ops.create(ROOT, b"file", 0o640, os.O_RDWR, CTX)
        assert stat.S_ISREG(entry.st_mode)
        assert await ops.write(opened.fh, 5, b"hello") == 5
        assert await ops.read(opened.fh, 0, 100) == bytes(5) + b"hello"
        found = await ops.lookup(ROOT, b"file", CTX)
        assert (found.st_ino, found.st_size, found.st_blocks) == (entry.st_ino, 10, 1)
        await refused(errno.EEXIST, ops.create(ROOT, b"file", 0o640, os.O_RDWR, CTX))
        await refused(errno.ENOTDIR, ops.create(entry.st_ino, b"x", 0o640, os.O_RDWR, CTX))
        await refused(errno.ENAMETOOLONG, ops.mkdir(ROOT, b"x" * 256, 0o755, CTX))
        await ops.release(opened.fh)


async def test_a_missing_name_may_be_remembered(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        nothing = await ops.lookup(ROOT, b"missing", CTX)
        assert nothing.st_ino == 0
        assert nothing.entry_timeout > 0
        await refused(errno.ENOENT, ops.lookup(77, b"..", CTX))
        assert (await ops.lookup(ROOT, b"..", CTX)).st_ino == ROOT


async def test_an_unlinked_file_lives_while_the_kernel_knows_it(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        opened, entry = await ops.create(ROOT, b"file", 0o600, os.O_RDWR, CTX)
        await ops.write(opened.fh, 0, b"text")
        assert (await ops.lookup(entry.st_ino, b".", CTX)).st_ino == entry.st_ino
        await ops.unlink(ROOT, b"file", CTX)
        await refused(errno.ENOENT, ops.lookup(entry.st_ino, b".", CTX))
        assert await ops.read(opened.fh, 0, 10) == b"text"
        await ops.release(opened.fh)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await ops.getattr(entry.st_ino, CTX)).st_nlink == 0
        await ops.forget([(entry.st_ino, 2)])
        await wait_until_gone(ops, entry.st_ino)


async def wait_until_gone(ops: Operations, ino: pyfuse3.InodeT) -> None:
    with trio.fail_after(20), pytest.raises(FUSEError) as raised:
        while await ops.getattr(ino, CTX):
            await trio.sleep(0.01)
    assert raised.value.errno == errno.ENOENT


async def test_a_removed_directory_too(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        entry = await ops.mkdir(ROOT, b"dir", 0o755, CTX)
        await ops.lookup(ROOT, b"dir", CTX)
        await ops.rmdir(ROOT, b"dir", CTX)
        assert (await ops.getattr(entry.st_ino, CTX)).st_nlink == 0
        await ops.forget([(entry.st_ino, 1)])
        assert (await ops.getattr(entry.st_ino, CTX)).st_nlink == 0
        await ops.forget([(entry.st_ino, 1)])
        await wait_until_gone(ops, entry.st_ino)


async def test_open_with_truncation(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        opened, entry = await ops.create(ROOT, b"file", 0o600, os.O_RDWR, CTX)
        await ops.write(opened.fh, 0, b"text")
        before = (await ops.getattr(entry.st_ino, CTX)).st_mtime_ns
        again = await ops.open(entry.st_ino, os.O_RDWR | os.O_TRUNC, CTX)
        assert again.fh != opened.fh
        after = await ops.getattr(entry.st_ino, CTX)
        assert (after.st_size, after.st_blocks) == (0, 0)
        assert after.st_mtime_ns > before
        await ops.release(opened.fh)
        await ops.release(again.fh)


@pytest.mark.parametrize(
    ("word", "moves"), [("relatime", [True, False]), ("noatime", [False, False]), ("strictatime", [True, False])]
)
async def test_access_times(tmp_path: Path, word: str, moves: list[bool]) -> None:
    async with operations(tmp_path, word) as ops:
        opened, entry = await ops.create(ROOT, b"file", 0o600, os.O_RDWR, CTX)
        await ops.write(opened.fh, 0, b"text")
        for moved in moves:
            before = (await ops.getattr(entry.st_ino, CTX)).st_atime_ns
            reader = await ops.open(entry.st_ino, os.O_RDONLY, CTX)
            await ops.read(reader.fh, 0, 4)
            await ops.release(reader.fh)
            after = await ops.getattr(entry.st_ino, CTX)
            assert (after.st_atime_ns > before) == moved
            assert after.st_ctime_ns <= after.st_mtime_ns or not moved
        await ops.release(opened.fh)


async def test_attributes(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        await refused(errno.ENODATA, ops.getxattr(ROOT, b"user.none", CTX))
        await ops.setxattr(ROOT, b"user.some", b"value", CTX)
        assert await ops.getxattr(ROOT, b"user.some", CTX) == b"value"
        await ops.setxattr(ROOT, b"trusted.some", b"value", CTX)
        assert set(await ops.listxattr(ROOT, CTX)) == {b"user.some", b"trusted.some"}
        await ops.removexattr(ROOT, b"user.some", CTX)
        await refused(errno.ENODATA, ops.removexattr(ROOT, b"user.some", CTX))
        assert b'"size": 0' in await ops.getxattr(ROOT, INFO_ATTRIBUTE, CTX)
        await refused(errno.EPERM, ops.setxattr(ROOT, INFO_ATTRIBUTE, b"", CTX))
        await refused(errno.EOPNOTSUPP, ops.setxattr(ROOT, b"system.other", b"", CTX))
        for _ in range(2):
            await refused(errno.ENODATA, ops.getxattr(ROOT, b"security.capability", CTX))
        await ops.setxattr(ROOT, b"security.capability", b"cap", CTX)
        assert await ops.getxattr(ROOT, b"security.capability", CTX) == b"cap"


async def test_flush_is_never_asked_for_again(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        opened, _ = await ops.create(ROOT, b"file", 0o600, os.O_RDWR, CTX)
        await refused(errno.ENOSYS, ops.flush(opened.fh))
        await ops.release(opened.fh)


async def test_fsync_without_depots_is_eio_in_time(tmp_path: Path) -> None:
    async with operations(tmp_path, "deadline=0.2") as ops:
        opened, _ = await ops.create(ROOT, b"file", 0o600, os.O_RDWR, CTX)
        await ops.write(opened.fh, 0, b"text")
        await refused(errno.EIO, ops.fsync(opened.fh, True))
        await ops.release(opened.fh)


async def test_room_is_told(tmp_path: Path) -> None:
    async with operations(tmp_path) as ops:
        room = await ops.statfs(CTX)
        assert room.f_namemax == 255
        assert room.f_bfree == room.f_blocks == 0  # no depot has told how much it can take
