"""Extended attributes: round trips, limits, and how access lists and modes move each other."""

import stat

import pytest

from ibpfs.errors import (
    AttributeNameTooLong,
    AttributeTooBig,
    InvalidArgument,
    NameExists,
    NoAttribute,
    NoSpace,
    NotFound,
    NotPermitted,
    NotSupported,
)
from ibpfs.exnode_store import acl
from ibpfs.exnode_store.acl import Entry
from ibpfs.exnode_store.attributes import AttributeChange, NewInode
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import ROOT_INO
from ibpfs.exnode_store.xattrs import CREATE, REPLACE

LIST = acl.pack(
    (
        Entry(acl.USER_OBJ, 7),
        Entry(acl.USER, 6, 1000),
        Entry(acl.GROUP_OBJ, 5),
        Entry(acl.MASK, 6),
        Entry(acl.OTHER, 4),
    )
)
TRIVIAL = acl.pack((Entry(acl.USER_OBJ, 6), Entry(acl.GROUP_OBJ, 4), Entry(acl.OTHER, 0)))


@pytest.fixture
def file(names: Namespace) -> int:
    return names.create(ROOT_INO, b"file", NewInode(stat.S_IFREG | 0o640, 5, 6)).ino


@pytest.fixture
def directory(names: Namespace) -> int:
    return names.create(ROOT_INO, b"directory", NewInode(stat.S_IFDIR | 0o750, 5, 6)).ino


def test_set_get_list_remove(names: Namespace, file: int) -> None:
    before = names.inode(file)
    after = names.setxattr(file, b"user.colour", b"\0blue\xff")
    assert (after.version, after.ctime_ns > before.ctime_ns) == (before.version + 1, True)
    names.setxattr(file, b"trusted.a", b"")
    names.setxattr(file, b"security.selinux", b"x")
    assert names.getxattr(file, b"user.colour") == b"\0blue\xff"
    assert names.getxattr(file, b"trusted.a") == b""
    assert names.listxattr(file) == [b"security.selinux", b"trusted.a", b"user.colour"]
    assert names.removexattr(file, b"user.colour").version == after.version + 3
    assert names.listxattr(file) == [b"security.selinux", b"trusted.a"]


def test_absent(names: Namespace, file: int) -> None:
    with pytest.raises(NoAttribute):
        names.getxattr(file, b"user.a")
    with pytest.raises(NoAttribute):
        names.removexattr(file, b"user.a")
    with pytest.raises(NotFound):
        names.setxattr(file + 1, b"user.a", b"")
    assert names.listxattr(file) == []


