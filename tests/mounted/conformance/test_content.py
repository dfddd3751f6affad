"""Bytes of files: reads and writes at every place and of every kind, mappings, holes, direct and synchronous access."""

import array
import fcntl
import mmap
import os
import random
import resource
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from .calls import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FICLONE,
    WHITEOUT,
    error_of,
    fallocate,
    in_child,
    opened,
    renameat2,
)

pytestmark = pytest.mark.mounted

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


class TestReadAndWrite:
    def test_at_every_edge(self, place: Path) -> None:
        """Runs that begin and end around pages, frames and blocks."""
        dice, model = random.Random(1), bytearray()
        with opened(place / "f", NEW) as descriptor:
            for edge in (0, 4096, 65_536, 131_072, 1 << 20):
                for start in (edge - 1, edge, edge + 1):
                    for size in (1, 2, 4095, 4096, 4097):
                        data = dice.randbytes(size)
                        if start < 0:
                            continue
                        assert os.pwrite(descriptor, data, start) == size
                        model.extend(bytes(max(0, start - len(model))))
                        model[start : start + size] = data
            for edge in (0, 4096, 65_536, 131_072, 1 << 20):
                for start in (max(0, edge - 1), edge, edge + 1):
                    for size in (1, 4095, 4097, 200_000):
                        assert os.pread(descriptor, size, start) == model[start : start + size]
            assert os.pread(descriptor, 10, len(model)) == b""
            assert os.pread(descriptor, 10, 2**62) == b""
            assert os.pread(descriptor, 10, len(model) - 3) == model[-3:]
        assert (place / "f").read_bytes() == model

    def test_the_position_moves(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor:
            os.write(descriptor, b"0123456789")
            assert os.lseek(descriptor, 0, os.SEEK_CUR) == 10
            assert os.lseek(descriptor, -3, os.SEEK_END) == 7
            assert os.read(descriptor, 2) == b"78"
            os.pwrite(descriptor, b"x", 0)
            assert os.pread(descriptor, 1, 0) == b"x"
            assert os.lseek(descriptor, 0, os.SEEK_CUR) == 9
            assert os.lseek(descriptor, 100, os.SEEK_SET) == 100
            os.write(descriptor, b"y")
            assert os.fstat(descriptor).st_size == 101
            second = os.dup(descriptor)
            assert os.lseek(second, 0, os.SEEK_CUR) == 101
            os.close(second)

    def test_vectors(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor:
            assert os.writev(descriptor, [b"one", b"", b"two" * 3000]) == 9003
            assert os.pwritev(descriptor, [b"x", b"y"], 1) == 2
            parts = [bytearray(2), bytearray(1), bytearray(20_000)]
            assert os.preadv(descriptor, parts, 0) == 9003
            assert (parts[0], parts[1], parts[2][:3]) == (b"ox", b"y", b"two")
            assert os.writev(descriptor, [b"z"] * 1000) == 1000

    def test_several_megabytes_at_once(self, place: Path) -> None:
        data = random.Random(2).randbytes(9_000_001)
        with opened(place / "f", NEW) as descriptor:
            assert os.write(descriptor, data) == len(data)
            assert os.pread(descriptor, len(data) + 1, 0) == data

    def test_append(self, place: Path) -> None:
        with opened(place / "f", NEW | os.O_APPEND) as first, opened(place / "f", os.O_RDWR | os.O_APPEND) as second:
            os.write(first, b"a")
            os.write(second, b"b")
            os.lseek(first, 0, os.SEEK_SET)
            os.write(first, b"c")
            os.pwrite(second, b"d", 0)  # which Linux appends, too
            os.ftruncate(first, 2)
            os.write(second, b"e")
        assert (place / "f").read_bytes() == b"abe"

    def test_append_of_several_processes(self, place: Path) -> None:
        (place / "f").touch()
        pids = []
        for who in range(4):
            pid = os.fork()
            if pid == 0:
                try:
                    to = os.open(place / "f", os.O_WRONLY | os.O_APPEND)
                    for number in range(100):
                        os.write(to, f"{who} {number:04} {'x' * (number % 50)}\n".encode())
                    os._exit(0)
                finally:
                    os._exit(1)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
        lines = (place / "f").read_text().splitlines()
        assert sorted(lines) == sorted(f"{who} {n:04} {'x' * (n % 50)}" for who in range(4) for n in range(100))

    def test_what_one_wrote_another_reads(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor:
            for number in range(50):
                os.pwrite(descriptor, b"%04d" % number, number * 1000)
                found = in_child(lambda number=number: (place / "f").read_bytes()[number * 1000 :])
                assert found == b"%04d" % number

    def test_truncation_shows_zeros_and_nothing_old(self, place: Path) -> None:
        for size in (1, 4095, 4096, 4097, 100_000, 131_072):
            with opened(place / f"{size}", NEW) as descriptor:
                os.write(descriptor, b"x" * 200_000)
                os.ftruncate(descriptor, size)
                os.ftruncate(descriptor, 200_000)
                assert os.pread(descriptor, 200_001, 0) == b"x" * size + bytes(200_000 - size)
                os.ftruncate(descriptor, size)
                os.pwrite(descriptor, b"end", 199_997)
                assert os.pread(descriptor, 200_001, 0) == b"x" * size + bytes(199_997 - size) + b"end"

    def test_sendfile_and_splice(self, place: Path) -> None:
        data = random.Random(3).randbytes(300_000)
        (place / "f").write_bytes(data)
        with opened(place / "f", os.O_RDONLY) as source, opened(place / "g", NEW) as to:
            sent = 0
            while sent < len(data):
                sent += os.sendfile(to, source, sent, len(data) - sent)
            reading, writing = os.pipe()
            assert os.splice(source, writing, 5000, offset_src=1000) == 5000
            assert os.read(reading, 6000) == data[1000:6000]
            os.close(reading)
            os.close(writing)
            left, right = socket.socketpair()
            with left, right:
                assert os.sendfile(left.fileno(), source, 7, 100) == 100
                assert right.recv(200) == data[7:107]
        assert (place / "g").read_bytes() == data

    def test_copy_file_range(self, place: Path) -> None:
        data = random.Random(4).randbytes(500_000)
        (place / "f").write_bytes(data)
        with opened(place / "f") as source, opened(place / "g", NEW) as to:
            done = 0
            while done < 400_000:
                done += os.copy_file_range(source, to, 400_000 - done, 50_000 + done, 100_000 + done)
            assert os.copy_file_range(source, to, 10, 600_000) == 0  # behind the end
            assert os.copy_file_range(source, source, 1000, 0, 10_000) == 1000
            assert error_of(os.copy_file_range, source, source, 1000, 0, 500) == "EINVAL"  # which overlap
        assert (place / "g").read_bytes() == bytes(100_000) + data[50_000:450_000]
        assert (place / "f").read_bytes()[10_000:11_000] == data[:1000]


class TestSpecialAccess:
    def test_direct(self, place: Path) -> None:
        """Aligned, as programs do it: by pages of memory to multiples of a block."""
        with opened(place / "f", NEW | os.O_DIRECT) as direct, opened(place / "f") as cached, \
                mmap.mmap(-1, 65_536) as buffer:  # fmt: skip
            buffer[:] = random.Random(5).randbytes(65_536)
            assert os.pwritev(direct, [buffer], 0) == 65_536
            assert os.pread(cached, 65_536, 0) == buffer[:]
            os.pwrite(cached, b"through the cache", 4096)
            with mmap.mmap(-1, 8192) as back:
                assert os.preadv(direct, [back], 4096) == 8192
                assert back[:17] == b"through the cache"
                assert os.preadv(direct, [back], 61_440) == 4096  # up to the end
                back[:8192] = b"d" * 8192
                assert os.pwritev(direct, [back], 8192) == 8192
            assert os.pread(cached, 8193, 8192) == b"d" * 8192 + buffer[16_384:16_385]

    @pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_SYNC | os.O_DIRECT], ids=["SYNC", "DSYNC", "DIRECT"])
    def test_synchronous(self, place: Path, flag: int) -> None:
        with opened(place / "f", NEW | flag) as descriptor, mmap.mmap(-1, 4096) as page:
            page[:] = b"s" * 4096
            for number in range(5):
                assert os.pwritev(descriptor, [page], number * 4096) == 4096
            os.ftruncate(descriptor, 4096 * 3)
        assert (place / "f").read_bytes() == b"s" * 4096 * 3

    def test_syncing(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor, opened(place, os.O_RDONLY) as directory:
            os.write(descriptor, b"x")
            os.fsync(descriptor)
            os.fdatasync(descriptor)
            os.fsync(directory)
        with opened(place / "f", os.O_RDONLY) as descriptor:
            os.fsync(descriptor)

    def test_advice(self, place: Path) -> None:
        (place / "f").write_bytes(b"x" * 100_000)
        with opened(place / "f") as descriptor:
            for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_DONTNEED):
                os.posix_fadvise(descriptor, 0, 0, advice)
                assert os.pread(descriptor, 100_001, 0) == b"x" * 100_000


class TestMappings:
    def test_shared_ones_agree_with_reads_and_writes(self, place: Path) -> None:
        dice = random.Random(6)
        (place / "f").write_bytes(bytes(100_000))
        model = bytearray(100_000)
        with opened(place / "f") as descriptor, opened(place / "f") as other, \
                mmap.mmap(descriptor, 0) as view, mmap.mmap(other, 0) as second:  # fmt: skip
            for number in range(300):
                start = dice.randrange(99_000)
                data = dice.randbytes(dice.randrange(1, 1000))
                model[start : start + len(data)] = data
                if number % 2:
                    view[start : start + len(data)] = data
                    assert os.pread(other, len(data), start) == data
                else:
                    os.pwrite(other, data, start)
                    assert view[start : start + len(data)] == data
                assert second[start : start + len(data)] == data
                if number % 50 == 0:
                    view.flush()
            assert view[:] == model
        assert (place / "f").read_bytes() == model

    def test_private_ones_change_nothing(self, place: Path) -> None:
        (place / "f").write_bytes(b"original")
        with opened(place / "f", os.O_RDONLY) as descriptor, \
                mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as view:  # fmt: skip
            view[:8] = b"changed!"
        assert (place / "f").read_bytes() == b"original"

    def test_one_outlives_its_descriptor(self, place: Path) -> None:
        (place / "f").write_bytes(bytes(10_000))
        with opened(place / "f") as descriptor:
            view = mmap.mmap(descriptor, 0)
        view[5000:5005] = b"later"
        view.close()
        assert (place / "f").read_bytes()[5000:5005] == b"later"

    def test_behind_the_end_of_the_file(self, place: Path) -> None:
        """Zeros up to the end of the page; what is written there is not the file's; further on, SIGBUS."""
        (place / "f").write_bytes(b"x" * 10)
        with opened(place / "f") as descriptor, mmap.mmap(descriptor, 0) as view:
            assert view[:10] == b"x" * 10
        with opened(place / "f") as descriptor:
            os.ftruncate(descriptor, 8192)
            with mmap.mmap(descriptor, 8192) as view:
                os.ftruncate(descriptor, 10)
                assert view[10:4096] == bytes(4086)
                view[10:20] = b"not in it!"
                pid = os.fork()
                if pid == 0:
                    signal.signal(signal.SIGBUS, signal.SIG_DFL)
                    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                    view[5000]
                    os._exit(0)
                assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS
                view.flush()
            os.ftruncate(descriptor, 30)
            assert os.pread(descriptor, 30, 0) == b"x" * 10 + bytes(20)

    def test_between_processes(self, place: Path) -> None:
        (place / "f").write_bytes(bytes(8192))
        with opened(place / "f") as descriptor, mmap.mmap(descriptor, 0) as view:
            def change() -> bytes:
                with opened(place / "f") as mine, mmap.mmap(mine, 0) as theirs:
                    before = theirs[:5]
                    theirs[4096:4101] = b"child"
                    return before

            view[:5] = b"hello"
            assert in_child(change) == b"hello"
            assert view[4096:4101] == b"child"


class TestHoles:
    def test_take_no_room(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor:
            os.ftruncate(descriptor, 1 << 40)
            assert os.fstat(descriptor).st_blocks < 100
            os.pwrite(descriptor, b"x" * 100_000, 1 << 39)
            os.fsync(descriptor)
            assert 100_000 <= os.fstat(descriptor).st_blocks * 512 < 200_000
            assert os.pread(descriptor, 8192, 1 << 38) == bytes(8192)
            assert os.pread(descriptor, 10, (1 << 39) - 5) == bytes(5) + b"x" * 5
            os.ftruncate(descriptor, 1 << 38)
            os.fsync(descriptor)
            assert os.fstat(descriptor).st_blocks < 100

    def test_copies_stay_sparse(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor:
            os.pwrite(descriptor, b"x" * 10_000, 5_000_000)
            os.ftruncate(descriptor, 20_000_000)
        for number, words in enumerate((["--sparse=always"], ["--sparse=auto"], ["--reflink=auto"])):
            subprocess.run(["cp", *words, place / "f", place / f"{number}"], check=True)
        with opened(place / "0") as descriptor:
            os.fsync(descriptor)
            assert os.fstat(descriptor).st_blocks * 512 < 300_000
        for number in range(3):
            assert subprocess.run(["cmp", place / "f", place / f"{number}"], check=False).returncode == 0

    def test_posix_fallocate(self, place: Path) -> None:
        with opened(place / "f", NEW) as descriptor:
            os.write(descriptor, b"there")
            os.posix_fallocate(descriptor, 0, 3_000_001)
            assert os.fstat(descriptor).st_size == 3_000_001
            assert os.pread(descriptor, 10, 0) == b"there" + bytes(5)
            os.posix_fallocate(descriptor, 100, 10)
            assert os.fstat(descriptor).st_size == 3_000_001
            os.pwrite(descriptor, b"end", 2_999_998)
            os.fsync(descriptor)
            assert os.fstat(descriptor).st_blocks * 512 >= 3_000_000
            assert os.pread(descriptor, 4, 2_999_997) == b"\0end"


class TestWhatTheKernelAnswers:
    """For calls without a handler of ours: exactly what docs/conformance.md says."""

    def test_fallocate(self, ours: Path) -> None:
        with opened(ours / "f", NEW) as descriptor:
            os.write(descriptor, b"x" * 10_000)
            # Plain, keep size, punch a hole, collapse, zero, insert.
            for mode in (0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 8, 16, 32):
                assert error_of(fallocate, descriptor, mode, 0, 4096) == "EOPNOTSUPP"
            assert os.pread(descriptor, 10_001, 0) == b"x" * 10_000

    def test_seek_hole_and_data(self, ours: Path) -> None:
        with opened(ours / "f", NEW) as descriptor:
            os.pwrite(descriptor, b"x", 1_000_000)
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
            assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 1_000_001
            assert os.lseek(descriptor, 500_000, os.SEEK_DATA) == 500_000
            assert error_of(os.lseek, descriptor, 1_000_001, os.SEEK_DATA) == "ENXIO"

    def test_copy_between_file_systems(self, ours: Path) -> None:
        with opened(ours / "f", NEW) as to, opened(Path("/etc/passwd"), os.O_RDONLY) as source:
            assert error_of(os.copy_file_range, source, to, 10) == "EXDEV"

    def test_ioctl(self, ours: Path) -> None:
        (ours / "g").write_bytes(b"x")
        with opened(ours / "f", NEW) as descriptor, opened(ours / "g") as source:
            assert error_of(fcntl.ioctl, descriptor, FICLONE, source) == "EOPNOTSUPP"
            flags = array.array("l", [0])
            for number in (0x80086601, 0x801C581F, 0xC0185879):  # FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, FITRIM
                assert error_of(fcntl.ioctl, descriptor, number, flags) == "ENOTTY"
            assert error_of(fcntl.ioctl, descriptor, 0xC020660B, bytearray(256)) == "EOPNOTSUPP"  # FS_IOC_FIEMAP

    def test_whiteouts(self, ours: Path) -> None:
        (ours / "f").touch()
        assert error_of(renameat2, ours / "f", ours / "g", WHITEOUT) == "EINVAL"

    def test_direct_access_needs_no_alignment(self, ours: Path) -> None:
        with opened(ours / "f", NEW | os.O_DIRECT) as descriptor:
            assert os.pwrite(descriptor, b"abc", 1) == 3
            assert os.pread(descriptor, 5, 0) == b"\0abc"

    def test_nameless_files(self, ours: Path) -> None:
        assert error_of(os.open, ours, os.O_TMPFILE | os.O_RDWR) == "EOPNOTSUPP"

    def test_a_clone_is_refused_and_a_copy_made(self, ours: Path) -> None:
        (ours / "f").write_bytes(b"content")
        assert subprocess.run(["cp", "--reflink=always", ours / "f", ours / "g"], capture_output=True).returncode == 1
        subprocess.run(["cp", "--reflink=auto", ours / "f", ours / "h"], check=True)
        assert (ours / "h").read_bytes() == b"content"


class TestLimits:
    def test_the_largest_offsets(self, ours: Path) -> None:
        largest = 2**63 - 1
        with opened(ours / "f", NEW) as descriptor:
            os.ftruncate(descriptor, largest)
            assert os.fstat(descriptor).st_size == largest
            assert os.pread(descriptor, 5, largest - 5) == bytes(5)
            os.ftruncate(descriptor, 0)
            assert os.pwrite(descriptor, b"end", largest - 3) == 3
            assert os.pread(descriptor, 5, largest - 5) == b"\0\0end"
            assert error_of(os.pwrite, descriptor, b"x", largest) in ("EINVAL", "EFBIG")
        (ours / "f").unlink()

    def test_a_thousand_open_files(self, place: Path) -> None:
        descriptors = [os.open(place / f"{number}", NEW) for number in range(800)]
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, b"%d" % number)
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == b"%d" % number
            os.close(descriptor)


def test_statvfs(ours: Path) -> None:
    found = os.statvfs(ours)
    assert found.f_namemax == 255
    assert found.f_bsize >= found.f_frsize > 0
    assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
    assert 0 < found.f_favail <= found.f_ffree <= found.f_files
    with opened(ours / "f", NEW) as descriptor:
        assert os.fstatvfs(descriptor).f_blocks > 0
        after = os.statvfs(ours)
        assert after.f_files - after.f_ffree == found.f_files - found.f_ffree + 1
