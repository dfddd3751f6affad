"""rename(2) and renameat2(2): what may replace what, and what is where afterwards."""

import os
import stat
from pathlib import Path

import pytest

from .calls import EXCHANGE, NOREPLACE, error_of, in_child, opened, renameat2

pytestmark = pytest.mark.mounted

KINDS = ["nothing", "file", "directory", "full", "symlink", "fifo"]


def make(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_bytes(os.fsencode(path.name))
        case "directory":
            path.mkdir()
        case "full":
            path.mkdir()
            (path / "inside").write_bytes(b"inside")
        case "symlink":
            path.symlink_to("somewhere")
        case "fifo":
            os.mkfifo(path)


def look(path: Path) -> tuple[str, int]:
    """What is there, and its number."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return "nothing", 0
    if stat.S_ISDIR(found.st_mode):
        return ("full" if os.listdir(path) else "directory"), found.st_ino
    names = {stat.S_IFREG: "file", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
    return names[stat.S_IFMT(found.st_mode)], found.st_ino


def answer(old: str, new: str, flags: int) -> str:
    """What rename says when `old` shall become `new`."""
    directories = {"directory", "full"}
    if old == "nothing":
        return "ENOENT"
    if new == "nothing":
        return "ENOENT" if flags == EXCHANGE else ""
    if flags:
        return "" if flags == EXCHANGE else "EEXIST"
    if old in directories and new not in directories:
        return "ENOTDIR"
    if new in directories and old not in directories:
        return "EISDIR"
    return "ENOTEMPTY" if new == "full" else ""


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE], ids=["replace", "noreplace", "exchange"])
@pytest.mark.parametrize("apart", [False, True], ids=["within", "across"])
def test_everything_over_everything(place: Path, flags: int, apart: bool) -> None:
    for old in KINDS:
        for new in KINDS:
            here = place / f"{old}-{new}"
            here.mkdir()
            there = here / "there" if apart else here
            there.mkdir(exist_ok=True)
            source, target = here / "source", there / "target"
            make(source, old)
            make(target, new)
            before = look(source), look(target)
            error = error_of(renameat2, source, target, flags)
            assert error == answer(old, new, flags), (old, new)
            after = look(source), look(target)
            if error:
                assert after == before
            elif flags == EXCHANGE:
                assert after == before[::-1]
            else:
                assert after == (("nothing", 0), before[0])
            links_are_right(here)


def links_are_right(directory: Path) -> None:
    """A directory's links are its name, its `.` and its subdirectories' `..`."""
    below = [path for path in directory.iterdir() if not path.is_symlink() and path.is_dir()]
    assert directory.stat().st_nlink == 2 + len(below)
    for path in below:
        links_are_right(path)


def test_to_another_name_of_the_same_file(place: Path) -> None:
    (place / "a").write_bytes(b"x")
    (place / "b").hardlink_to(place / "a")
    (place / "a").rename(place / "b")
    assert {path.name for path in place.iterdir()} == {"a", "b"}  # nothing happens, says POSIX
    assert (place / "a").stat().st_nlink == 2
    (place / "a").rename(place / "a")
    renameat2(place / "a", place / "b", EXCHANGE)
    assert (place / "b").stat().st_nlink == 2


def test_what_is_open_stays_open(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    (place / "new").write_bytes(b"new")
    with opened(place / "old") as old, opened(place / "new") as new:
        (place / "new").rename(place / "old")
        assert os.fstat(old).st_nlink == 0
        assert os.fstat(new).st_nlink == 1
        os.pwrite(old, b"OLD", 0)
        os.pwrite(new, b"NEW", 0)
        assert os.pread(old, 10, 0) == b"OLD"
    assert (place / "old").read_bytes() == b"NEW"


def test_a_directory_moves_with_all_that_is_below(place: Path) -> None:
    (place / "a" / "b" / "c").mkdir(parents=True)
    (place / "a" / "b" / "c" / "f").write_bytes(b"x")
    (place / "to").mkdir()
    before = os.getcwd()
    os.chdir(place / "a" / "b")
    try:
        (place / "a").rename(place / "to" / "a")
        assert Path("c/f").read_bytes() == b"x"
        assert os.getcwd() == str(place / "to" / "a" / "b")
        assert os.stat("..").st_ino == (place / "to" / "a").stat().st_ino
        assert os.stat("../..").st_ino == (place / "to").stat().st_ino
        # And into where it came from, not into itself.
        assert error_of(os.rename, place / "to", place / "to" / "a" / "b" / "c" / "to") == "EINVAL"
        (place / "to" / "a" / "b").rename(place / "b")
        assert os.stat("..").st_ino == place.stat().st_ino
    finally:
        os.chdir(before)


def test_a_directory_takes_an_empty_ones_place(place: Path) -> None:
    (place / "a").mkdir()
    (place / "a" / "f").touch()
    (place / "b").mkdir()
    with opened(place / "b", os.O_RDONLY) as lost:
        (place / "a").rename(place / "b")
        assert os.fstat(lost).st_nlink == 0
        assert os.listdir(lost) == []
        assert error_of(os.open, "new", os.O_CREAT | os.O_RDWR, dir_fd=lost) == "ENOENT"
    assert os.listdir(place / "b") == ["f"]


def test_exchange_of_a_directory_with_what_holds_no_part_of_it(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "c").write_bytes(b"x")
    renameat2(place / "a" / "b", place / "c", EXCHANGE)
    assert (place / "a" / "b").read_bytes() == b"x"
    assert (place / "c").is_dir()
    assert (place / "a").stat().st_nlink == 2
    links_are_right(place)


def test_the_longest_names_change_places(place: Path) -> None:
    one, two = place / ("1" * 255), place / ("2" * 255)
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    renameat2(one, two, EXCHANGE)
    assert (one.read_bytes(), two.read_bytes()) == (b"2", b"1")


def test_many_at_once_lose_nothing(place: Path) -> None:
    """Processes move files back and forth between two directories; each file is always in one of them."""
    for name in ("a", "b"):
        (place / name).mkdir()
    for number in range(20):
        (place / "a" / str(number)).write_bytes(b"%d" % number)

    def move(start: int) -> None:
        for number in range(start, 20, 4):
            for _ in range(5):
                (place / "a" / str(number)).rename(place / "b" / str(number))
                (place / "b" / str(number)).rename(place / "a" / str(number))

    pids = []
    for start in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                move(start)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert in_child(lambda: sorted(os.listdir(place / "a"), key=int)) == [str(number) for number in range(20)]
    assert [(place / "a" / str(number)).read_bytes() for number in range(20)] == [b"%d" % n for n in range(20)]
