"""Which call changes which time of what; setting times; what is kept of accesses."""

import mmap
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.volumes import MakeVolume

from .calls import EXCHANGE, NOREPLACE, UTIME_NOW, UTIME_OMIT, as_user, opened, renameat2, utimensat

pytestmark = pytest.mark.mounted

OLD = 10**18  # in 2001
DAY = 86400 * 10**9
REALTIME_COARSE = 5

Call = Callable[[Path], object]


def tick() -> None:
    """Wait for the kernel's coarse clock, by which file systems set times, to move on."""
    before = time.clock_gettime_ns(REALTIME_COARSE)
    while time.clock_gettime_ns(REALTIME_COARSE) == before:
        pass


def times(path: Path) -> dict[str, int]:
    found = path.lstat()
    return {"a": found.st_atime_ns, "m": found.st_mtime_ns, "c": found.st_ctime_ns}


def changed(path: Path, before: dict[str, int]) -> str:
    after = times(path)
    for kind, then in after.items():
        assert then >= before[kind], f"{kind}time went back"
    return "".join(kind for kind in "amc" if after[kind] != before[kind])


def mapped(path: Path) -> None:
    with opened(path) as descriptor, mmap.mmap(descriptor, 0) as view:
        view[:3] = b"new"
        view.flush()


def on(path: Path, call: Callable[[int], object], flags: int = os.O_RDWR) -> None:
    with opened(path, flags) as descriptor:
        call(descriptor)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        os.chdir(path.parent)
        door.bind(path.name)
        os.chdir("/")


def write_page(descriptor: int) -> None:
    with mmap.mmap(-1, 4096) as buffer:
        os.writev(descriptor, [buffer])


def copied(path: Path) -> None:
    with opened(path) as to, opened(path.with_name("g")) as source:
        os.copy_file_range(source, to, 9)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def acl(path: Path) -> None:
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 77), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", value)


