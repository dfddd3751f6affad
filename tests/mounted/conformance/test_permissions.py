"""Who may do what: owners, groups, others, sticky directories, set-id bits and what clears them."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.volumes import Volume

from .calls import EXCHANGE, as_user, enter_user_namespace, error_of, give_up_capability, opened, renameat2

pytestmark = [pytest.mark.mounted, pytest.mark.root]

ANN, BOB, STAFF = 1101, 1102, 1103
CAP_FSETID = 4

Call = Callable[..., object]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def file_of(path: Path, uid: int, mode: int, gid: int | None = None) -> Path:
    path.write_bytes(b"x" * 100)
    os.chown(path, uid, uid if gid is None else gid)
    path.chmod(mode)
    return path


def directory_of(path: Path, uid: int, mode: int, gid: int | None = None) -> Path:
    path.mkdir()
    os.chown(path, uid, uid if gid is None else gid)
    path.chmod(mode)
    return path


class TestOwnerGroupOthers:
    @pytest.mark.parametrize("bits", range(8))
    def test_the_first_class_that_fits_decides(self, roots: Path, bits: int) -> None:
        """Each class alone has the bits; only who is in it gets what they allow."""
        callers: dict[int, tuple[int, int]] = {6: (ANN, ANN), 3: (BOB, STAFF), 0: (BOB, BOB)}
        for shift in callers:
            path = file_of(roots / f"f{shift}", ANN, bits << shift, STAFF)
            for other_shift, (other, other_gid) in callers.items():
                mine = bits if shift == other_shift else 0
                assert self.allowed(path, other, other_gid) == mine, (shift, other_shift)

    @staticmethod
    def allowed(path: Path, uid: int, gid: int) -> int:
        def ask() -> int:
            reads = not error_of(lambda: os.close(os.open(path, os.O_RDONLY)))
            writes = not error_of(lambda: os.close(os.open(path, os.O_WRONLY)))
            runs = os.access(path, os.X_OK)
            assert os.access(path, os.R_OK) == reads
            assert os.access(path, os.W_OK) == writes
            return reads * 4 + writes * 2 + runs

        found: int = as_user(uid, ask, gid)
        return found

    def test_supplementary_groups_count(self, roots: Path) -> None:
        path = file_of(roots / "f", ANN, 0o640, STAFF)
        assert as_user(BOB, lambda: len(path.read_bytes()), groups=(STAFF, 7)) == 100
        assert as_user(BOB, lambda: len(path.read_bytes()), groups=(7,)) == "EACCES"

    def test_a_directory_is_read_searched_and_changed_apart(self, roots: Path) -> None:
        directory = directory_of(roots / "d", ANN, 0o700)
        file_of(directory / "f", ANN, 0o644)
        calls: dict[str, Call] = {
            "list": lambda: len(os.listdir(directory)),
            "read": lambda: len((directory / "f").read_bytes()),
            "stat": lambda: (directory / "f").stat().st_size,
            "create": lambda: (directory / "new").touch(),
            "remove": lambda: (directory / "new").unlink() if bits & 2 else os.unlink(directory / "f"),
        }
        wanted = {  # others' bits -> what works, in the order of the calls
            0: "", 1: "read stat", 2: "", 3: "read stat create remove", 4: "list", 5: "list read stat", 6: "list",
            7: "list read stat create remove",
        }  # fmt: skip
        for bits, works in wanted.items():
            directory.chmod(0o700 | bits)
            found = {name: as_user(BOB, call) for name, call in calls.items()}
            (directory / "new").unlink(missing_ok=True)
            assert [name for name, answer in found.items() if answer != "EACCES"] == works.split(), bits

    def test_every_change_needs_its_right(self, roots: Path) -> None:
        directory = directory_of(roots / "d", ANN, 0o755)
        other = directory_of(roots / "mine", BOB, 0o755)
        f, mine = file_of(directory / "f", ANN, 0o644), file_of(other / "mine", BOB, 0o644)
        (directory / "sub").mkdir()
        calls: dict[str, tuple[Call, str]] = {
            "create": (lambda: (directory / "new").touch(), "EACCES"),
            "mkdir": (lambda: (directory / "new").mkdir(), "EACCES"),
            "mkfifo": (lambda: os.mkfifo(directory / "new"), "EACCES"),
            "symlink": (lambda: (directory / "new").symlink_to("x"), "EACCES"),
            "link in": (lambda: os.link(mine, directory / "new"), "EACCES"),
            "unlink": (lambda: f.unlink(), "EACCES"),
            "rmdir": (lambda: (directory / "sub").rmdir(), "EACCES"),
            "rename in": (lambda: mine.rename(directory / "new"), "EACCES"),
            "rename out": (lambda: f.rename(other / "new"), "EACCES"),
            "rename over": (lambda: mine.rename(f), "EACCES"),
            "exchange": (lambda: renameat2(mine, f, EXCHANGE), "EACCES"),
            "open for writing": (lambda: os.open(f, os.O_WRONLY), "EACCES"),
            "truncate": (lambda: os.truncate(f, 0), "EACCES"),
            "open O_TRUNC": (lambda: os.open(f, os.O_RDONLY | os.O_TRUNC), "EACCES"),
            "open O_NOATIME": (lambda: os.open(f, os.O_RDONLY | os.O_NOATIME), "EPERM"),
            "chmod": (lambda: f.chmod(0o600), "EPERM"),
            "chown": (lambda: os.chown(f, BOB, -1), "EPERM"),
            "chgrp": (lambda: os.chown(f, -1, BOB), "EPERM"),
            "utimes to a time": (lambda: os.utime(f, (1, 1)), "EPERM"),
            "utimes to now": (lambda: os.utime(f), "EACCES"),
            "setxattr": (lambda: os.setxattr(f, "user.a", b"x"), "EACCES"),
            "setxattr trusted": (lambda: os.setxattr(mine, "trusted.a", b"x"), "EPERM"),
            "setxattr security": (lambda: os.setxattr(mine, "security.a", b"x"), "EPERM"),
            "getxattr trusted": (lambda: os.getxattr(mine, "trusted.a"), "ENODATA"),
            "mknod of a device": (lambda: os.mknod(other / "new", stat.S_IFBLK | 0o600, os.makedev(7, 0)), "EPERM"),
            "give away": (lambda: os.chown(mine, ANN, -1), "EPERM"),
            "give to a foreign group": (lambda: os.chown(mine, -1, STAFF), "EPERM"),
            "keep": (lambda: os.chown(mine, BOB, -1), ""),
        }
        found = {name: as_user(BOB, lambda call=call: error_of(call)) for name, (call, _) in calls.items()}
        assert found == {name: error for name, (_, error) in calls.items()}

    def test_a_group_of_ones_own_may_be_given(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o644)
        assert as_user(ANN, lambda: os.chown(f, -1, STAFF), groups=(STAFF,)) is None
        assert f.stat().st_gid == STAFF

    def test_root_may_all_but_run_what_nobody_may(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0)
        assert f.read_bytes()
        f.write_bytes(b"y")
        assert not os.access(f, os.X_OK)
        f.chmod(0o001)
        assert os.access(f, os.X_OK)


class TestSticky:
    """In a sticky directory an entry goes only by its owner, the directory's, or root."""

    @pytest.mark.parametrize(
        ("entry", "directory", "caller", "allowed"),
        [(ANN, BOB, ANN, True), (ANN, BOB, BOB, True), (ANN, STAFF, BOB, False), (BOB, STAFF, BOB, True),
         (0, 0, BOB, False), (ANN, ANN, 0, True)],
    )  # fmt: skip
    def test_who_may_remove(self, roots: Path, entry: int, directory: int, caller: int, allowed: bool) -> None:
        place = directory_of(roots / "sticky", directory, 0o1777)
        away = directory_of(roots / "away", 0, 0o777)
        mine = file_of(away / "mine", caller, 0o666)
        calls: dict[str, Call] = {
            "unlink": lambda path: path.unlink(),
            "rename": lambda path: path.rename(away / "gone"),
            "rename within": lambda path: path.rename(path.with_name("other")),
            "rename over": lambda path: mine.rename(path),
            "exchange": lambda path: renameat2(mine, path, EXCHANGE),
        }
        for name, call in calls.items():
            for path in (place / "f", away / "mine"):
                path.unlink(missing_ok=True)
            file_of(place / "f", entry, 0o666), file_of(mine, caller, 0o666)
            assert as_user(caller, lambda call=call: error_of(call, place / "f")) == ("" if allowed else "EPERM"), name
        if (place / "d").exists():
            (place / "d").rmdir()
        directory_of(place / "d", entry, 0o777)
        assert as_user(caller, lambda: error_of((place / "d").rmdir)) == ("" if allowed else "EPERM")

    def test_writing_and_linking_are_not_its_affair(self, roots: Path) -> None:
        place = directory_of(roots / "sticky", 0, 0o1777)
        file_of(place / "f", ANN, 0o666)
        assert as_user(BOB, lambda: (place / "f").write_bytes(b"new")) == 3
        assert as_user(BOB, lambda: (place / "new").touch()) is None


