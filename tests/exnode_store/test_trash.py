"""The trash: what is kept and what is not, trees that come back, in the order in which it goes."""

import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.errors import InvalidArgument, NameExists, NotFound
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, always
from ibpfs.exnode_store.inodes import InodeTable
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.restoring import Restoring
from ibpfs.exnode_store.trash import KEEP

DIR, FILE, LINK = stat.S_IFDIR | 0o750, stat.S_IFREG | 0o640, stat.S_IFLNK | 0o777
MINUTE = 60 * 1_000_000_000


class Scene:
    def __init__(self, paths: VolumePaths) -> None:
        self.paths = paths
        self.ticks = count()
        self.past = 1_700_000_000 * 1_000_000_000
        self.open()

    def open(self) -> None:
        self.db = Database(self.paths.store)
        self.names = Namespace(self.db, self.now, lambda _, __: 0)
        self.trash = self.names.trash
        self.restoring = Restoring(self.db, self.names, InodeTable(self.db, self.now))

    def again(self) -> None:
        self.db.close()
        self.open()

    def now(self) -> int:
        return self.past + next(self.ticks)

    def wait(self, minutes: float) -> None:
        self.past += int(minutes * MINUTE)

    def make(self, path: str, mode: int = FILE) -> int:
        *above, name = path.split("/")
        target = b"somewhere" if mode == LINK else None
        return self.names.create(self.at("/".join(above)), name.encode(), NewInode(mode, 1, 2, target=target)).ino

    def at(self, path: str) -> int:
        return self.restoring.directory_at(path.encode())

    def delete(self, path: str) -> None:
        """As rm -rf does; what nothing holds is reaped."""
        *above, name = path.split("/")
        parent = self.at("/".join(above))
        inode = self.names.lookup(parent, name.encode())
        if inode.is_directory:
            for _, inner, _ in self.names.readdir(inode.ino, 2, 1000):
                self.delete(f"{path}/{inner.decode()}")
            lost = self.names.rmdir(parent, name.encode())
        else:
            lost = self.names.unlink(parent, name.encode())
        if not lost.nlink and not self.trash.holds(lost.ino):
            assert self.names.reap(lost.ino)

    def tree(self, ino: int = 1, path: str = "") -> list[tuple[object, ...]]:
        """Everything there is, but times and versions."""
        found: list[tuple[object, ...]] = []
        for _, name, inode in sorted(self.names.readdir(ino, 2, 10_000), key=lambda one: one[1]):
            xattrs = [(one, self.names.getxattr(inode.ino, one)) for one in self.names.listxattr(inode.ino)]
            place = f"{path}/{name.decode()}"
            found.append((place, inode.ino, inode.mode, inode.nlink, inode.uid, inode.gid, inode.birth_ns, xattrs))
            if inode.is_directory:
                found += self.tree(inode.ino, place)
        return found

    def restore(self, path: str, to: tuple[int, bytes] | None = None) -> int:
        return sum(len(places) for places in self.restoring.restore(self.restoring.find(path.encode()), to))

    def listed(self, *, every: bool = False) -> list[str]:
        found, after = [], 0
        while True:
            page, last = self.restoring.page(after, every=every)
            found += [one.path.decode() for one in page]
            if last is None:
                return found
            after = last

    def check(self) -> None:
        self.db.close()
        said: list[str] = []
        checkup = Checkup(self.paths, always, said.append)
        check_store(checkup)
        assert checkup.outcome.corrected + checkup.outcome.left == 0, said
        self.open()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, owner=(0, 0))
    one = Scene(paths)
    yield one
    one.db.close()


def plant(scene: Scene) -> None:
    scene.make("top", DIR)
    scene.make("top/inner", DIR)
    scene.make("top/empty", DIR)
    scene.make("top/inner/link", LINK)
    ino = scene.make("top/inner/file")
    scene.names.link(ino, scene.at("top"), b"second")
    scene.names.setxattr(ino, b"user.colour", b"blue")
    scene.names.setxattr(scene.at("top/inner"), b"user.shape", b"round")


def test_a_tree_comes_back_as_it_was(scene: Scene) -> None:
    plant(scene)
    scene.wait(11)
    before, files = scene.tree(), scene.db.files
    links = scene.names.inode(1).nlink
    scene.delete("top")
    assert scene.tree() == []
    assert (scene.db.files, scene.names.inode(1).nlink) == (1, 2)
    assert scene.names.unlinked() == []
    assert scene.listed() == ["/top"]
    assert sorted(scene.listed(every=True)) == [
        "/top", "/top/empty", "/top/inner", "/top/inner/file", "/top/inner/link", "/top/second",
    ]  # fmt: skip
    scene.check()
    assert scene.restore("/top") == 6
    assert scene.tree() == before
    assert (scene.db.files, scene.names.inode(1).nlink) == (files, links)
    assert scene.listed(every=True) == []
    scene.check()


def test_what_lived_for_less_than_ten_minutes_is_not_kept(scene: Scene) -> None:
    scene.make("old")
    scene.make("dir", DIR)
    scene.wait(9.9)
    scene.make("young")
    scene.delete("dir")
    scene.wait(0.2)
    scene.delete("young")
    scene.delete("old")
    assert scene.listed() == ["/old"]
    scene.make("young dir", DIR)
    old = scene.make("in the young one")
    scene.wait(11)
    scene.make("young dir 2", DIR)
    scene.names.rename(1, b"in the young one", scene.at("young dir 2"), b"file")
    scene.delete("young dir 2")  # kept for what is in it
    assert scene.restore("young dir 2") == 2
    assert scene.names.lookup(scene.at("young dir 2"), b"file").ino == old


