"""Extended attributes: names, sizes, flags, namespaces, types of files."""

import ctypes
import os
from pathlib import Path

import pytest

from .calls import as_user, checked, error_of, libc, opened

pytestmark = pytest.mark.mounted


def test_values_of_every_kind(place: Path) -> None:
    (place / "f").touch()
    values = {"user.empty": b"", "user.zero": b"\0", "user.bytes": bytes(range(256)), "user.größe": b"x",
              "user." + "n" * 250: b"longest name", "user.a.b.c": b"dots", "user. ": b"blank"}  # fmt: skip
    for name, value in values.items():
        os.setxattr(place / "f", name, value)
    assert set(os.listxattr(place / "f")) == set(values)
    assert {name: os.getxattr(place / "f", name) for name in values} == values
    for name in values:
        os.removexattr(place / "f", name)
    assert os.listxattr(place / "f") == []


def test_flags(place: Path) -> None:
    f = place / "f"
    f.touch()
    assert error_of(os.setxattr, f, "user.a", b"1", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr(f, "user.a", b"1", os.XATTR_CREATE)
    assert error_of(os.setxattr, f, "user.a", b"2", os.XATTR_CREATE) == "EEXIST"
    assert os.getxattr(f, "user.a") == b"1"
    os.setxattr(f, "user.a", b"3", os.XATTR_REPLACE)
    os.setxattr(f, "user.a", b"4")
    assert os.getxattr(f, "user.a") == b"4"
    assert error_of(os.setxattr, f, "user.a", b"x", os.XATTR_CREATE | os.XATTR_REPLACE) in ("EEXIST", "EINVAL")


def test_through_descriptors_and_links(place: Path) -> None:
    (place / "f").touch()
    (place / "l").symlink_to("f")
    (place / "h").hardlink_to(place / "f")
    with opened(place / "f", os.O_RDONLY) as descriptor:
        os.setxattr(descriptor, "user.a", b"x")
        assert os.listxattr(descriptor) == ["user.a"]
    assert os.getxattr(place / "l", "user.a") == b"x"
    assert os.getxattr(place / "h", "user.a") == b"x"
    assert os.listxattr(place / "l", follow_symlinks=False) == []
    (place / "f").rename(place / "g")
    assert os.getxattr(place / "g", "user.a") == b"x"


def test_the_size_is_told_before_the_value(place: Path) -> None:
    (place / "f").touch()
    os.setxattr(place / "f", "user.a", b"x" * 1000)
    path = os.fsencode(place / "f")
    assert checked(libc.getxattr(path, b"user.a", None, 0)) == 1000
    assert checked(libc.listxattr(path, None, 0)) == len("user.a") + 1
    small = ctypes.create_string_buffer(999)
    assert error_of(lambda: checked(libc.getxattr(path, b"user.a", small, 999))) == "ERANGE"
    assert error_of(lambda: checked(libc.listxattr(path, small, 3))) == "ERANGE"


def test_64_kib(ours: Path) -> None:
    """What the kernel allows at most; ext4 has room for less."""
    (ours / "f").touch()
    for number in range(3):
        os.setxattr(ours / "f", f"user.{number}", bytes([number]) * 65536)
    assert [os.getxattr(ours / "f", f"user.{number}") for number in range(3)] == [bytes([n]) * 65536 for n in range(3)]
    assert error_of(os.setxattr, ours / "f", "user.a", b"x" * 65537) == "E2BIG"


def test_as_many_names_as_a_list_holds(ours: Path) -> None:
    (ours / "f").touch()
    names = [f"user.{number:03}".ljust(255, "n") for number in range(256)]  # 256 * 256 bytes: all that a list holds
    for name in names:
        os.setxattr(ours / "f", name, b"")
    assert sorted(os.listxattr(ours / "f")) == names
    assert error_of(os.setxattr, ours / "f", "user.a", b"") == "ENOSPC"
    os.setxattr(ours / "f", names[0], b"those that are there can change")
    os.removexattr(ours / "f", names[0])
    os.setxattr(ours / "f", "user.a", b"")


@pytest.mark.root
def test_namespaces(roots: Path) -> None:
    f = roots / "f"
    f.touch()
    roots.chmod(0o777)
    f.chmod(0o666)
    for name in ("user.a", "trusted.a", "security.a"):
        os.setxattr(f, name, b"x")
    assert {"user.a", "trusted.a", "security.a"} <= set(os.listxattr(f))
    listed = as_user(1101, lambda: os.listxattr(f))
    assert "user.a" in listed
    assert "trusted.a" not in listed  # it is root's
    assert as_user(1101, lambda: os.getxattr(f, "user.a")) == b"x"
    assert as_user(1101, lambda: error_of(os.getxattr, f, "trusted.a")) == "ENODATA"
    assert as_user(1101, lambda: error_of(os.removexattr, f, "trusted.a")) == "EPERM"
    assert as_user(1101, lambda: error_of(os.setxattr, f, "user.b", b"x")) == ""


def test_names_that_none_can_have(place: Path) -> None:
    """A program that asks for a foreign kind of list learns that there is none here."""
    f = place / "f"
    f.touch()
    names = {"user.": "EINVAL", "user": "EOPNOTSUPP", "colour": "EOPNOTSUPP", "USER.a": "EOPNOTSUPP",
             "system.a": "EOPNOTSUPP", "system.nfs4_acl": "EOPNOTSUPP", "btrfs.compression": "EOPNOTSUPP"}  # fmt: skip
    calls = {
        "set": lambda name: os.setxattr(f, name, b"x"),
        "get": lambda name: os.getxattr(f, name),
        "remove": lambda name: os.removexattr(f, name),
    }
    for how, call in calls.items():
        assert {name: error_of(call, name) for name in names} == names, how


@pytest.mark.root
def test_on_other_types(roots: Path) -> None:
    """user. is for files and directories; root may keep trusted. ones on anything."""
    (roots / "d").mkdir()
    (roots / "l").symlink_to("nowhere")
    os.mkfifo(roots / "p")
    for name in "dlp":
        os.setxattr(roots / name, "trusted.a", b"x", follow_symlinks=False)
        assert os.getxattr(roots / name, "trusted.a", follow_symlinks=False) == b"x"
    os.setxattr(roots / "d", "user.a", b"x")
    for name in "lp":
        assert error_of(os.setxattr, roots / name, "user.a", b"x", follow_symlinks=False) == "EPERM"


@pytest.mark.root
def test_in_a_sticky_directory_of_anothers(roots: Path) -> None:
    (roots / "d").mkdir()
    (roots / "d").chmod(0o1777)
    assert as_user(1101, lambda: error_of(os.setxattr, roots / "d", "user.a", b"x")) == "EPERM"


@pytest.mark.root
@pytest.mark.parametrize("how", ["write", "truncate", "chown"])
def test_capabilities_go_with_a_change(roots: Path, how: str) -> None:
    """As set-id bits do, for root's changes too."""
    f = roots / "f"
    f.write_bytes(b"x" * 100)
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(f, "security.capability", value)
    assert os.getxattr(f, "security.capability") == value
    if how == "write":
        f.write_bytes(b"new")
    elif how == "truncate":
        os.truncate(f, 10)
    else:
        os.chown(f, 1101, 1101)
    assert error_of(os.getxattr, f, "security.capability") == "ENODATA"


def test_virtual_ones_are_answered_by_name_and_never_carried_away(ours: Path) -> None:
    (ours / "f").write_bytes(b"x")
    assert os.getxattr(ours / "f", "user.ibpfs.info").startswith(b"{")
    assert os.listxattr(ours / "f") == []
    assert error_of(os.setxattr, ours / "f", "user.ibpfs.info", b"x") == "EPERM"
    assert error_of(os.setxattr, ours / "f", "user.ibpfs.anything", b"x") == "EPERM"