class TestSetGroupId:
    def test_a_directory_gives_its_group(self, roots: Path) -> None:
        place = directory_of(roots / "d", ANN, 0o2777, STAFF)

        def fill() -> None:
            os.umask(0)
            os.close(os.open(place / "f", os.O_CREAT | os.O_RDWR, 0o666))
            os.mkdir(place / "sub", 0o755)
            os.mkfifo(place / "p")
            os.symlink("x", place / "l")

        as_user(BOB, fill)
        assert {path.name: path.lstat().st_gid for path in place.iterdir()} == dict.fromkeys(
            ["f", "sub", "p", "l"], STAFF
        )
        assert mode_of(place / "sub") == 0o2755
        assert mode_of(place / "f") == 0o666

    def test_without_it_the_creators_group_counts(self, roots: Path) -> None:
        place = directory_of(roots / "d", ANN, 0o777, STAFF)
        as_user(BOB, lambda: (place / "f").touch(), gid=7)
        assert (place / "f").stat().st_gid == 7

    def test_only_a_member_keeps_the_bit(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o644, STAFF)
        as_user(ANN, lambda: f.chmod(0o2755))
        assert mode_of(f) == 0o755
        as_user(ANN, lambda: f.chmod(0o2755), groups=(STAFF,))
        assert mode_of(f) == 0o2755

    def test_a_new_file_keeps_it_only_for_a_member(self, roots: Path) -> None:
        """CVE-2018-13405: no foreign set-gid program by creation in a set-gid directory."""
        place = directory_of(roots / "d", ANN, 0o2777, STAFF)

        def create(name: str) -> None:
            os.umask(0)
            os.close(os.open(place / name, os.O_CREAT | os.O_RDWR, 0o2755))

        as_user(BOB, lambda: create("foreign"))
        as_user(BOB, lambda: create("member"), groups=(STAFF,))
        assert mode_of(place / "foreign") == 0o755
        assert mode_of(place / "member") == 0o2755