def test_flags(names: Namespace, file: int) -> None:
    with pytest.raises(NoAttribute):
        names.setxattr(file, b"user.a", b"1", REPLACE)
    names.setxattr(file, b"user.a", b"1", CREATE)
    with pytest.raises(NameExists):
        names.setxattr(file, b"user.a", b"2", CREATE)
    names.setxattr(file, b"user.a", b"3", REPLACE)
    assert names.getxattr(file, b"user.a") == b"3"
    with pytest.raises(InvalidArgument):
        names.setxattr(file, b"user.a", b"4", CREATE | REPLACE)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"user." + b"n" * 251, AttributeNameTooLong),
        (b"user.", InvalidArgument),
        (b"user.a\0b", InvalidArgument),
        (b"user.ibpfs.info", NotPermitted),
        (b"system.nfs4_acl", NotSupported),
        (b"colour", NotSupported),
        (b"", NotSupported),
    ],
)
def test_refused_names(names: Namespace, file: int, name: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        names.setxattr(file, name, b"x")
    assert names.listxattr(file) == []


def test_limits(names: Namespace, file: int) -> None:
    names.setxattr(file, b"user." + b"n" * 250, b"v" * 65536)
    with pytest.raises(AttributeTooBig):
        names.setxattr(file, b"user.big", b"v" * 65537)


def test_names_fit_what_the_kernel_can_list(names: Namespace, file: int) -> None:
    for number in range(256):
        names.setxattr(file, b"user.%0250d" % number, b"")
    with pytest.raises(NoSpace):
        names.setxattr(file, b"user.one", b"")
    names.setxattr(file, b"user.%0250d" % 7, b"replaced")
    assert sum(len(name) + 1 for name in names.listxattr(file)) == 65536


def test_an_access_list_moves_the_mode_and_chmod_the_list(names: Namespace, file: int) -> None:
    assert names.setxattr(file, acl.ACCESS, LIST).mode == stat.S_IFREG | 0o764
    assert acl.ACCESS in names.listxattr(file)
    names.change(file, AttributeChange(mode=0o4600))
    entries = acl.parse(names.getxattr(file, acl.ACCESS))
    assert {entry.tag: entry.permissions for entry in entries} == {
        acl.USER_OBJ: 6,
        acl.USER: 6,
        acl.GROUP_OBJ: 5,
        acl.MASK: 0,
        acl.OTHER: 0,
    }
    assert names.inode(file).mode == stat.S_IFREG | 0o4600


def test_a_list_from_outside_of_the_group_takes_set_gid(names: Namespace, file: int) -> None:
    names.change(file, AttributeChange(mode=0o2750))
    assert names.setxattr(file, acl.ACCESS, LIST).mode & stat.S_ISGID
    assert not names.setxattr(file, acl.ACCESS, LIST, keep_set_gid=False).mode & stat.S_ISGID
    assert stat.S_IMODE(names.inode(file).mode) == 0o764


def test_a_list_that_says_no_more_than_the_mode_is_not_kept(names: Namespace, file: int) -> None:
    names.setxattr(file, acl.ACCESS, LIST)
    assert names.setxattr(file, acl.ACCESS, TRIVIAL).mode == stat.S_IFREG | 0o640
    with pytest.raises(NoAttribute):
        names.getxattr(file, acl.ACCESS)


def test_removing_a_list(names: Namespace, file: int) -> None:
    names.setxattr(file, acl.ACCESS, LIST)
    assert names.removexattr(file, acl.ACCESS).mode == stat.S_IFREG | 0o764
    version = names.inode(file).version
    assert names.removexattr(file, acl.ACCESS).version == version
    assert names.listxattr(file) == []


def test_only_directories_have_default_lists(names: Namespace, file: int, directory: int) -> None:
    with pytest.raises(NotPermitted):
        names.setxattr(file, acl.DEFAULT, LIST)
    assert names.setxattr(directory, acl.DEFAULT, LIST).mode == stat.S_IFDIR | 0o750
    assert names.getxattr(directory, acl.DEFAULT) == LIST
    # A default list is kept even when it says no more than a mode: it stands in for the umask.
    names.setxattr(directory, acl.DEFAULT, TRIVIAL)
    assert names.getxattr(directory, acl.DEFAULT) == TRIVIAL


def test_symlinks_have_no_lists(names: Namespace) -> None:
    link = names.create(ROOT_INO, b"link", NewInode(stat.S_IFLNK | 0o777, 0, 0, target=b"x"))
    with pytest.raises(NotSupported):
        names.setxattr(link.ino, acl.ACCESS, LIST)


def test_a_damaged_list_is_refused(names: Namespace, file: int) -> None:
    with pytest.raises(InvalidArgument):
        names.setxattr(file, acl.ACCESS, b"nonsense")


def test_new_files_inherit_the_default_list_instead_of_the_umask(names: Namespace, directory: int) -> None:
    names.setxattr(directory, acl.DEFAULT, LIST)
    made = names.create(directory, b"file", NewInode(stat.S_IFREG | 0o666, 1, 1, umask=0o077))
    assert made.mode == stat.S_IFREG | 0o664
    permissions = [entry.permissions for entry in acl.parse(names.getxattr(made.ino, acl.ACCESS))]
    assert permissions == [6, 6, 5, 6, 4]
    with pytest.raises(NoAttribute):
        names.getxattr(made.ino, acl.DEFAULT)


def test_new_directories_pass_the_default_list_on(names: Namespace, directory: int) -> None:
    names.setxattr(directory, acl.DEFAULT, LIST)
    made = names.create(directory, b"sub", NewInode(stat.S_IFDIR | 0o777, 1, 1, umask=0o077))
    assert made.mode == stat.S_IFDIR | 0o764
    assert names.getxattr(made.ino, acl.DEFAULT) == LIST
    assert acl.parse(names.getxattr(made.ino, acl.ACCESS)) == acl.parse(LIST)


def test_a_trivial_default_list_leaves_new_files_without_one(names: Namespace, directory: int) -> None:
    names.setxattr(directory, acl.DEFAULT, TRIVIAL)
    made = names.create(directory, b"file", NewInode(stat.S_IFREG | 0o777, 1, 1, umask=0o777))
    assert made.mode == stat.S_IFREG | 0o640
    assert names.listxattr(made.ino) == []


def test_symlinks_inherit_nothing(names: Namespace, directory: int) -> None:
    names.setxattr(directory, acl.DEFAULT, LIST)
    made = names.create(directory, b"link", NewInode(stat.S_IFLNK | 0o777, 1, 1, umask=0o077, target=b"x"))
    assert made.mode == stat.S_IFLNK | 0o777
    assert names.listxattr(made.ino) == []


def test_a_new_owner_takes_capabilities(names: Namespace, file: int) -> None:
    names.setxattr(file, b"security.capability", b"cap")
    names.change(file, AttributeChange(uid=9))
    assert names.listxattr(file) == []


def test_a_write_takes_capabilities(names: Namespace, file: int) -> None:
    names.setxattr(file, b"security.capability", b"cap")
    version = names.inode(file).version
    assert names.drop_privileges(file).version == version + 1
    assert names.listxattr(file) == []
    assert names.drop_privileges(file).version == version + 1
