"""Snapshots: what they show while everything changes below them, what a crash leaves of one, what deletion frees."""

import stat
from pathlib import Path

import pytest

from ibpfs.errors import InvalidArgument, NameExists, NotFound, VolumeError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, always, if_safe
from ibpfs.exnode_store.snapshot_file import Copy
from ibpfs.exnode_store.snapshots import MOST, UNFINISHED, Snapshots

from .ledgers import Volume


class Scene(Volume):
    def open(self) -> None:
        super().open()
        self.snapshots = Snapshots(self.db, self.ledger, self.paths.snapshots)
        self.snapshots.recover()

    def again(self) -> None:
        self.snapshots.close()
        super().again()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.paths.snapshots.iterdir()) if self.paths.snapshots.is_dir() else []

    def shown(self, name: str, ino: int) -> list[tuple[int, int, bytes, int]]:
        tree = self.snapshots.tree(self.snapshots.find(name).id)
        return [(one.start, one.stop, one.source.form.slice_id, one.offset) for one in tree.extents(ino)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "volume")


async def test_a_snapshot_shows_what_was_there(scene: Scene) -> None:
    (ino, other, _), segment = scene.inos, scene.segment()
    directory = scene.names.create(1, b"dir", NewInode(stat.S_IFDIR | 0o750, 1, 2))
    scene.names.create(directory.ino, b"link", NewInode(stat.S_IFLNK | 0o777, 1, 2, target=b"../0"))
    scene.names.setxattr(ino, b"user.colour", b"blue")
    first, second = scene.write(ino, 0, 10, segment), scene.write(ino, 5, 10, segment)
    await scene.snapshots.create("one")
    before = scene.shown("one", ino)
    assert before == [(0, 5, first, 0), (5, 15, second, 0)]
    scene.write(ino, 0, 20, segment)
    scene.write(other, 0, 10, segment)
    await scene.snapshots.create("two")
    for name, in_directory in ((b"0", 1), (b"1", 1), (b"link", directory.ino)):
        inode = scene.names.unlink(in_directory, name)
        while not scene.names.reap(inode.ino):
            pass
    scene.names.rmdir(1, b"dir")
    scene.release()
    scene.again()
    assert scene.shown("one", ino) == before
    assert len(scene.shown("two", other)) == 1
    assert scene.shown("one", other) == []
    tree = scene.snapshots.tree(scene.snapshots.find("one").id)
    assert [name for _, name, _ in tree.names.readdir(1, 2, 10)] == [b"0", b"1", b"2", b"dir"]
    assert tree.names.getxattr(ino, b"user.colour") == b"blue"
    assert tree.names.readlink(tree.names.lookup(directory.ino, b"link").ino) == b"../0"
    assert stat.S_IMODE(tree.names.lookup(1, b"dir").mode) == 0o750


async def test_bytes_are_found_where_compaction_has_put_them(scene: Scene) -> None:
    (ino, *_), old, new = scene.inos, scene.segment(), scene.segment()
    scene.write(ino, 0, 10, old)
    await scene.snapshots.create("one")
    scene.ledger.truncate(ino, 0, 99, spooled=False)
    scene.ledger.close_segment(old)
    tree = scene.snapshots.tree(1)
    assert [one.source.segment for one in tree.extents(ino)] == [old]
    runs = scene.ledger.stored_slices(old)
    scene.ledger.move(new, runs[0].length, [(runs[0].row, 0)])
    assert [one.source.segment for one in tree.extents(ino)] == [new]
    assert scene.ledger.segment_length(old) == 0


async def test_deletion_frees_what_only_it_kept(scene: Scene) -> None:
    (ino, *_), segment = scene.inos, scene.segment()
    scene.write(ino, 0, 100, segment)
    await scene.snapshots.create("one")
    scene.write(ino, 0, 100, segment)
    await scene.snapshots.create("two")
    scene.write(ino, 0, 100, segment)
    assert len(scene.standing()) == 3
    stored = scene.ledger.live_bytes() // 3
    assert await scene.snapshots.own_bytes() == {1: stored, 2: stored}
    await scene.snapshots.delete("one")
    scene.release()
    assert len(scene.standing()) == 2
    with pytest.raises(NotFound):
        scene.shown("one", ino)
    await scene.snapshots.delete("two")
    scene.release()
    assert scene.standing() == scene.slices_of(ino)
    assert scene.files() == []
    scene.check()


