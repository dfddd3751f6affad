"""What is copied for a link, and where to."""

from pathlib import Path
from typing import Any

import pytest

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.lors.work import connected
from ibpfs.exnode_store.sharing.share_state import Share
from tests.cache.stack import Stack, run_depot
from tests.depot.conftest import DepotProcess
from tests.test_sharing import share

from .test_keeping import StartDepot, start
from .test_lease_renewal import DATA, opened

__all__ = ["start"]


def elsewhere(depot: DepotProcess) -> str:
    """An address of it that is not seen to be this machine's."""
    return depot.address.replace("127.0.0.1", "127.1")


async def written(now: Stack, *then: str) -> int:
    """A file on the depot that is there; others are added later."""
    ino = now.create(b"f").ino
    await now.files.write(ino, 0, DATA)
    await now.files.flush()
    for address in then:
        await now.depots.add(address, {}).look()
    return ino


def places(kept: Share) -> list[list[str]]:
    return [[str(copy.depot) for copy in run.copies] for run in kept.content.runs]


async def test_what_lies_on_this_machine_alone_is_copied_for_others(tmp_path: Path, start: StartDepot) -> None:
    here, other = start("here"), start("other")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[here.address])
    async with opened(paths) as (now, one):
        ino = await written(now, elsewhere(other))
        found = await share(one, ino, copies=1)
        assert not found["this_machine_only"]
        kept = one._shares.get(found["id"])
        assert places(kept) == [[here.address, elsewhere(other)]]
        (run,) = kept.content.runs
        async with connected() as depots:
            loaded = [await depots.client(copy.depot).load(copy.read, copy.base, run.length) for copy in run.copies]
        assert loaded[0] == loaded[1]
        again = await share(one, ino, copies=1, copy_limit=0)
        assert again["this_machine_only"]
        assert places(one._shares.get(again["id"])) == [[here.address]]


async def test_what_others_reach_is_not_copied(tmp_path: Path, start: StartDepot) -> None:
    other, here = start("other"), start("here")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[elsewhere(other)])
    async with opened(paths) as (now, one):
        found = await share(one, await written(now, here.address), copies=1)
        assert not found["this_machine_only"]
        assert places(one._shares.get(found["id"])) == [[elsewhere(other)]]


async def test_a_depot_that_takes_nothing_is_passed_over(
    tmp_path: Path, start: StartDepot, caplog: pytest.LogCaptureFixture
) -> None:
    """The link is what it can be."""
    here, other = start("here"), start("other")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=[here.address])
    async with opened(paths) as (now, one):
        ino = await written(now, elsewhere(other))
        other.stop()
        found: dict[str, Any] = await share(one, ino, copies=1)
        assert found["this_machine_only"]
        assert places(one._shares.get(found["id"])) == [[here.address]]
    caplog.clear()


async def test_from_the_depot_of_the_volume_itself(tmp_path: Path, start: StartDepot) -> None:
    """The one whose address nobody else can use."""
    other = start("other")
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    async with run_depot(paths.depot), opened(paths) as (now, one):
        (depot,) = now.depots
        now.depots.moved(depot, "ibp://127.0.0.1:6714")
        found = await share(one, await written(now, elsewhere(other)), copies=1)
        assert not found["this_machine_only"]
        assert places(one._shares.get(found["id"])) == [["ibp://127.0.0.1:6714", elsewhere(other)]]