SET_ID = [0o4755, 0o2755, 0o6755, 0o6777, 0o2644, 0o6644]
CLEARED = {0o4755: 0o755, 0o2755: 0o755, 0o6755: 0o755, 0o6777: 0o777, 0o2644: 0o2644, 0o6644: 0o2644}
HOW = ["write", "pwrite", "truncate", "ftruncate", "O_TRUNC", "append", "copy", "sendfile", "grow"]


class TestSetIdIsCleared:
    """By a change of content or owner; set-gid without group execution is no privilege and stays."""

    @pytest.mark.parametrize("mode", SET_ID, ids=oct)
    @pytest.mark.parametrize("how", HOW)
    def test_by_a_write_of_another(self, roots: Path, mode: int, how: str) -> None:
        f, source = file_of(roots / "f", ANN, mode), file_of(roots / "source", ANN, 0o644)
        ways: dict[str, Call] = {
            "write": lambda to: os.write(to, b"x"),
            "pwrite": lambda to: os.pwrite(to, b"x", 50),
            "ftruncate": lambda to: os.ftruncate(to, 10),
            "grow": lambda to: os.ftruncate(to, 1000),
            "append": lambda to: os.write(to, b"x"),
            "copy": lambda to: os.copy_file_range(os.open(source, os.O_RDONLY), to, 10),
            "sendfile": lambda to: os.sendfile(to, os.open(source, os.O_RDONLY), 0, 10),
        }

        def change() -> None:
            if how in ("truncate", "O_TRUNC"):
                os.truncate(f, 10) if how == "truncate" else os.close(os.open(f, os.O_WRONLY | os.O_TRUNC))
                return
            with opened(f, os.O_WRONLY | (os.O_APPEND if how == "append" else 0)) as to:
                ways[how](to)

        as_user(ANN, change)
        assert oct(mode_of(f)) == oct(CLEARED[mode])

    @pytest.mark.parametrize("mode", SET_ID, ids=oct)
    def test_not_by_a_write_of_root(self, roots: Path, mode: int) -> None:
        f = file_of(roots / "f", ANN, mode)
        with opened(f) as to:
            os.pwrite(to, b"x", 0)
            os.ftruncate(to, 10)
        assert oct(mode_of(f)) == oct(mode)

    @pytest.mark.parametrize("how", ["write", "truncate", "O_TRUNC"])
    @pytest.mark.parametrize("lose", [lambda: give_up_capability(CAP_FSETID), enter_user_namespace],
                             ids=["without the capability", "in a user namespace"])  # fmt: skip
    def test_by_root_who_may_not_keep_it(self, roots: Path, how: str, lose: Call) -> None:
        """As in many a container, and who has every capability there, and none here."""
        f = file_of(roots / "f", 0, 0o6755)

        def change() -> None:
            lose()
            if how == "truncate":
                os.truncate(f, 1)
            else:
                with opened(f, os.O_WRONLY | (os.O_TRUNC if how == "O_TRUNC" else 0)) as to:
                    os.pwrite(to, b"x", 0) if how == "write" else None

        assert as_user(0, change) is None
        assert oct(mode_of(f)) == oct(0o755)

    def test_as_who_asks_for_the_mode_alone_sees_it(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o6777)
        as_user(BOB, lambda: os.close(os.open(f, os.O_WRONLY | os.O_TRUNC)))
        asked = subprocess.run(["stat", "-c", "%a", f], capture_output=True, check=True)
        assert asked.stdout == b"777\n"

    def test_by_a_change_to_the_same_owner(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o6755)
        os.chown(f, -1, -1)
        assert oct(mode_of(f)) == oct(0o755)

    def test_not_by_a_stranger_who_changes_nothing(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o6755)
        assert as_user(BOB, lambda: os.chown(f, -1, -1)) == "EPERM"
        assert oct(mode_of(f)) == oct(0o6755)

    def test_by_who_writes_to_what_another_opened(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o6755)
        with opened(f, os.O_WRONLY) as to:
            assert as_user(BOB, lambda: os.pwrite(to, b"x", 0)) == 1
        assert oct(mode_of(f)) == oct(0o755)

    @pytest.mark.parametrize("mode", SET_ID, ids=oct)
    @pytest.mark.parametrize("caller", [0, ANN])
    def test_by_a_change_of_owner(self, roots: Path, mode: int, caller: int) -> None:
        f = file_of(roots / "f", ANN, mode)
        as_user(caller, lambda: os.chown(f, -1, STAFF), groups=(STAFF, ANN))
        assert f.stat().st_gid == STAFF
        assert oct(mode_of(f)) == oct(CLEARED[mode])

    def test_without_group_execution_a_stranger_leaves_it_too(self, mount: Volume) -> None:
        """ext4 takes it then; what the kernel tells a FUSE server does not say who writes. It is no privilege."""
        f = file_of(mount / "set-gid", ANN, 0o2646, STAFF)
        as_user(BOB, lambda: f.write_bytes(b"new"))
        assert oct(mode_of(f)) == oct(0o2646)

    def test_not_of_a_directory(self, roots: Path) -> None:
        place = directory_of(roots / "d", ANN, 0o6755)
        os.chown(place, BOB, STAFF)
        assert mode_of(place) == 0o6755
        os.chown(place, -1, -1)
        assert mode_of(place) == 0o6755


