"""POSIX access control lists: who gets what, masks, inheritance."""

import os
import stat
import struct
from pathlib import Path

import pytest

from .calls import as_user, error_of

pytestmark = [pytest.mark.mounted, pytest.mark.root]

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"u": 0x01, "U": 0x02, "g": 0x04, "G": 0x08, "m": 0x10, "o": 0x20}
ANN, BOB, STAFF = 1101, 1102, 1103


def packed(text: str) -> bytes:
    """`u:rwx U1101:r-- g:r-x m:r-x o:---`, small letters for owner, owning group, mask, others."""
    value = struct.pack("<I", 2)
    for word in text.split():
        who, _, bits = word.partition(":")
        number = int(who[1:]) if who[1:] else 0xFFFFFFFF
        value += struct.pack("<HHI", TAGS[who[0]], sum(1 << "xwr".index(bit) for bit in bits if bit != "-"), number)
    return value


def unpacked(value: bytes) -> str:
    names = {tag: letter for letter, tag in TAGS.items()}
    words = []
    for tag, bits, number in struct.iter_unpack("<HHI", value[4:]):
        who = names[tag] + ("" if number == 0xFFFFFFFF else str(number))
        words.append(f"{who}:" + "".join(letter if bits & 4 >> at else "-" for at, letter in enumerate("rwx")))
    return " ".join(words)


def give(path: Path, text: str, kind: str = ACCESS) -> None:
    os.setxattr(path, kind, packed(text))


def shown(path: Path, kind: str = ACCESS) -> str:
    return unpacked(os.getxattr(path, kind)) if kind in os.listxattr(path) else ""


def bits_of(path: Path) -> str:
    return oct(stat.S_IMODE(path.lstat().st_mode))