#: call -> times that change of the file, of its directory. `f` has a second name, `g` is another file, `l` a symlink.
CALLS: dict[str, tuple[Call, str, str]] = {
    "stat": (lambda f: f.stat(), "", ""),
    "access": (lambda f: os.access(f, os.R_OK), "", ""),
    "open and close": (lambda f: on(f, os.fstat), "", ""),
    "getxattr": (lambda f: os.listxattr(f), "", ""),
    "write of nothing": (lambda f: on(f, lambda to: os.write(to, b"")), "", ""),
    "write": (lambda f: on(f, lambda to: os.write(to, b"x")), "mc", ""),
    "writev": (lambda f: on(f, lambda to: os.writev(to, [b"x", b"y"])), "mc", ""),
    "append": (append, "mc", ""),
    "write O_DIRECT": (lambda f: on(f, write_page, os.O_RDWR | os.O_DIRECT), "mc", ""),
    "mmap": (mapped, "amc", ""),
    "truncate": (lambda f: os.truncate(f, 10), "mc", ""),
    "truncate up": (lambda f: os.truncate(f, 100_000), "mc", ""),
    "ftruncate": (lambda f: on(f, lambda to: os.ftruncate(to, 10)), "mc", ""),
    "ftruncate to the same": (lambda f: on(f, lambda to: os.ftruncate(to, os.fstat(to).st_size)), "mc", ""),
    "O_TRUNC": (lambda f: on(f, os.fstat, os.O_RDWR | os.O_TRUNC), "mc", ""),
    "O_CREAT of what is there": (lambda f: on(f, os.fstat, os.O_RDWR | os.O_CREAT), "", ""),
    "posix_fallocate": (lambda f: on(f, lambda to: os.posix_fallocate(to, 7000, 20_000)), "mc", ""),
    "read": (lambda f: f.read_bytes(), "a", ""),
    "read O_NOATIME": (lambda f: on(f, lambda to: os.read(to, 10), os.O_RDONLY | os.O_NOATIME), "", ""),
    "copy_file_range to": (copied, "mc", ""),
    "chmod": (lambda f: f.chmod(0o640), "c", ""),
    "fchmod": (lambda f: on(f, lambda to: os.fchmod(to, 0o640)), "c", ""),
    "chown to the same": (lambda f: os.chown(f, os.geteuid(), os.getegid()), "c", ""),
    "setxattr": (lambda f: os.setxattr(f, "user.a", b"x"), "c", ""),
    "removexattr": (lambda f: os.removexattr(f, "user.there"), "c", ""),
    "an access control list": (acl, "c", ""),
    "utime": (lambda f: os.utime(f), "amc", ""),
    "utime of a time": (lambda f: os.utime(f, ns=(OLD + 1, OLD + 1)), "amc", ""),
    "utimensat of atime": (lambda f: utimensat(f, (0, UTIME_NOW), (0, UTIME_OMIT)), "ac", ""),
    "utimensat of mtime": (lambda f: utimensat(f, (0, UTIME_OMIT), (0, UTIME_NOW)), "mc", ""),
    "utimensat of nothing": (lambda f: utimensat(f, (0, UTIME_OMIT), (0, UTIME_OMIT)), "", ""),
    "link": (lambda f: os.link(f, f.with_name("new")), "c", "mc"),
    "link that fails": (lambda f: quietly(lambda: os.link(f, f.with_name("g"))), "", ""),
    "unlink of one name": (lambda f: f.unlink(), "c", "mc"),
    "rename": (lambda f: f.rename(f.with_name("new")), "c", "mc"),
    "rename to itself": (lambda f: f.rename(f), "", ""),
    "rename to its other name": (lambda f: f.rename(f.with_name("f2")), "", ""),
    "rename over another": (lambda f: f.rename(f.with_name("g")), "c", "mc"),
    "be replaced": (lambda f: f.with_name("g").rename(f), "c", "mc"),
    "exchange": (lambda f: renameat2(f, f.with_name("g"), EXCHANGE), "c", "mc"),
    "create beside": (lambda f: f.with_name("new").touch(), "", "mc"),
    "mkdir beside": (lambda f: f.with_name("new").mkdir(), "", "mc"),
    "rmdir beside": (lambda f: f.with_name("d").rmdir(), "", "mc"),
    "symlink beside": (lambda f: f.with_name("new").symlink_to("x"), "", "mc"),
    "mkfifo beside": (lambda f: os.mkfifo(f.with_name("new")), "", "mc"),
    "bind beside": (lambda f: bind(f.with_name("new")), "", "mc"),
    "write beside": (lambda f: f.with_name("g").write_bytes(b"x"), "", ""),
    "list": (lambda f: os.listdir(f.parent), "", "a"),
    "chmod of the directory": (lambda f: f.parent.chmod(0o700), "", "c"),
}  # fmt: skip


def quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        return
    raise AssertionError("should have failed")


