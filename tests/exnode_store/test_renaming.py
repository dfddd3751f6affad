"""rename(2), case by case."""

import stat

import pytest

from ibpfs.errors import InvalidArgument, IsADirectory, NameExists, NotADirectory, NotEmpty, NotFound
from ibpfs.exnode_store.attributes import Inode, NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.renaming import EXCHANGE, NOREPLACE
from ibpfs.exnode_store.schema import ROOT_INO


class Tree:
    """Files f and g, directories d and e in the root, d/sub; by name."""

    def __init__(self, names: Namespace) -> None:
        self.names = names
        self.f, self.g = (self.make(ROOT_INO, name, stat.S_IFREG | 0o644) for name in (b"f", b"g"))
        self.d, self.e = (self.make(ROOT_INO, name, stat.S_IFDIR | 0o755) for name in (b"d", b"e"))
        self.sub = self.make(self.d, b"sub", stat.S_IFDIR | 0o755)

    def make(self, parent: int, name: bytes, mode: int) -> int:
        return self.names.create(parent, name, NewInode(mode, 0, 0)).ino

    def rename(self, name: bytes, parent: int, new_name: bytes, flags: int = 0) -> Inode | None:
        return self.names.rename(ROOT_INO, name, parent, new_name, flags)

    def listing(self, parent: int = ROOT_INO) -> dict[bytes, int]:
        return {name: inode.ino for _, name, inode in self.names.readdir(parent, 2, 100)}

    def links(self) -> tuple[int, int, int]:
        """Of the root, d and e."""
        root, d, e = (self.names.inode(ino).nlink for ino in (ROOT_INO, self.d, self.e))
        return root, d, e


@pytest.fixture
def tree(names: Namespace) -> Tree:
    return Tree(names)


def test_to_a_new_name(tree: Tree) -> None:
    before = tree.names.inode(tree.f)
    root = tree.names.inode(ROOT_INO)
    assert tree.rename(b"f", ROOT_INO, b"h") is None
    assert tree.listing() == {b"h": tree.f, b"g": tree.g, b"d": tree.d, b"e": tree.e}
    after = tree.names.inode(tree.f)
    assert (after.version, after.nlink, after.mtime_ns) == (before.version + 1, 1, before.mtime_ns)
    assert after.ctime_ns > before.ctime_ns
    assert tree.names.inode(ROOT_INO).mtime_ns > root.mtime_ns


def test_into_another_directory(tree: Tree) -> None:
    tree.rename(b"f", tree.e, b"f")
    assert tree.listing(tree.e) == {b"f": tree.f}
    assert b"f" not in tree.listing()
    assert tree.links() == (4, 3, 2)


def test_a_directory_takes_its_link_along(tree: Tree) -> None:
    tree.rename(b"d", tree.e, b"d")
    assert tree.links() == (3, 3, 3)
    assert tree.names.lookup(tree.d, b"..").ino == tree.e


def test_over_a_file(tree: Tree, db: Database) -> None:
    files = db.files
    lost = tree.rename(b"f", ROOT_INO, b"g")
    assert lost is not None
    assert (lost.ino, lost.nlink, db.files) == (tree.g, 0, files - 1)
    assert tree.names.unlinked() == [tree.g]
    assert tree.listing() == {b"g": tree.f, b"d": tree.d, b"e": tree.e}


def test_over_one_of_several_names(tree: Tree, db: Database) -> None:
    tree.names.link(tree.g, ROOT_INO, b"other")
    files = db.files
    lost = tree.rename(b"f", ROOT_INO, b"g")
    assert lost is not None
    assert (lost.nlink, db.files) == (1, files)


def test_over_an_empty_directory(tree: Tree) -> None:
    lost = tree.rename(b"d", ROOT_INO, b"e")
    assert lost is not None
    assert (lost.ino, lost.nlink) == (tree.e, 0)
    assert tree.names.inode(ROOT_INO).nlink == 3
    tree.make(ROOT_INO, b"x", stat.S_IFDIR | 0o755)
    lost = tree.rename(b"x", tree.d, b"sub")
    assert lost is not None
    assert (lost.ino, lost.nlink) == (tree.sub, 0)
    assert (tree.names.inode(ROOT_INO).nlink, tree.names.inode(tree.d).nlink) == (3, 3)