class TestUmask:
    @pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
    def test_it_takes_from_every_new_thing(self, roots: Path, umask: int) -> None:
        def fill() -> None:
            os.umask(umask)
            os.close(os.open(roots / "f", os.O_CREAT | os.O_RDWR, 0o6777))
            os.mkdir(roots / "d", 0o1777)
            os.mkfifo(roots / "p", 0o666)
            os.mknod(roots / "n", stat.S_IFREG | 0o777)
            os.symlink("x", roots / "l")

        as_user(0, fill)
        found = {path.name: oct(mode_of(path)) for path in roots.iterdir()}
        wanted = {"f": 0o6777 & ~umask, "d": 0o1777 & ~umask, "p": 0o666 & ~umask, "n": 0o777 & ~umask, "l": 0o777}
        assert found == {name: oct(mode) for name, mode in wanted.items()}

    def test_a_file_that_its_creator_could_not_open_is_open_to_him(self, place: Path) -> None:
        with opened(place / "f", os.O_CREAT | os.O_RDWR, 0) as descriptor:
            assert os.write(descriptor, b"x") == 1
        assert mode_of(place / "f") == 0


class TestAccess:
    def test_the_real_user_is_asked(self, roots: Path) -> None:
        f = file_of(roots / "f", ANN, 0o400)

        def ask() -> tuple[bool, bool]:
            os.setresuid(BOB, ANN, 0)
            return os.access(f, os.R_OK), os.access(f, os.R_OK, effective_ids=True)

        assert as_user(0, ask) == (False, True)