async def test_names(scene: Scene) -> None:
    await scene.snapshots.create("one")
    with pytest.raises(NameExists):
        await scene.snapshots.create("one")
    for name in ("", ".", "..", "a/b"):
        with pytest.raises(InvalidArgument):
            await scene.snapshots.create(name)
    with pytest.raises(NotFound):
        await scene.snapshots.delete("two")
    assert [pin.name for pin in scene.snapshots.all()] == ["one"]
    assert scene.files() == ["1.sqlite"]


async def test_a_number_is_used_again_as_late_as_can_be(scene: Scene) -> None:
    await scene.snapshots.create("one")
    await scene.snapshots.delete("one")
    assert (await scene.snapshots.create("two"))["number"] == 2
    scene.db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'pins'", (MOST,))
    assert (await scene.snapshots.create("three"))["number"] == 1
    assert (await scene.snapshots.create("four"))["number"] == 3


async def test_a_crash_while_one_is_made_leaves_none(scene: Scene) -> None:
    (ino, *_), segment = scene.inos, scene.segment()
    scene.write(ino, 0, 10, segment)
    scene.paths.snapshots.mkdir()
    pin = scene.ledger.add_pin(UNFINISHED, "one", 1)  # after the pin, and in the middle of the file
    copy = Copy(scene.paths.snapshots / "1.new", scene.paths.store)
    assert copy.seq == pin.pinned
    copy.stop()
    scene.again()
    assert (scene.snapshots.all(), scene.files()) == ([], [])
    pin = scene.ledger.add_pin(UNFINISHED, "one", 2)  # when the file stands
    copy = Copy(scene.paths.snapshots / "2.new", scene.paths.store)
    copy.finish({})
    (scene.paths.snapshots / "2.new").rename(scene.paths.snapshots / "2.sqlite")
    scene.again()
    assert (scene.snapshots.all(), scene.files()) == ([], [])
    scene.ledger.truncate(ino, 0, 99, spooled=False)
    scene.release()
    assert scene.standing() == set()


async def test_a_crash_while_one_is_deleted_leaves_none(scene: Scene) -> None:
    await scene.snapshots.create("one")
    scene.ledger.drop_pin(1)
    scene.again()
    assert (scene.snapshots.all(), scene.files()) == ([], [])


async def test_one_that_cannot_be_made_leaves_nothing(scene: Scene) -> None:
    scene.paths.snapshots.mkdir()
    (scene.paths.snapshots / "1.sqlite").mkdir()  # nothing can take its place
    with pytest.raises(OSError, match="directory"):
        await scene.snapshots.create("one")
    assert scene.ledger.newest_pin == -1
    assert scene.files() == ["1.sqlite"]


async def test_fsck_says_which_cannot_be_read(scene: Scene) -> None:
    (ino, *_), segment = scene.inos, scene.segment()
    scene.write(ino, 0, 10, segment)
    await scene.snapshots.create("one")
    await scene.snapshots.create("two")
    scene.check()
    (scene.paths.snapshots / "1.sqlite").write_bytes(b"rubbish" * 1000)
    scene.snapshots.close()
    with pytest.raises(VolumeError):
        scene.snapshots.tree(1)
    assert scene.snapshots.describe(scene.snapshots.find("one"))["trouble"]
    for consent, corrected, left in ((if_safe, 0, 1), (always, 1, 0)):
        scene.again()
        scene.db.close()
        said: list[str] = []
        checkup = Checkup(scene.paths, consent, said.append)
        check_store(checkup)
        assert (checkup.outcome.corrected, checkup.outcome.left) == (corrected, left), said
        assert any(line.startswith("snapshot one: ") for line in said)
        scene.open()
    assert [pin.name for pin in scene.snapshots.all()] == ["two"]
