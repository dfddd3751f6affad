"""The volume's lock: who waits for whom, and who is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from ibpfs.config import VolumePaths
from ibpfs.errors import VolumeBusy
from ibpfs.ownership import DRAINING, MOUNTED, is_dying, owned, owner_of


@pytest.fixture
def paths(tmp_path: Path) -> VolumePaths:
    return VolumePaths(tmp_path)


async def test_the_owner_tells_what_it_is_at(paths: VolumePaths) -> None:
    async with owned(paths) as ownership:
        ownership.tell(MOUNTED, Path("/mnt/x"))
        assert owner_of(paths)["mountpoint"] == "/mnt/x"
        assert owner_of(paths)["state"] == MOUNTED
        ownership.tell(DRAINING)
        assert owner_of(paths)["mountpoint"] is None
    assert paths.lock.stat().st_mode & 0o777 == 0o600


async def test_a_draining_owner_is_waited_for(
    paths: VolumePaths, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    order: list[str] = []

    async def second() -> None:
        async with owned(paths):
            order.append("second")

    async with trio.open_nursery() as nursery, owned(paths) as ownership:
        ownership.tell(MOUNTED, Path("/mnt/x"))
        nursery.start_soon(second)
        await trio.sleep(1)  # just unmounted, and not aware of it yet
        ownership.tell(DRAINING)
        await trio.sleep(600)
        order.append("first")
    assert order == ["first", "second"]
    assert any("waiting for it" in record.message for record in caplog.records)


async def test_a_mounted_volume_is_refused(paths: VolumePaths, autojump_clock: trio.testing.MockClock) -> None:
    async with owned(paths) as ownership:
        ownership.tell(MOUNTED, Path("/mnt/x"))
        with pytest.raises(VolumeBusy, match="is mounted on /mnt/x"):
            async with owned(paths):
                pass


DYING = """
import ctypes, fcntl, json, os, sys, threading, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, json.dumps({"pid": os.getpid(), "state": "mounted", "mountpoint": "/mnt/x"}).encode())
def last() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    os._exit(0)
threading.Thread(target=last).start()
ctypes.CDLL(None).pthread_exit(None)  # the end of this thread alone
"""


async def test_a_killed_owner_is_waited_for_until_its_last_thread_is_gone(
    paths: VolumePaths, autojump_clock: trio.testing.MockClock
) -> None:
    paths.run.mkdir()
    words = [sys.executable, "-c", DYING, paths.lock]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        while not is_dying(owner_of(paths)):
            pass
        with trio.move_on_after(60):
            async with owned(paths):
                pytest.fail("two owners")
        process.stdin.close()
        process.wait()
    async with owned(paths):
        pass


async def test_a_torn_note_is_no_note(paths: VolumePaths) -> None:
    paths.run.mkdir()
    paths.lock.write_bytes(b'{"pid": 1, "sta')
    assert owner_of(paths) == {}
    async with owned(paths):
        pass