def test_over_itself(tree: Tree) -> None:
    before = tree.names.inode(tree.f)
    assert tree.rename(b"f", ROOT_INO, b"f") is None
    tree.names.link(tree.f, ROOT_INO, b"h")
    version = tree.names.inode(tree.f).version
    for flags in (0, EXCHANGE):
        assert tree.rename(b"f", ROOT_INO, b"h", flags) is None
    after = tree.names.inode(tree.f)
    assert (after.nlink, after.version, before.nlink) == (2, version, 1)
    assert {b"f", b"h"} <= tree.listing().keys()


def test_what_cannot_be_replaced(tree: Tree) -> None:
    with pytest.raises(NotADirectory):
        tree.rename(b"d", ROOT_INO, b"f")
    with pytest.raises(IsADirectory):
        tree.rename(b"f", ROOT_INO, b"e")
    with pytest.raises(NotEmpty):
        tree.rename(b"e", ROOT_INO, b"d")
    with pytest.raises(NotFound):
        tree.rename(b"none", ROOT_INO, b"f")
    with pytest.raises(NotADirectory):
        tree.rename(b"f", tree.g, b"f")


def test_noreplace(tree: Tree) -> None:
    with pytest.raises(NameExists):
        tree.rename(b"f", ROOT_INO, b"g", NOREPLACE)
    with pytest.raises(NameExists):
        tree.rename(b"f", ROOT_INO, b"f", NOREPLACE)
    tree.rename(b"f", ROOT_INO, b"h", NOREPLACE)
    assert b"h" in tree.listing()


@pytest.mark.parametrize("flags", [NOREPLACE | EXCHANGE, 4, 8])
def test_flags_that_make_no_sense(tree: Tree, flags: int) -> None:
    with pytest.raises(InvalidArgument):
        tree.rename(b"f", ROOT_INO, b"h", flags)


def test_exchange(tree: Tree) -> None:
    versions = [tree.names.inode(ino).version for ino in (tree.f, tree.g)]
    assert tree.rename(b"f", ROOT_INO, b"g", EXCHANGE) is None
    assert tree.listing() == {b"f": tree.g, b"g": tree.f, b"d": tree.d, b"e": tree.e}
    assert [tree.names.inode(ino).version for ino in (tree.f, tree.g)] == [version + 1 for version in versions]
    with pytest.raises(NotFound):
        tree.rename(b"f", ROOT_INO, b"none", EXCHANGE)


def test_exchanging_a_file_and_a_directory_moves_the_link(tree: Tree) -> None:
    tree.rename(b"f", tree.d, b"sub", EXCHANGE)
    assert tree.links() == (5, 2, 2)
    assert tree.names.lookup(tree.sub, b"..").ino == ROOT_INO
    tree.rename(b"f", tree.d, b"sub", EXCHANGE)
    assert tree.links() == (4, 3, 2)


def test_no_directory_comes_to_lie_in_itself(tree: Tree) -> None:
    with pytest.raises(InvalidArgument):
        tree.rename(b"d", tree.d, b"x")
    with pytest.raises(InvalidArgument):
        tree.rename(b"d", tree.sub, b"x")
    with pytest.raises(InvalidArgument):
        tree.names.rename(tree.d, b"sub", ROOT_INO, b"d", EXCHANGE)
    with pytest.raises(NotEmpty):
        tree.names.rename(tree.d, b"sub", ROOT_INO, b"d")


def test_a_reader_sees_a_name_that_always_stands_exactly_once(tree: Tree) -> None:
    """An editor saves g anew under another name and renames it over g, while somebody lists the directory."""
    for order in ((b"new", b"g"), (b"f", b"g"), (b"g", b"f")):
        tree.make(ROOT_INO, order[0], stat.S_IFREG | 0o644) if order[0] not in tree.listing() else None
        entries = tree.names.readdir(ROOT_INO, 0, 100)
        for cut in range(2, len(entries)):
            seen = [name for _, name, _ in entries[:cut]]
            after = entries[cut - 1][0]
            tree.rename(order[0], ROOT_INO, order[1])
            seen += [name for _, name, _ in tree.names.readdir(ROOT_INO, after, 100)]
            assert seen.count(order[1]) == 1
            tree.make(ROOT_INO, order[0], stat.S_IFREG | 0o644)
            entries = tree.names.readdir(ROOT_INO, 0, 100)