class TestByCall:
    def test_each(self, place: Path) -> None:
        found = {name: self.effect(place / name.replace(" ", "-"), call) for name, (call, _, _) in CALLS.items()}
        assert found == {name: wanted for name, (_, *wanted) in CALLS.items()}

    @staticmethod
    def effect(directory: Path, call: Call) -> list[str]:
        directory.mkdir()
        f, second = directory / "f", directory / "f2"
        f.write_bytes(b"content" * 1000)
        second.hardlink_to(f)
        (directory / "g").write_bytes(b"other content")
        (directory / "d").mkdir()
        os.setxattr(f, "user.there", b"x")
        for path in (f, directory):
            os.utime(path, ns=(OLD, OLD))
        before, directory_before = times(f), times(directory)
        tick()
        call(f)
        return [changed(second, before), changed(directory, directory_before)]

    def test_of_both_directories(self, place: Path) -> None:
        """What moves between two directories changes both, and not what holds them; what fails changes nothing."""
        calls: dict[str, tuple[Call, str]] = {
            "rename": (lambda d: (d / "a" / "f").rename(d / "b" / "new"), "mc mc"),
            "rename over": (lambda d: (d / "a" / "f").rename(d / "b" / "g"), "mc mc"),
            "rename of a directory": (lambda d: (d / "a" / "s").rename(d / "b" / "new"), "mc mc"),
            "rename over a directory": (lambda d: (d / "a" / "s").rename(d / "b" / "e"), "mc mc"),
            "exchange": (lambda d: renameat2(d / "a" / "f", d / "b" / "g", EXCHANGE), "mc mc"),
            "exchange of two kinds": (lambda d: renameat2(d / "a" / "s", d / "b" / "g", EXCHANGE), "mc mc"),
            "link": (lambda d: os.link(d / "a" / "f", d / "b" / "new"), " mc"),
            "rmdir": (lambda d: (d / "a" / "s").rmdir(), "mc "),
            "mkdir that fails": (lambda d: quietly((d / "b" / "g").mkdir), " "),
            "rmdir that fails": (lambda d: quietly((d / "a").rmdir), " "),
            "rename that fails": (lambda d: quietly(lambda: (d / "a" / "f").rename(d / "b" / "e")), " "),
            "NOREPLACE": (lambda d: quietly(lambda: renameat2(d / "a" / "f", d / "b" / "g", NOREPLACE)), " "),
        }
        found = {name: self.effects(place / name.replace(" ", "-"), call) for name, (call, _) in calls.items()}
        assert found == {name: ["", *wanted.split(" ")] for name, (_, wanted) in calls.items()}

    @staticmethod
    def effects(d: Path, call: Call) -> list[str]:
        for below in ("a/s", "b/e"):
            (d / below).mkdir(parents=True)
        (d / "a" / "f").touch()
        (d / "b" / "g").touch()
        before = {path: times(path) for path in (d, d / "a", d / "b")}
        tick()
        call(d)
        return [changed(path, then) for path, then in before.items()]

    def test_what_is_replaced_or_removed_while_it_is_open(self, place: Path) -> None:
        for name in ("f", "g"):
            (place / name).touch()
        (place / "d").mkdir()
        with opened(place / "g") as replaced, opened(place / "d", os.O_RDONLY) as removed:
            before = [os.fstat(one).st_ctime_ns for one in (replaced, removed)]
            tick()
            (place / "f").rename(place / "g")
            (place / "d").rmdir()
            assert all(os.fstat(one).st_ctime_ns > then for one, then in zip((replaced, removed), before, strict=True))

    def test_of_other_types(self, place: Path) -> None:
        (place / "l").symlink_to("target")
        os.utime(place / "l", ns=(OLD, OLD), follow_symlinks=False)
        before = times(place / "l")
        tick()
        assert os.readlink(place / "l") == "target"
        assert changed(place / "l", before) == "a"
        os.mkfifo(place / "p")
        os.utime(place / "p", ns=(OLD, OLD))
        (place / "to").mkdir()
        (place / "moved").mkdir()
        os.utime(place / "moved", ns=(OLD, OLD))
        before = times(place / "moved")
        tick()
        (place / "moved").rename(place / "to" / "moved")
        assert changed(place / "to" / "moved", before) in ("c", "mc")  # `..` is an entry for some

    def test_a_new_thing_is_of_now(self, place: Path) -> None:
        before = time.time_ns() - 20_000_000
        (place / "f").touch()
        (place / "d").mkdir()
        (place / "l").symlink_to("x")
        for name in "fdl":
            for then in times(place / name).values():
                assert before <= then <= time.time_ns()

    def test_through_an_open_file(self, place: Path) -> None:
        """fstat sees at once what a write did, a stat by name too."""
        with opened(place / "f", os.O_RDWR | os.O_CREAT) as descriptor:
            os.utime(place / "f", ns=(OLD, OLD))
            for number in range(3):
                before = os.fstat(descriptor).st_mtime_ns
                tick()
                os.pwrite(descriptor, b"x", number)
                assert os.fstat(descriptor).st_mtime_ns > before
                assert (place / "f").stat().st_mtime_ns == os.fstat(descriptor).st_mtime_ns
            os.utime(descriptor, ns=(OLD + 5, OLD + 7))
            assert (place / "f").stat().st_mtime_ns == OLD + 7
        assert (place / "f").stat().st_mtime_ns == OLD + 7  # closing changes nothing