def may(path: Path, uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> str:
    def ask() -> str:
        asked = {"r": os.O_RDONLY, "w": os.O_WRONLY}
        found = "".join(letter for letter, flags in asked.items() if not error_of(os.open, path, flags))
        return found + "x" * os.access(path, os.X_OK)

    answer: str = as_user(uid, ask, gid, groups)
    return answer


@pytest.fixture
def f(roots: Path) -> Path:
    path = roots / "f"
    path.write_bytes(b"x")
    os.chown(path, ANN, STAFF)
    path.chmod(0o640)
    return path


class TestAccess:
    def test_named_users_and_groups(self, f: Path) -> None:
        give(f, f"u:rw- U{BOB}:rwx g:r-- G7:-w- m:rwx o:---")
        assert may(f, ANN) == "rw"
        assert may(f, BOB) == "rwx"
        assert may(f, 1200, STAFF) == "r"
        assert may(f, 1200, 7) == "w"
        assert may(f, 1200, 8) == ""
        assert may(f, 1200, 8, (7,)) == "w"
        assert may(f, 1200, STAFF, (7,)) == "rw"  # each by another of his groups

    def test_the_mask_limits_all_but_owner_and_others(self, f: Path) -> None:
        give(f, f"u:rwx U{BOB}:rwx g:rwx m:r-- o:rwx")
        assert (may(f, ANN), may(f, BOB), may(f, 1200, STAFF), may(f, 1200)) == ("rwx", "r", "r", "rwx")

    def test_a_named_user_gets_no_more_from_his_groups(self, f: Path) -> None:
        give(f, f"u:rw- U{BOB}:--- g:rw- m:rwx o:rwx")
        assert may(f, BOB, STAFF) == ""

    def test_a_member_of_a_group_gets_nothing_from_others(self, f: Path) -> None:
        give(f, "u:rw- g:--- G7:--- m:rwx o:rwx")
        assert may(f, 1200, STAFF) == ""
        assert may(f, 1200, 7) == ""
        assert may(f, 1200) == "rwx"

    def test_the_mode_shows_the_mask(self, f: Path) -> None:
        give(f, f"u:rwx U{BOB}:r-- g:r-- m:r-x o:--x")
        assert bits_of(f) == oct(0o751)

    def test_chmod_sets_the_mask(self, f: Path) -> None:
        give(f, f"u:rwx U{BOB}:rwx g:rwx m:rwx o:---")
        f.chmod(0o715)
        assert shown(f) == f"u:rwx U{BOB}:rwx g:rwx m:--x o:r-x"
        assert may(f, BOB) == "x"
        f.chmod(0o640)
        assert may(f, BOB) == "r"

    def test_one_that_says_no_more_than_the_mode_is_none(self, f: Path) -> None:
        give(f, "u:rwx g:r-x o:--x")
        assert shown(f) == ""
        assert bits_of(f) == oct(0o751)

    def test_removing_it_leaves_the_mode(self, f: Path) -> None:
        give(f, f"u:rwx U{BOB}:rwx g:r-x m:rwx o:---")
        os.removexattr(f, ACCESS)
        assert shown(f) == ""
        assert may(f, BOB) == ""
        assert bits_of(f) == oct(0o770)

    def test_it_is_the_owners_to_change(self, f: Path) -> None:
        assert as_user(ANN, lambda: error_of(give, f, f"u:rw- U{BOB}:r-- g:r-- m:r-- o:---")) == ""
        assert as_user(BOB, lambda: error_of(give, f, f"u:rw- U{BOB}:rwx g:r-- m:rwx o:---")) == "EPERM"
        assert as_user(BOB, lambda: shown(f)) == f"u:rw- U{BOB}:r-- g:r-- m:r-- o:---"

    def test_setting_one_takes_a_foreign_set_group_id(self, f: Path) -> None:
        f.chmod(0o2750)
        as_user(ANN, lambda: give(f, f"u:rwx U{BOB}:rwx g:r-x m:rwx o:---"))
        assert bits_of(f) == oct(0o770)
        f.chmod(0o2770)
        as_user(ANN, lambda: give(f, f"u:rwx U{BOB}:r-x g:r-x m:r-x o:---"), groups=(STAFF,))
        assert bits_of(f) == oct(0o2750)

    @pytest.mark.parametrize(
        "text",
        ["u:rwx g:rwx", "u:rwx u:rwx g:rwx o:rwx", "g:rwx u:rwx o:rwx", f"u:rwx U{BOB}:rwx g:rwx o:rwx",
         f"u:rwx U{BOB}:r-- g:rwx m:rwx m:rwx o:rwx", "u:rwx o:rwx"],
    )  # fmt: skip
    def test_what_is_no_list(self, f: Path, text: str) -> None:
        assert error_of(give, f, text) == "EINVAL"

    def test_other_nonsense(self, f: Path) -> None:
        good = packed("u:rwx g:rwx o:rwx")
        assert error_of(os.setxattr, f, ACCESS, b"\x02\0") == "EINVAL"
        assert error_of(os.setxattr, f, ACCESS, good[:-1]) == "EINVAL"
        assert error_of(os.setxattr, f, ACCESS, b"\x09" + good[1:]) in ("EINVAL", "EOPNOTSUPP")
        assert error_of(give, f, "u:rwx g:rwx o:rwx", DEFAULT) == "EACCES"  # no directory


class TestInheritance:
    @pytest.fixture
    def d(self, roots: Path) -> Path:
        path = roots / "d"
        path.mkdir()
        path.chmod(0o777)
        give(path, f"u:rwx U{BOB}:rw- g:r-x m:rwx o:r--", DEFAULT)
        return path

    def test_a_file_gets_what_its_mode_and_the_default_both_allow(self, d: Path) -> None:
        before = os.umask(0o077)  # which a default list takes the place of
        try:
            os.close(os.open(d / "f", os.O_CREAT | os.O_RDWR, 0o660))
            os.mkfifo(d / "p", 0o666)
        finally:
            os.umask(before)
        assert shown(d / "f") == f"u:rw- U{BOB}:rw- g:r-x m:rw- o:---"
        assert bits_of(d / "f") == oct(0o660)
        assert shown(d / "p") == f"u:rw- U{BOB}:rw- g:r-x m:rw- o:r--"

    def test_a_directory_gets_the_default_too(self, d: Path) -> None:
        (d / "sub").mkdir(0o750)
        assert shown(d / "sub") == f"u:rwx U{BOB}:rw- g:r-x m:r-x o:---"
        assert shown(d / "sub", DEFAULT) == shown(d, DEFAULT)
        (d / "sub" / "f").touch()
        assert f"U{BOB}:rw-" in shown(d / "sub" / "f")

    def test_a_symlink_gets_none(self, d: Path) -> None:
        (d / "l").symlink_to("x")
        assert bits_of(d / "l") == oct(0o777)
        assert error_of(os.getxattr, d / "l", ACCESS, follow_symlinks=False) in ("EOPNOTSUPP", "ENODATA")

    def test_what_moves_in_keeps_its_own(self, d: Path, roots: Path) -> None:
        (roots / "f").touch()
        (roots / "f").rename(d / "f")
        assert shown(d / "f") == ""

    def test_a_default_of_the_three_classes_alone(self, roots: Path) -> None:
        (roots / "e").mkdir()
        give(roots / "e", "u:rwx g:r-x o:---", DEFAULT)
        before = os.umask(0)
        try:
            os.close(os.open(roots / "e" / "f", os.O_CREAT | os.O_RDWR, 0o666))
        finally:
            os.umask(before)
        assert bits_of(roots / "e" / "f") == oct(0o640)
        assert shown(roots / "e" / "f") == ""

    def test_removing_it_ends_the_inheritance(self, d: Path) -> None:
        os.removexattr(d, DEFAULT)
        os.close(os.open(d / "f", os.O_CREAT | os.O_RDWR, 0o666))
        assert (shown(d / "f"), bits_of(d / "f")) == ("", oct(0o644))

    def test_it_changes_nothing_for_the_directory_itself(self, d: Path) -> None:
        assert bits_of(d) == oct(0o777)
        assert shown(d) == ""
        assert as_user(1200, lambda: error_of((d / "new").touch)) == ""

    def test_with_set_group_id(self, d: Path) -> None:
        os.chown(d, 0, STAFF)
        d.chmod(0o2777)
        (d / "sub").mkdir()
        assert (d / "sub").stat().st_gid == STAFF
        assert (d / "sub").stat().st_mode & 0o2000

    def test_listed_as_attributes(self, d: Path) -> None:
        (d / "sub").mkdir()
        assert set(os.listxattr(d / "sub")) == {ACCESS, DEFAULT}
