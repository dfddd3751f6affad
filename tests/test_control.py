"""Commands over a real socket: answers, progress, refusals, askers that hang up."""

import json
import logging
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.control import NotInUse, Progress, Refused, call
from ibpfs.ear import listening
from ibpfs.errors import NoSpace, UsageError, VolumeError

Request = Mapping[str, Any]


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    # Deeper than the 108 bytes of a Unix socket's address.
    found = VolumePaths(tmp_path / ("deep" * 20) / "volume")
    found.run.mkdir(parents=True)
    return found


async def ask(paths: VolumePaths, command: str, **arguments: Any) -> Any:
    return await trio.to_thread.run_sync(partial(call, paths, command, **arguments))


async def test_a_result_comes_back(paths: VolumePaths) -> None:
    async def double(request: Request, _: Progress) -> int:
        return int(request["number"]) * 2

    async with listening(paths.control, {"double": double}):
        assert paths.control.stat().st_mode & 0o777 == 0o600
        assert await ask(paths, "double", number=21) == 42
    assert not paths.control.exists()


async def test_progress_is_told_on_the_way(paths: VolumePaths) -> None:
    told: list[tuple[int, int, str]] = []
    heard = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def on_progress(done: int, total: int, text: str) -> None:
        told.append((done, total, text))
        token.run_sync_soon(heard.set)

    async def work(_: Request, progress: Progress) -> str:
        progress(1, 10, "a")
        progress(5, 10, "b")
        await heard.wait()
        return "done"

    async with listening(paths.control, {"work": work}):
        assert await ask(paths, "work", on_progress=on_progress) == "done"
    assert told == [(5, 10, "b")]


async def test_refusals_are_one_line_with_an_exit_code(
    paths: VolumePaths, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(_: Request, __: Progress) -> None:
        raise NoSpace("the depots have no room")

    async def wrong(_: Request, __: Progress) -> None:
        raise UsageError("ino must be a number")

    async def broken(_: Request, __: Progress) -> None:
        raise ZeroDivisionError("secret detail")

    found = {}
    async with listening(paths.control, {"full": full, "wrong": wrong, "broken": broken}):
        for name in ("full", "wrong", "broken", "unknown"):
            with pytest.raises(Refused) as refused:
                await ask(paths, name)
            found[name] = (str(refused.value), refused.value.exit)
    assert found["full"] == ("the depots have no room", 1)
    assert found["wrong"][1] == found["unknown"][1] == 2
    assert found["broken"] == ("internal error: ZeroDivisionError (see the volume's log)", 70)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_nobody_there(paths: VolumePaths) -> None:
    with pytest.raises(NotInUse):
        await ask(paths, "status")
    dead = socket.socket(socket.AF_UNIX)
    with dead:
        here = Path.cwd()
        dead.bind(f"/proc/self/fd/{_directory(paths)}/control.sock")
        assert here == Path.cwd()
    with pytest.raises(NotInUse):
        await ask(paths, "status")

    async def status(_: Request, __: Progress) -> str:
        return "here"

    async with listening(paths.control, {"status": status}):  # a dead one's socket is in the way
        assert await ask(paths, "status") == "here"


def _directory(paths: VolumePaths) -> int:
    import os

    return os.open(paths.run, os.O_PATH | os.O_DIRECTORY)


async def test_who_hangs_up_ends_the_command(paths: VolumePaths) -> None:
    ended = trio.Event()

    async def wait(_: Request, __: Progress) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with listening(paths.control, {"wait": wait}):
        stream = await trio.open_unix_socket(_short(paths))
        await stream.send_all(b'{"command": "wait"}\n')
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.aclose()
        with trio.fail_after(5):
            await ended.wait()


async def test_who_hangs_up_on_unread_progress_ends_the_command_alone(
    paths: VolumePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ibpfs.ear._PROGRESS_EVERY", 0.001)
    given_up = trio.Event()

    async def work(_: Request, progress: Progress) -> None:
        progress(1, 2, "")
        try:
            await trio.sleep_forever()
        finally:
            given_up.set()

    async with listening(paths.control, {"work": work}):
        stream = await trio.open_unix_socket(_short(paths))
        await stream.send_all(b'{"command": "work"}\n')
        await trio.lowlevel.wait_readable(stream.socket)
        await stream.aclose()  # with a line in its buffer: the owner is told of a reset, not of an end
        with trio.fail_after(10):
            await given_up.wait()
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    "junk", [b"\n", b"[]\n", b"[" * 70_000 + b"\n", b"\xff\xfe\n", b'{"command": 1}\n', b"x" * 70_000]
)
async def test_junk_is_survived(paths: VolumePaths, junk: bytes) -> None:
    async def status(_: Request, __: Progress) -> str:
        return "here"

    async with listening(paths.control, {"status": status}):
        stream = await trio.open_unix_socket(_short(paths))
        async with stream:
            await stream.send_all(junk)
            await stream.send_eof()
            with trio.fail_after(5):
                try:
                    answer = await stream.receive_some()
                except trio.BrokenResourceError:
                    answer = b""
        assert not answer or not json.loads(answer)["ok"]
        assert await ask(paths, "status") == "here"


async def test_an_owner_that_dies_is_noticed(paths: VolumePaths) -> None:
    started = trio.Event()

    async def wait(_: Request, __: Progress) -> None:
        started.set()
        await trio.sleep_forever()

    async def expect_the_end() -> None:
        with pytest.raises(VolumeError, match="ended before it answered"):
            await ask(paths, "wait")

    async with trio.open_nursery() as nursery, listening(paths.control, {"wait": wait}):
        nursery.start_soon(expect_the_end)
        await started.wait()


async def test_a_stuck_owner_is_not_waited_for(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibpfs.control.PATIENCE", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(_short(paths))
        door.listen(1)
        with pytest.raises(VolumeError, match="has not answered for"):
            await ask(paths, "status")


async def test_a_long_command_shows_that_it_lives(paths: VolumePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibpfs.control.PATIENCE", 0.5)
    monkeypatch.setattr("ibpfs.ear._ALIVE_EVERY", 0.1)

    async def work(_: Request, __: Progress) -> str:
        await trio.sleep(1.0)
        return "done"

    async with listening(paths.control, {"work": work}):
        assert await ask(paths, "work") == "done"


def _short(paths: VolumePaths) -> str:
    return f"/proc/self/fd/{_directory(paths)}/control.sock"
