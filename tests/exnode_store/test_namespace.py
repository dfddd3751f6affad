"""Names, inodes and their deletion, rule by rule."""

import stat

import pytest

from ibpfs.errors import (
    InvalidArgument,
    IsADirectory,
    NameExists,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from ibpfs.exnode_store.attributes import MAX_LINKS, AttributeChange, NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import ROOT_INO
from tests.exnode_store.conftest import Clock

FILE = NewInode(stat.S_IFREG | 0o644, 10, 20)
DIRECTORY = NewInode(stat.S_IFDIR | 0o755, 10, 20)


def test_the_root(names: Namespace, db: Database) -> None:
    root = names.inode(ROOT_INO)
    assert (root.mode, root.nlink, db.files) == (stat.S_IFDIR | 0o755, 2, 1)
    assert names.lookup(ROOT_INO, b".").ino == names.lookup(ROOT_INO, b"..").ino == ROOT_INO


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_create(names: Namespace, db: Database, clock: Clock, kind: int) -> None:
    before = clock.last
    made = names.create(ROOT_INO, b"n\xff\n", NewInode(kind | 0o6666, 10, 20, umask=0o027, rdev=0x103))
    assert made.mode == kind | 0o6640
    assert (made.uid, made.gid, made.nlink, made.size, made.policy, made.version) == (10, 20, 1, 0, 1, 1)
    assert made.rdev == (0x103 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0)
    assert before < made.birth_ns == made.atime_ns == made.mtime_ns == made.ctime_ns
    assert names.lookup(ROOT_INO, b"n\xff\n") == names.inode(made.ino) == made
    assert db.files == 2


def test_creating_touches_the_directory(names: Namespace, clock: Clock) -> None:
    before = names.inode(ROOT_INO)
    names.create(ROOT_INO, b"file", FILE)
    after = names.inode(ROOT_INO)
    assert (after.nlink, after.version) == (before.nlink, before.version + 1)
    assert before.mtime_ns < after.mtime_ns == after.ctime_ns
    assert after.atime_ns == before.atime_ns


def test_directories_count_links(names: Namespace) -> None:
    made = names.create(ROOT_INO, b"d", DIRECTORY)
    assert (made.nlink, names.inode(ROOT_INO).nlink) == (2, 3)
    sub = names.create(made.ino, b"sub", DIRECTORY)
    assert names.inode(made.ino).nlink == 3
    assert names.lookup(sub.ino, b"..").ino == made.ino
    assert names.rmdir(made.ino, b"sub").nlink == 0
    assert names.inode(made.ino).nlink == 2


def test_setgid_directories_hand_down_their_group(names: Namespace) -> None:
    parent = names.create(ROOT_INO, b"d", NewInode(stat.S_IFDIR | 0o2775, 1, 77))
    file = names.create(parent.ino, b"f", FILE)
    sub = names.create(parent.ino, b"s", DIRECTORY)
    assert (file.gid, file.mode) == (77, FILE.mode)
    assert (sub.gid, sub.mode) == (77, DIRECTORY.mode | stat.S_ISGID)


def test_the_policy_is_inherited(names: Namespace, db: Database) -> None:
    parent = names.create(ROOT_INO, b"d", DIRECTORY)
    with db.transaction():
        db.execute("UPDATE inodes SET policy = 3 WHERE ino = ?", (parent.ino,))
    assert names.create(parent.ino, b"f", FILE).policy == 3


def test_symlinks(names: Namespace) -> None:
    target = b"t" * 4095
    made = names.create(ROOT_INO, b"l", NewInode(stat.S_IFLNK | 0o777, 0, 0, umask=0o022, target=target))
    assert (made.mode, made.size) == (stat.S_IFLNK | 0o777, 4095)
    assert names.readlink(made.ino) == target
    with pytest.raises(InvalidArgument):
        names.readlink(ROOT_INO)
    with pytest.raises(NameTooLong):
        names.create(ROOT_INO, b"m", NewInode(stat.S_IFLNK | 0o777, 0, 0, target=target + b"t"))
    with pytest.raises(InvalidArgument):
        names.create(ROOT_INO, b"m", NewInode(stat.S_IFLNK | 0o777, 0, 0))


def test_a_name_stands_once(names: Namespace, db: Database) -> None:
    first = names.create(ROOT_INO, b"n", FILE)
    root, next_ino = names.inode(ROOT_INO), db.next_ino
    with pytest.raises(NameExists):
        names.create(ROOT_INO, b"n", DIRECTORY)
    with pytest.raises(NameExists):
        names.link(first.ino, ROOT_INO, b"n")
    assert (names.inode(ROOT_INO), db.next_ino, db.files) == (root, next_ino, 2)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0"])
def test_what_is_no_name(names: Namespace, name: bytes) -> None:
    with pytest.raises(InvalidArgument):
        names.create(ROOT_INO, name, FILE)
    with pytest.raises(InvalidArgument):
        names.rmdir(ROOT_INO, name)


def test_long_names(names: Namespace) -> None:
    made = names.create(ROOT_INO, b"\xff" * 255, FILE)
    assert names.lookup(ROOT_INO, b"\xff" * 255).ino == made.ino
    long = b"n" * 256
    for attempt in (names.lookup, names.unlink, names.rmdir):
        with pytest.raises(NameTooLong):
            attempt(ROOT_INO, long)
    with pytest.raises(NameTooLong):
        names.rename(ROOT_INO, b"\xff" * 255, ROOT_INO, long)


def test_nothing_there(names: Namespace) -> None:
    for attempt in (names.lookup, names.unlink, names.rmdir):
        with pytest.raises(NotFound):
            attempt(ROOT_INO, b"none")
    for inode in (99, (1 << 48) + 1):
        with pytest.raises(NotFound):
            names.inode(inode)
        with pytest.raises(NotFound):
            names.create(inode, b"n", FILE)


def test_only_directories_hold_names(names: Namespace) -> None:
    file = names.create(ROOT_INO, b"f", FILE)
    with pytest.raises(NotADirectory):
        names.create(file.ino, b"n", FILE)
    with pytest.raises(NotADirectory):
        names.rmdir(ROOT_INO, b"f")
    with pytest.raises(NotADirectory):
        names.link(file.ino, file.ino, b"n")


def test_hard_links(names: Namespace, db: Database) -> None:
    file = names.create(ROOT_INO, b"a", FILE)
    linked = names.link(file.ino, ROOT_INO, b"b")
    assert (linked.nlink, linked.version, linked.ctime_ns > file.ctime_ns) == (2, 2, True)
    assert linked.mtime_ns == file.mtime_ns
    assert names.unlink(ROOT_INO, b"a").nlink == 1
    assert names.lookup(ROOT_INO, b"b").ino == file.ino
    assert db.files == 2
    assert names.unlink(ROOT_INO, b"b").nlink == 0
    assert db.files == 1


def test_links_that_are_refused(names: Namespace, db: Database) -> None:
    directory = names.create(ROOT_INO, b"d", DIRECTORY)
    with pytest.raises(NotPermitted):
        names.link(directory.ino, ROOT_INO, b"e")
    file = names.create(ROOT_INO, b"a", FILE)
    with db.transaction():
        db.execute("UPDATE inodes SET nlink = ? WHERE ino = ?", (MAX_LINKS, file.ino))
    with pytest.raises(TooManyLinks):
        names.link(file.ino, ROOT_INO, b"b")
    with db.transaction():
        db.execute("UPDATE inodes SET nlink = 1 WHERE ino = ?", (file.ino,))
    names.unlink(ROOT_INO, b"a")
    with pytest.raises(NotFound):
        names.link(file.ino, ROOT_INO, b"b")


def test_unlink_is_not_for_directories(names: Namespace) -> None:
    names.create(ROOT_INO, b"d", DIRECTORY)
    with pytest.raises(IsADirectory):
        names.unlink(ROOT_INO, b"d")


def test_rmdir_wants_an_empty_directory(names: Namespace) -> None:
    directory = names.create(ROOT_INO, b"d", DIRECTORY)
    names.create(directory.ino, b"f", FILE)
    with pytest.raises(NotEmpty):
        names.rmdir(ROOT_INO, b"d")


def test_a_directory_is_not_empty_when_damage_took_the_inodes_of_its_entries(names: Namespace, db: Database) -> None:
    """It is fsck's to say what they were."""
    directory = names.create(ROOT_INO, b"d", DIRECTORY).ino
    ino = names.create(directory, b"f", FILE).ino
    names.create(ROOT_INO, b"e", DIRECTORY)
    with db.transaction():
        db.execute("DELETE FROM inodes WHERE ino = ?", (ino,))
    assert len(names.readdir(directory, 0, 100)) == 2
    with pytest.raises(NotEmpty):
        names.rmdir(ROOT_INO, b"d")
    assert len(names.readdir(directory, 0, 100)) == 2
    with pytest.raises(NotEmpty):
        names.rename(ROOT_INO, b"e", ROOT_INO, b"d")


def test_a_removed_directory_takes_no_names(names: Namespace) -> None:
    directory = names.create(ROOT_INO, b"d", DIRECTORY)
    file = names.create(ROOT_INO, b"f", FILE)
    names.rmdir(ROOT_INO, b"d")
    with pytest.raises(NotFound):
        names.create(directory.ino, b"f", FILE)
    with pytest.raises(NotFound):
        names.link(file.ino, directory.ino, b"f")
    with pytest.raises(NotFound):
        names.rename(ROOT_INO, b"f", directory.ino, b"f")
    assert [name for _, name, _ in names.readdir(directory.ino, 0, 10)] == [b".", b".."]


def test_change_times(names: Namespace, clock: Clock) -> None:
    file = names.create(ROOT_INO, b"f", FILE)
    changed = names.change(file.ino, AttributeChange(atime_ns=-5, mtime_ns=1 << 62))
    assert (changed.atime_ns, changed.mtime_ns, changed.ctime_ns) == (-5, 1 << 62, clock.last)
    assert changed.version == file.version + 1
    kept = names.change(file.ino, AttributeChange(atime_ns=9, ctime_ns=changed.ctime_ns))
    assert (kept.atime_ns, kept.ctime_ns) == (9, changed.ctime_ns)
    assert names.inode(file.ino) == kept


def test_change_takes_the_times_that_only_the_spool_knows(names: Namespace) -> None:
    ino = names.create(ROOT_INO, b"f", FILE).ino
    assert names.change(ino, AttributeChange(mode=0o600), pending_times=(77, None)).mtime_ns == 77
    changed = names.change(ino, AttributeChange(mtime_ns=5), pending_times=(78, 1 << 60))
    assert (changed.mtime_ns, changed.ctime_ns) == (5, 1 << 60)


def test_change_mode_keeps_the_type(names: Namespace) -> None:
    ino = names.create(ROOT_INO, b"f", FILE).ino
    assert names.change(ino, AttributeChange(mode=stat.S_IFDIR | 0o7711)).mode == stat.S_IFREG | 0o7711


@pytest.mark.parametrize(
    ("before", "after"), [(0o6755, 0o755), (0o4644, 0o644), (0o2644, 0o2644), (0o1777, 0o1777), (0o644, 0o644)]
)
def test_a_new_owner_or_a_write_takes_set_id_bits(names: Namespace, before: int, after: int) -> None:
    ino = names.create(ROOT_INO, b"f", FILE).ino
    names.change(ino, AttributeChange(mode=before))
    changed = names.change(ino, AttributeChange(uid=3))
    assert (changed.mode, changed.uid, changed.gid) == (stat.S_IFREG | after, 3, 20)
    names.change(ino, AttributeChange(mode=before))
    assert names.drop_privileges(ino).mode == stat.S_IFREG | after


def test_a_new_owner_leaves_a_directorys_bits(names: Namespace) -> None:
    ino = names.create(ROOT_INO, b"d", NewInode(stat.S_IFDIR | 0o2755, 1, 1)).ino
    assert names.change(ino, AttributeChange(gid=3)).mode == stat.S_IFDIR | 0o2755


def test_readdir_in_pieces(names: Namespace) -> None:
    made = {b"n%03d" % number: names.create(ROOT_INO, b"n%03d" % number, FILE) for number in range(20)}
    for step in (1, 2, 3, 7, 100):
        seen, after = [], 0
        while entries := names.readdir(ROOT_INO, after, step):
            assert len(entries) <= step
            seen += entries
            after = entries[-1][0]
        assert [(cookie, name) for cookie, name, _ in seen[:2]] == [(1, b"."), (2, b"..")]
        assert {name: inode for _, name, inode in seen[2:]} == made
        assert [cookie for cookie, _, _ in seen] == sorted({cookie for cookie, _, _ in seen})


def test_cookies_are_never_used_twice(names: Namespace) -> None:
    names.create(ROOT_INO, b"a", FILE)
    cookie = names.readdir(ROOT_INO, 2, 9)[-1][0]
    assert cookie == 3
    names.unlink(ROOT_INO, b"a")
    names.create(ROOT_INO, b"b", FILE)
    assert names.readdir(ROOT_INO, cookie, 9)[-1][1] == b"b"


def test_readdir_of_no_directory(names: Namespace) -> None:
    with pytest.raises(NotFound):
        names.readdir(99, 0, 10)


class Mappings:
    """Stands for the ledger: how many mappings each inode has."""

    def __init__(self, counts: dict[int, int]) -> None:
        self.counts = counts

    def unmap(self, ino: int, limit: int) -> int:
        taken = min(limit, self.counts.get(ino, 0))
        self.counts[ino] = self.counts.get(ino, 0) - taken
        return taken


def test_reaping_goes_in_steps(db: Database, clock: Clock) -> None:
    mappings = Mappings({})
    names = Namespace(db, clock, mappings.unmap)
    ino = names.create(ROOT_INO, b"f", FILE).ino
    for number in range(5):
        names.setxattr(ino, b"user.%d" % number, b"v")
    with db.transaction():
        db.executemany("INSERT INTO voids (ino, covers, start, seq) VALUES (?, ?, 0, 1)", [(ino, n) for n in range(5)])
    mappings.counts[ino] = 25
    names.unlink(ROOT_INO, b"f")
    assert names.unlinked() == [ino]
    steps = 1
    while not names.reap(ino, 10):
        steps += 1
    assert steps == 4
    assert (mappings.counts[ino], names.unlinked()) == (0, [])
    for table in ("inodes", "xattrs", "voids"):
        assert db.value(f"SELECT count(*) FROM {table} WHERE ino = ?", (ino,)) == 0
    assert names.reap(ino)


def test_reaping_symlinks_and_directories(names: Namespace, db: Database) -> None:
    link = names.create(ROOT_INO, b"l", NewInode(stat.S_IFLNK | 0o777, 0, 0, target=b"x"))
    directory = names.create(ROOT_INO, b"d", DIRECTORY)
    names.unlink(ROOT_INO, b"l")
    names.rmdir(ROOT_INO, b"d")
    assert sorted(names.unlinked()) == [link.ino, directory.ino]
    assert names.reap(link.ino)
    assert names.reap(directory.ino)
    assert db.value("SELECT count(*) FROM symlinks") == 0
    assert names.create(ROOT_INO, b"f", FILE).ino == directory.ino + 1


def test_what_has_a_name_is_not_reaped(names: Namespace) -> None:
    ino = names.create(ROOT_INO, b"f", FILE).ino
    with pytest.raises(InvalidArgument):
        names.reap(ino)


def test_every_row_carries_the_commit_that_wrote_it(names: Namespace, db: Database) -> None:
    names.create(ROOT_INO, b"f", FILE)
    assert db.rows("SELECT seq FROM inodes UNION SELECT seq FROM dentries") == [(db.seq,)]