class TestSetting:
    @pytest.mark.parametrize(
        "when", [0, -1, 1, -(2**31 - 1) * 10**9, 2**31 * 10**9, 2**33 * 10**9 + 123_456_789, 1_234_567_890_987_654_321]
    )
    def test_nanoseconds_from_1901_to_2242(self, place: Path, when: int) -> None:
        (place / "f").touch()
        os.utime(place / "f", ns=(when, when + 1))
        found = (place / "f").stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (when, when + 1)

    def test_beyond_is_cut(self, ours: Path) -> None:
        (ours / "f").touch()
        utimensat(ours / "f", (2**40, 0), (-(2**40), 0))
        found = (ours / "f").stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (2**63 - 1, -(2**63) + 1)

    def test_of_a_symlink_itself(self, place: Path) -> None:
        (place / "f").touch()
        (place / "l").symlink_to("f")
        os.utime(place / "l", ns=(OLD, OLD + 1), follow_symlinks=False)
        assert (place / "l").lstat().st_mtime_ns == OLD + 1
        assert (place / "f").stat().st_mtime_ns != OLD + 1

    @pytest.mark.root
    def test_to_now_by_who_may_write(self, roots: Path) -> None:
        (roots / "f").touch()
        (roots / "f").chmod(0o666)
        os.utime(roots / "f", ns=(OLD, OLD))
        as_user(1101, lambda: os.utime(roots / "f"))
        assert (roots / "f").stat().st_mtime_ns > OLD


class TestAccesses:
    """The kernel keeps no access times on FUSE: a read is noted when it is the first of an open file to reach us."""

    def test_relatime(self, ours: Path) -> None:
        f = ours / "f"
        f.write_bytes(b"x" * 5000)
        os.utime(f, ns=(OLD, OLD))
        f.read_bytes()
        first = times(f)["a"]
        assert first > OLD
        on(f, lambda descriptor: os.utime(descriptor, ns=(first - 2 * DAY, OLD)))
        assert times(f)["a"] == first - 2 * DAY
        on(f, self.direct, os.O_RDONLY | os.O_DIRECT)
        assert times(f)["a"] > first - DAY  # older than a day

    def test_relatime_notes_the_first_read_after_a_change(self, ours: Path) -> None:
        """However young the last access was; of the reads that follow none."""
        f = ours / "f"
        f.write_bytes(b"x" * 5000)
        recent = time.time_ns() - DAY // 24
        os.utime(f, ns=(recent, recent))
        on(f, self.direct, os.O_RDONLY | os.O_DIRECT)
        first = times(f)["a"]
        assert first > recent
        tick()
        on(f, self.direct, os.O_RDONLY | os.O_DIRECT)
        assert times(f)["a"] == first

    def test_relatime_keeps_what_is_young(self, ours: Path) -> None:
        f = ours / "f"
        f.write_bytes(b"x" * 5000)
        now = time.time_ns()
        os.utime(f, ns=(now + DAY, OLD))
        on(f, self.direct, os.O_RDONLY | os.O_DIRECT)
        assert times(f)["a"] == now + DAY

    @pytest.mark.parametrize(("option", "noted"), [("noatime", False), ("relatime", True), ("strictatime", True)])
    def test_options(self, volumes: MakeVolume, option: str, noted: bool) -> None:
        volume = volumes(options=option)
        (volume / "f").write_bytes(b"x")
        (volume / "d").mkdir()
        (volume / "l").symlink_to("f")
        for name in "fdl":
            os.utime(volume / name, ns=(OLD, OLD), follow_symlinks=False)
        on(volume / "f", self.direct, os.O_RDONLY | os.O_DIRECT)
        os.listdir(volume / "d")
        os.readlink(volume / "l")
        assert [times(volume / name)["a"] > OLD for name in "fdl"] == [noted] * 3

    @staticmethod
    def direct(descriptor: int) -> None:
        with mmap.mmap(-1, 4096) as buffer:
            os.readv(descriptor, [buffer])
