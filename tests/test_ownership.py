"""The volume's lock: who waits for whom, and who is refused."""

from pathlib import Path

import pytest
import trio
import trio.testing

from ibpfs.config import VolumePaths
from ibpfs.errors import VolumeBusy
from ibpfs.ownership import DRAINING, MOUNTED, owned, owner_of


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


async def test_a_torn_note_is_no_note(paths: VolumePaths) -> None:
    paths.run.mkdir()
    paths.lock.write_bytes(b'{"pid": 1, "sta')
    assert owner_of(paths) == {}
    async with owned(paths):
        pass