def test_one_file_comes_back_into_what_is_there_of_its_path(scene: Scene) -> None:
    plant(scene)
    scene.wait(11)
    scene.delete("top")
    assert scene.restore("top/inner/file") == 3  # with its directories, without what else was in them
    assert [one[0] for one in scene.tree()] == ["/top", "/top/inner", "/top/inner/file"]
    scene.check()
    scene.delete("top")
    scene.make("top", DIR)
    assert scene.restore("top/inner/link") == 2
    assert [one[0] for one in scene.tree()] == ["/top", "/top/inner", "/top/inner/link"]
    with pytest.raises(NotFound):
        scene.restoring.find(b"/top/none")
    with pytest.raises(NotFound):
        scene.restoring.find(b"/")


def test_the_youngest_of_a_path_comes_first_and_nothing_is_replaced(scene: Scene) -> None:
    inos = []
    for _ in range(3):
        inos.append(scene.make("file"))
        scene.wait(11)
        scene.delete("file")
    assert scene.listed() == ["/file"] * 3
    scene.restore("file")
    assert scene.names.lookup(1, b"file").ino == inos[2]
    with pytest.raises(NameExists):
        scene.restore("file")
    scene.restore("file", (1, b"other"))
    assert scene.names.lookup(1, b"other").ino == inos[1]
    page, _ = scene.restoring.page(0, every=False)
    list(scene.restoring.restore(scene.restoring.numbered(page[0].id), (1, b"third")))
    assert scene.names.lookup(1, b"third").ino == inos[0]
    with pytest.raises(NotFound):
        scene.restoring.numbered(page[0].id)
    scene.check()


def test_a_restore_that_was_cut_short_goes_on(scene: Scene) -> None:
    scene.make("top", DIR)
    for number in range(450):
        scene.make(f"top/{number:03}")
    scene.make("top/young")
    scene.wait(11)
    before = scene.tree()
    scene.delete("top")
    steps = scene.restoring.restore(scene.restoring.find(b"top"))
    assert [len(next(steps)) for _ in range(2)] == [1, 200]
    scene.again()
    scene.check()
    assert sum(map(len, scene.restoring.restore_below(scene.at("top")))) == 251
    assert scene.tree() == before


def test_the_oldest_goes_first_and_what_was_kept_long_enough(scene: Scene) -> None:
    inos = []
    for day in range(5):
        inos.append(scene.make(f"file {day}"))
        scene.wait(11)
        scene.delete(f"file {day}")
        scene.wait(1440)
    assert scene.trash.let_go(2) == inos[:2]
    assert scene.trash.expired(10) == []
    scene.wait(KEEP / 60 - 3 * 1440 + 5)
    assert scene.trash.expired(10) == [inos[2]]
    scene.trash.set_keep(0)
    assert scene.trash.expired(10) == inos[3:]
    assert scene.trash.expired(10) == []
    assert scene.trash.is_empty
    assert sorted(scene.names.unlinked()) == inos
    scene.make("unkept")
    scene.wait(11)
    scene.delete("unkept")
    assert scene.trash.is_empty
    scene.again()
    assert scene.trash.keep == 0
    with pytest.raises(InvalidArgument):
        scene.trash.set_keep(-1)


def test_a_name_of_a_file_that_has_others(scene: Scene) -> None:
    ino = scene.make("one")
    scene.names.link(ino, 1, b"two")
    scene.wait(11)
    scene.delete("one")
    assert scene.trash.holds(ino)
    assert scene.names.inode(ino).nlink == 1
    assert scene.trash.bytes() == 0
    scene.restore("one")
    assert scene.names.inode(ino).nlink == 2
    scene.delete("one")
    scene.trash.let_go(10)
    assert scene.names.inode(ino).nlink == 1
    scene.check()


def test_a_replaced_file_is_not_kept(scene: Scene) -> None:
    scene.make("one")
    scene.make("two")
    scene.wait(11)
    lost = scene.names.rename(1, b"one", 1, b"two")
    assert lost is not None
    assert not scene.trash.holds(lost.ino)


def test_what_is_in_a_directory_that_is_gone_needs_a_place(scene: Scene) -> None:
    plant(scene)
    scene.wait(11)
    scene.delete("top")
    scene.db.execute("DELETE FROM trash WHERE name IN (x'746f70', x'696e6e6572')")
    link = next(one for one in scene.restoring.page(0, every=True)[0] if one.path.endswith(b"link"))
    assert link.path == b"?/link"
    with pytest.raises(NotFound, match="--to"):
        list(scene.restoring.restore(scene.restoring.numbered(link.id)))
    list(scene.restoring.restore(scene.restoring.numbered(link.id), (1, b"back")))
    assert scene.names.readlink(scene.names.lookup(1, b"back").ino) == b"somewhere"


def test_who_does_not_know_it_refuses_the_volume(scene: Scene) -> None:
    scene.make("file")
    assert "trash" not in scene.db.facts["features"]
    scene.wait(11)
    scene.delete("file")
    assert "trash" in scene.db.facts["features"]


def test_fsck_takes_out_what_cannot_come_back(scene: Scene) -> None:
    plant(scene)
    scene.wait(11)
    scene.delete("top")
    scene.db.execute("DELETE FROM inodes WHERE ino = (SELECT ino FROM trash WHERE name = x'656d707479')")
    scene.db.close()
    said: list[str] = []
    checkup = Checkup(scene.paths, always, said.append)
    check_store(checkup)
    assert checkup.outcome.corrected == 1
    assert any("empty in the trash: names inode" in line for line in said), said
    scene.open()
    assert scene.restore("top") == 5
