"""What is stored comes under the policy of its file: segments of one policy as they are, of several taken apart."""

from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.policy_walks import PolicyWalks
from ibpfs.exnode_store.settling import Settling
from tests.cache.stack import Stack, run_depot, run_stack


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths)
    return paths


def settling_of(now: Stack) -> Settling:
    walks = PolicyWalks(now.db, now.transfer.policies)
    walks.changed = now.flusher.policies_changed
    return Settling(walks, now.ledger, now.depots, now.transfer, now.warmer)


def policies_of(now: Stack, ino: int) -> set[int]:
    """The policies of the segments that hold a file."""
    return {now.ledger.policy_of(piece.source.segment) for piece in now.ledger.extents(ino)}


async def test_copies_that_are_too_many_go_unless_links_may_name_them(tmp_path: Path) -> None:
    volume = VolumePaths(tmp_path / "volume")
    addresses = [f"unix:{tmp_path}/{name}/depot.sock" for name in ("one", "two")]
    create_volume(volume, depots=addresses, copies=2)
    async with run_depot(tmp_path / "one"), run_depot(tmp_path / "two"), run_stack(volume) as now:
        await now.depots.wait_for_all(5)
        segments = []
        for name in (b"ours", b"shared"):
            ino = now.create(name).ino
            await now.files.write(ino, 0, name * 1000)
            await now.files.flush()
            await now.transfer.close_old(every=True)
            segments += [piece.source.segment for piece in now.ledger.extents(ino)]
        now.ledger.hold_segments("share", "link", [segments[1]])
        settling = settling_of(now)
        settling.walks.set(1, {"copies": "1"}, recursive=True)
        assert await settling.go_on()
        assert [len(now.ledger.replicas(segment)) for segment in segments] == [1, 2]


async def test_segments_follow_the_policies_of_what_lives_in_them(volume: VolumePaths) -> None:
    async with run_depot(volume.depot), run_stack(volume) as now:
        await now.depots.wait_for_any(5)
        tree, other = (now.create(name, 0o040755).ino for name in (b"tree", b"other"))
        alone, together, beside, dirty = (
            now.names.create(parent, name, NewInode(0o100644, 0, 0)).ino
            for parent, name in ((tree, b"alone"), (tree, b"together"), (other, b"beside"), (tree, b"dirty"))
        )
        await now.files.write(alone, 0, b"alone" * 1000)
        await now.files.flush()
        await now.transfer.close_old(every=True)
        await now.files.write(together, 0, b"together" * 1000)
        await now.files.write(beside, 0, b"beside" * 1000)
        await now.files.flush()
        assert len({piece.source.segment for ino in (together, beside) for piece in now.ledger.extents(ino)}) == 1
        settling = settling_of(now)
        (before,) = (piece.source.segment for piece in now.ledger.extents(alone))

        policy = settling.walks.set(tree, {"labels": "site"}, recursive=True)
        await now.files.write(dirty, 0, b"dirty" * 1000)
        assert await settling_of(now).go_on()  # as whoever owns the volume next
        await now.files.flush()
        assert policies_of(now, alone) == policies_of(now, together) == policies_of(now, dirty) == {policy.id}
        assert policies_of(now, beside) == {1}
        assert [piece.source.segment for piece in now.ledger.extents(alone)] == [before]  # not a byte was moved
        assert settling.walks.to_settle() is None

        await now.files.drop()
        for ino, word in ((alone, b"alone"), (together, b"together"), (beside, b"beside"), (dirty, b"dirty")):
            assert await now.files.read(ino, 0, 10_000) == word * 1000
